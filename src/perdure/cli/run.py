"""`perdure run` and `perdure resume`: an agent at work on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from perdure.bootstrap import Agent, Runtime, prices_of
from perdure.cli.budget import budget_option, given
from perdure.cli.common import command_body, json_option, policy_option, store_option
from perdure.cli.loading import load_policy, load_team
from perdure.cli.output import Output
from perdure.cli.progress import follow
from perdure.cli.source import agents_of, policy_of, reading, unfinished, whole_log
from perdure.core.errors import InvalidInput
from perdure.core.gate import NO_RULES, Gate

MODES = click.Choice(["queue", "steer", "interrupt"])


@click.command(
    epilog='Example: perdure run support.py:support "Refund order 42" --session slack:U01'
)
@click.argument("agent")
@click.argument("message")
@click.option("--session", help="The session to talk to; without it the message gets a new one.")
@click.option("--mode", type=MODES, default="queue", show_default=True, help="If it is busy.")
@click.option("--idempotency-key", help="The same key gives the same run.")
@budget_option
@click.option("--model", help="Ask this model instead, for example anthropic:claude-sonnet-5.")
@policy_option
@store_option
@json_option
@command_body
async def run(
    agent: str,
    message: str,
    session: str | None,
    mode: str,
    idempotency_key: str | None,
    budget_amounts: Sequence[str],
    model: str | None,
    policy: str | None,
    store: str,
    as_json: bool,
) -> int:
    """Send MESSAGE to AGENT (FILE.py:NAME or module:NAME) and show the run.

    Ctrl-C stops it at the next commit; `perdure resume` goes on from there.
    """
    output = Output(as_json)
    found, others, source = load_team(agent)
    if model is not None:
        found = found.with_model(model)
    meta = {"source": source} if model is None else {"source": source, "model": model}
    gate: Gate = NO_RULES
    if policy is not None:
        gate, meta["policy"] = load_policy(policy)
    team, prices = [found, *others], prices_of(os.environ)
    async with Runtime(store, agents=team, policy=gate, prices=prices) as node:
        handle = await node.send(
            found.name,
            message,
            session=session,
            mode=mode,  # type: ignore[arg-type]
            idempotency_key=idempotency_key,
            budget=given(budget_amounts),
            meta=meta,
        )
        output.say(f"run {handle.id}")
        return await follow(node, handle, output)


@click.command(epilog="Example: perdure resume")
@click.argument("run_id", required=False)
@click.option("--agent", help="FILE.py:NAME, if the agent's file has moved.")
@store_option
@json_option
@command_body
async def resume(run_id: str | None, agent: str | None, store: str, as_json: bool) -> int:
    """Go on with what was unfinished: RUN_ID, or every unfinished run, one after the other."""
    output = Output(as_json)
    async with reading(store) as reader:
        rows = await unfinished(reader, run_id)
        agents: dict[str, Agent] = await agents_of(reader, rows, agent)
        for row in rows:
            await whole_log(reader, row.session)
        gate = await policy_of(reader, rows)
    if not rows:
        output.say("Nothing to resume: every run has ended.")
        return 0
    missing = sorted({row.session.agent for row in rows} - set(agents))
    if missing:
        raise InvalidInput(
            f"the agent {missing[0]!r} is not at hand; name it: --agent FILE.py:NAME"
        )
    worst = 0
    async with Runtime(
        store, agents=agents.values(), policy=gate, prices=prices_of(os.environ)
    ) as node:
        for row in rows:
            handle = await node.run(row.id)
            output.say(f"run {handle.id}")
            code = await follow(node, handle, output)
            worst = max(worst, code)
            if code == 130:
                break
    return worst
