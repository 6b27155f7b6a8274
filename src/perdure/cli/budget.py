"""`perdure budget`: what a run may spend and has spent, and more of it.

The runs are those of a store or of a server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from perdure.api.shapes import BudgetCreate
from perdure.bootstrap import Node, Run
from perdure.cli.access import Access, place_options
from perdure.cli.common import command_body, json_option
from perdure.cli.output import Output
from perdure.cli.purse import described, shown
from perdure.cli.runs import agent_option, purse_now, tell_run
from perdure.cli.served import served
from perdure.cli.source import reading, row_of
from perdure.core.budget import Budget
from perdure.core.errors import InvalidInput, NotFound
from perdure.core.prices import micros_of, money
from perdure.core.runs import RunRow

TIMES = {"": 1_000, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@click.group()
def budget() -> None:
    """See what a run may spend and has spent, and give it more.

    The runs are those of a store or, with --url or PERDURE_URL, those of a server.
    """


@budget.command(epilog="Example: perdure budget show 12")
@click.argument("run_id")
@json_option
@command_body
@place_options
async def show(run_id: str, store: str, server: Access | None, as_json: bool) -> None:
    """Show what a run has of its budget."""
    output = Output(as_json)
    if server is not None:
        async with served(server, output) as there:
            found = msgspec.to_builtins(await there.run(run_id).get()).get("purse")
    else:
        async with reading(store) as reader:
            row = await row_of(reader, run_id)
            found = shown(await purse_now(reader, row))
    if found is None:
        raise NotFound(f"run {run_id} has no budget")
    output.record({"run": run_id, **found}, described(found))


def _answering(run: Any) -> Any:
    """Give a command the arguments and options that both answers to a breach have."""
    for option in (
        click.option("--no-follow", is_flag=True, help="Do not wait for what comes of it."),
        agent_option,
        click.option("--by", help="Who decides; of a store."),
        click.option("--reason", default="", help="Why; it is in the run's log."),
        click.option("--call", help="Only if this call still waits for it."),
    ):
        run = option(run)
    return click.argument("run_id")(run)


@budget.command("raise", epilog="Example: perdure budget raise 12 --tokens 50000 --cost 2.50")
@click.option("--tokens", type=click.IntRange(0), default=0, help="So many tokens more.")
@click.option("--cost", default="0", help="So many dollars more, as in 2.50.")
@click.option("--wall", default="0", help="So much time from now on, as in 90, 30m or 2h.")
@click.option("--calls", multiple=True, metavar="TOOL=N", help="So many calls of a tool more.")
@_answering
@json_option
@command_body
@place_options
async def raise_(
    run_id: str,
    tokens: int,
    cost: str,
    wall: str,
    calls: Sequence[str],
    call: str | None,
    reason: str,
    by: str | None,
    agent: str | None,
    no_follow: bool,
    store: str,
    server: Access | None,
    as_json: bool,
) -> int:
    """Let a run spend more; if it waits for that, it goes on where it stopped.

    Without any amount a run that waits is looked at again: its model may have a price by now.
    """
    output, more = Output(as_json), _calls(calls)
    said: dict[str, Any] = {"call": call, "reason": reason, "calls": more, "tokens": tokens}
    micros, wall_ms = micros_of(cost), _milliseconds(wall)
    _check_by(by, server)
    if server is not None:
        async with served(server, output) as there:
            run = there.run(run_id)
            return await there.tell(
                run, lambda: run.raise_budget(cost=cost, wall_ms=wall_ms, **said), not no_follow
            )

    async def telling(node: Node, row: RunRow) -> Run | None:
        person = by or "command line"
        await node.raise_budget(row.id, cost_micros=micros, wall_ms=wall_ms, by=person, **said)
        return None if no_follow else await node.run(row.id)

    return await tell_run(store, run_id, agent, output, telling)


@budget.command(epilog="Example: perdure budget deny 12 --reason 'that is enough'")
@_answering
@json_option
@command_body
@place_options
async def deny(
    run_id: str,
    call: str | None,
    reason: str,
    by: str | None,
    agent: str | None,
    no_follow: bool,
    store: str,
    server: Access | None,
    as_json: bool,
) -> int:
    """Give no more: a tool's call is not made, and a run that cannot ask its model fails."""
    output = Output(as_json)
    _check_by(by, server)
    if server is not None:
        async with served(server, output) as there:
            run = there.run(run_id)
            return await there.tell(
                run, lambda: run.deny_budget(call=call, reason=reason), not no_follow
            )

    async def telling(node: Node, row: RunRow) -> Run | None:
        await node.deny_budget(row.id, call=call, reason=reason, by=by or "command line")
        return None if no_follow else await node.run(row.id)

    return await tell_run(store, run_id, agent, output, telling)


def _check_by(by: str | None, server: Access | None) -> None:
    if server is not None and by is not None:
        raise InvalidInput("--by is for a store; a server goes by the key")


def _calls(given: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in given:
        tool, _, count = each.rpartition("=")
        if not tool or not count.isdecimal():
            raise InvalidInput(f"--calls is TOOL=N, as in search=5, not {each!r}")
        found[tool] = int(count)
    return found


def _milliseconds(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if found is None:
        raise InvalidInput(f"a time is a number with s, m, h or d after it, not {text!r}")
    return int(found[1]) * TIMES[found[2]]


def given(amounts: Sequence[str]) -> Budget | None:
    """Return the budget that options say: KEY=AMOUNT. Raises `InvalidInput`."""
    if not amounts:
        return None
    found: dict[str, Any] = {}
    calls: dict[str, int] = {}
    for each in amounts:
        name, _, amount = each.partition("=")
        if name == "tokens" and amount.isdecimal():
            found["tokens_max"] = int(amount)
        elif name == "cost":
            found["cost_micros_max"] = micros_of(amount)
        elif name == "wall":
            found["wall_ms_max"] = _milliseconds(amount)
        elif name == "on_breach" and amount in ("ask", "fail"):
            found["on_breach"] = amount
        elif name.startswith("calls:") and amount.isdecimal():
            calls[name.removeprefix("calls:")] = int(amount)
        else:
            raise InvalidInput(
                f"--budget is tokens=N, cost=DOLLARS, wall=TIME, calls:TOOL=N or on_breach=ask|fail"
                f", not {each!r}"
            )
    return Budget(**found, calls_max=calls)


def asked_budget(amounts: Sequence[str]) -> BudgetCreate | None:
    """Return the same as it is asked of a server."""
    found = given(amounts)
    if found is None:
        return None
    most = found.cost_micros_max
    return BudgetCreate(
        tokens_max=found.tokens_max,
        cost_max=None if most is None else money(most),
        wall_ms_max=found.wall_ms_max,
        calls_max=found.calls_max or None,
        on_breach=found.on_breach,
    )


budget_option = click.option(
    "--budget",
    "budget_amounts",
    multiple=True,
    metavar="KEY=AMOUNT",
    help="What the run may spend: tokens=N, cost=DOLLARS, wall=TIME, calls:TOOL=N.",
)
