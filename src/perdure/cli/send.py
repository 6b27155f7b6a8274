"""`perdure send`: a message to an agent of a server."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from perdure.cli.access import access, server_options
from perdure.cli.budget import asked_budget, budget_option
from perdure.cli.common import command_body, json_option
from perdure.cli.output import Output
from perdure.cli.progress import plain_lines
from perdure.cli.served import Served
from perdure.core.errors import PerdureError

MODES = click.Choice(["queue", "steer", "interrupt", "reject"])


@click.command(epilog='Example: perdure send support "Refund order 42" --session slack:U01 --wait')
@click.argument("agent")
@click.argument("message")
@click.option("--session", help="The session to talk to; without it the message gets a new one.")
@click.option("--mode", type=MODES, default="queue", show_default=True, help="If it is busy.")
@click.option("--idempotency-key", help="The same key gives the same run.")
@budget_option
@click.option("--wait", is_flag=True, help="Wait for the end, and print the answer.")
@click.option(
    "--timeout", type=click.FloatRange(0), help="Wait so many seconds at most; implies --wait."
)
@server_options
@json_option
@command_body
async def send(
    agent: str,
    message: str,
    session: str | None,
    mode: Any,
    idempotency_key: str | None,
    budget_amounts: Sequence[str],
    wait: bool,
    timeout: float | None,  # noqa: ASYNC109
    url: str | None,
    key: str | None,
    as_json: bool,
) -> int:
    """Send MESSAGE to AGENT of a server.

    AGENT is a name or a number. The number of the run is printed, which goes on by itself, whether
    or not somebody waits for it.
    """
    from perdure.client.dialogues import is_over, needs_a_person

    server, output = access(url, key), Output(as_json)
    async with server.client() as client:
        run = await client.send(
            int(agent) if agent.isdecimal() else agent,
            message,
            session=session,
            mode=mode,
            idempotency_key=idempotency_key,
            budget=asked_budget(budget_amounts),
        )
        if not wait and timeout is None:
            output.record({"run_id": run.id}, str(run.id))
            return 0
        found = await run.wait(timeout)
        if found.status == "completed":
            output.record(msgspec.to_builtins(found), plain_lines(found.output or ""))
            return 0
        if not (is_over(found) or needs_a_person(found)):
            raise PerdureError(
                f"run {run.id} has not ended within {timeout:g} s, and goes on; follow it with: "
                f"perdure runs tail {run.id}{server.option}"
            )
        return Served(client, output, server.option).finish(found)


def sender(example: str) -> click.Command:
    """Return the same command for a place where its example reads otherwise."""
    made = copy.copy(send)
    made.epilog = f"Example: {example}"
    return made
