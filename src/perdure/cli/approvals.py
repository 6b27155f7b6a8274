"""`perdure approvals`: what waits for people, and their decisions; in a store, or on a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from perdure.bootstrap import Node, Run
from perdure.cli.access import Access, place_options
from perdure.cli.common import command_body, json_option
from perdure.cli.output import Output, marked
from perdure.cli.progress import (
    FOR_A_PERSON,
    answer_here,
    asks_approval,
    describe_waiting,
    is_at_terminal,
)
from perdure.cli.runs import agent_option, tell_run
from perdure.cli.served import served
from perdure.cli.source import TENANT, reading, row_of
from perdure.client.dialogues import Decision
from perdure.core.errors import InvalidInput, NotFound
from perdure.core.runs import RunRow
from perdure.ports.session_store import RunQuery

ROWS_MAX = 500
Wait = dict[str, Any]


@click.group()
def approvals() -> None:
    """See what waits for people, and decide on calls that need approval.

    They are those of a store or, with --url or PERDURE_URL, those of a server.
    """


@approvals.command("list", epilog="Example: perdure approvals list --url http://server:4000")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Questions, calls in doubt and budgets, too, each with what answers it.",
)
@json_option
@command_body
@place_options
async def list_(everything: bool, store: str, server: Access | None, as_json: bool) -> None:
    """List the calls that wait for approval, or all that waits for people, the newest run first."""
    output = Output(as_json)
    wanted = FOR_A_PERSON if everything else frozenset({"approval"})
    if server is not None:
        async with served(server, output) as there:
            found = await there.client.waits(None if everything else "approval", limit=ROWS_MAX)
        waits = [(str(one.run_id), _flat(msgspec.to_builtins(one.wait))) for one in found]
    else:
        waits = [(row.id, dict(wait)) for row in await _rows(store) for wait in row.waiting_for]
    shown = [(run, wait) for run, wait in waits if wait["what"] in wanted]
    option = "" if server is None else server.option
    for run, wait in shown:
        said = describe_waiting(run, [wait], option) if everything else asks_approval(wait)
        output.record({"run": run, **wait}, f"{run} {wait['call']}  {said}")
    if not shown:
        output.say("Nothing waits for approval." if not everything else "Nothing waits for people.")


@approvals.command(epilog="Example: perdure approvals show 12")
@click.argument("run_id")
@click.argument("call", required=False)
@json_option
@command_body
@place_options
async def show(
    run_id: str, call: str | None, store: str, server: Access | None, as_json: bool
) -> None:
    """Show what a call would do, with every character that cannot be seen."""
    output = Output(as_json)
    wait = await pending(run_id, call, store, server, output)
    output.record({"run": run_id, **wait}, described(wait))


def is_seen(digest: str | None, yes: bool) -> bool:
    """Say whether somebody has said what he looked at, or that he need not."""
    return digest is not None or yes


async def is_meant(wait: Wait, output: Output) -> bool:
    """Show what is approved, and have whoever sits at the terminal say so.

    Raises `InvalidInput` without a terminal: what was not looked at here has to be named.
    """
    output.say(described(wait))
    said = await answer_here("Let this call be made? [y/N]", output)
    if said is None and not is_at_terminal(output):
        raise InvalidInput(
            f"say what you approve: --digest {wait['digest']} if that is what you looked at, or "
            "--yes for whatever the arguments are now"
        )
    return said is not None and said.lower() in ("y", "yes")


def _deciding(name: str, decision: Decision, help: str) -> Callable[..., Any]:
    """Make the command that takes one decision."""

    @approvals.command(name, help=help, epilog=f"Example: perdure approvals {name} 12")
    @click.argument("run_id")
    @click.argument("call", required=False)
    @click.option("--digest", help="Of the arguments that you looked at; others are refused.")
    @click.option("--yes", is_flag=True, help="Approve what the arguments are now, unseen.")
    @click.option("--reason", default="", help="Why; the model is told of a denial.")
    @click.option("--arguments", help="JSON: what the call is to be made with instead.")
    @click.option("--role", "roles", multiple=True, help="Who is to decide instead; repeatable.")
    @click.option("--by", help="Who decides; on a server that is the key.")
    @click.option("--no-follow", is_flag=True, help="Do not wait for the end of the run.")
    @agent_option
    @json_option
    @command_body
    @place_options
    async def command(
        run_id: str,
        call: str | None,
        digest: str | None,
        yes: bool,
        reason: str,
        arguments: str | None,
        roles: Sequence[str],
        by: str | None,
        no_follow: bool,
        agent: str | None,
        store: str,
        server: Access | None,
        as_json: bool,
    ) -> int:
        output = Output(as_json)
        if server is not None and by is not None:
            raise InvalidInput("--by is for a store; a server goes by the key")
        try:
            wait = await pending(run_id, call, store, server, output)
        except NotFound:
            if call is None:
                raise
            wait = {"call": call, "digest": None}  # whoever comes late is told who decided
        seen = is_seen(digest, yes) or wait["digest"] is None
        if decision == "approve" and not seen and not await is_meant(wait, output):
            output.say("Nothing was decided.")
            return 1
        said: dict[str, Any] = {
            "digest": digest or wait["digest"],
            "reason": reason,
            "roles": tuple(roles),
            "arguments": None if arguments is None else _arguments(arguments),
        }
        goes_on = decision in ("approve", "deny") and not no_follow
        if server is not None:
            async with served(server, output) as there:
                run = there.run(run_id)
                return await there.tell(
                    run, lambda: run.decide(wait["call"], decision, **said), goes_on
                )

        async def telling(node: Node, row: RunRow) -> Run | None:
            person = by or "command line"
            await node.decide(row.id, decision, call=wait["call"], by=person, **said)
            return await node.run(row.id) if goes_on else None

        return await tell_run(store, run_id, agent, output, telling)

    return command


approve = _deciding("approve", "approve", "Let a call be made with the arguments it has.")
deny = _deciding("deny", "deny", "Let a call not be made; the model is told why.")
edit = _deciding("edit", "edit", "Change a call's arguments; it is to be approved after that.")
reassign = _deciding("reassign", "reassign", "Have others decide: those with one of the roles.")


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"--arguments is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput('--arguments is a JSON object, as in {"cents": 500}')
    return found


async def _rows(store: str) -> list[RunRow]:
    async with reading(store) as reader:
        found: list[RunRow] = []
        for status in ("waiting", "running"):
            query = RunQuery(tenant=TENANT, status=status, limit=ROWS_MAX)
            found += await reader.list(query)
        return sorted(found, key=lambda row: (row.created_at, row.id), reverse=True)


async def pending(
    run_id: str, call: str | None, store: str, server: Access | None, output: Output
) -> Wait:
    """Return the approval that a run waits for. Raises `NotFound`, and if there are several."""
    if server is not None:
        async with served(server, output) as there:
            found = [_flat(msgspec.to_builtins(w)) for w in (await there.run(run_id).get()).waits]
    else:
        async with reading(store) as reader:
            found = [dict(wait) for wait in (await row_of(reader, run_id)).waiting_for]
    asked = [wait for wait in found if wait["what"] == "approval" and call in (None, wait["call"])]
    if not asked:
        which = "" if call is None else f" {call}"
        raise NotFound(f"no call{which} of run {run_id} waits for approval")
    if len(asked) > 1:
        calls = ", ".join(wait["call"] for wait in asked)
        raise InvalidInput(f"several calls of run {run_id} wait for approval: say which of {calls}")
    return asked[0]


def _flat(wait: Wait) -> Wait:
    """Return what a server tells of an approval as a store does: in one table."""
    asked = wait.pop("approval", {})
    return {**wait, **asked}


def described(wait: Wait) -> str:
    """Return everything that an approval is bound to, one thing in a line."""
    arguments = wait["arguments"]
    pretty = "(too large to be shown here: see the run's events)"
    if arguments is not None:
        pretty = msgspec.json.format(msgspec.json.encode(arguments, order="sorted")).decode()
    approved = ", ".join(wait["approved_by"]) or "nobody yet"
    lines = [
        f"call      {wait['call']}",
        f"tool      {wait['tool']} ({wait['effect']})",
        *(f"          {marked(line)}" for line in pretty.splitlines()),
        f"digest    {wait['digest']}",
        f"rule      {wait['rule']}: {wait['reason']}",
        f"approved  {approved}, of {wait['needed']} needed",
        f"expires   {wait['expires_at']}",
    ]
    if wait["roles"]:
        lines.append(f"roles     {', '.join(wait['roles'])}")
    if wait.get("escalate_at"):
        lines.append(f"later     {', '.join(wait['escalate_to'])}, at {wait['escalate_at']}")
    if wait.get("reminded"):
        lines.append(f"reminded  {wait['reminded']} times")
    if wait["edited_by"]:
        lines.append(f"edited by {wait['edited_by']}")
    return "\n".join(marked(line) for line in lines)
