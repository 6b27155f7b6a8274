"""`perdure runs`: look at runs, and tell them something; in a store, or on a server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import click
import msgspec

from perdure.bootstrap import Node, RecordedEvent, Run, Runtime, prices_of, recorded
from perdure.cli.access import Access, place_options
from perdure.cli.common import command_body, json_option, store_option
from perdure.cli.events import event_fields, event_line
from perdure.cli.output import Output, plain, short, timestamp
from perdure.cli.progress import describe_waiting, follow, plain_lines, row_fields
from perdure.cli.purse import described, shown
from perdure.cli.served import served
from perdure.cli.source import (
    PAGE_ROWS,
    TENANT,
    agents_of,
    meta_of,
    policy_of,
    reading,
    row_of,
    whole_log,
)
from perdure.core import events as e
from perdure.core.budget import Purse
from perdure.core.errors import InvalidInput
from perdure.core.export import export_lines
from perdure.core.runs import TERMINAL, RunRow
from perdure.core.spending import spend
from perdure.ports.session_store import RunQuery

TAIL_INTERVAL_S = 0.2
STATUSES = click.Choice(
    ["queued", "running", "waiting", "completed", "failed", "cancelled", "merged"]
)


@click.group()
def runs() -> None:
    """Look at runs, and tell them something.

    They are those of a store or, with --url or PERDURE_URL, those of a server.
    """


async def _events(reader: Any, row: RunRow, after: int = 0) -> AsyncIterator[RecordedEvent]:
    """Yield the events of a run: from its message to its end."""
    mine = after > 0
    while records := await reader.read(row.session, after, PAGE_ROWS):
        for record in records:
            after = record.seq
            item = recorded(record.seq, record.body)
            named = {getattr(item.event, "message", None), getattr(item.event, "run", None)}
            if isinstance(item.event, e.RunStarted):
                mine = item.event.run == row.id
            if mine or row.id in named:
                yield item
            if isinstance(item.event, ENDINGS) and item.event.run == row.id:
                return


async def purse_now(reader: Any, row: RunRow) -> Purse | None:
    """Return what a run has of its budget, as its log says it."""
    purse: Purse | None = None
    async for item in _events(reader, row):
        purse = spend(purse, item.event)
    return purse


ENDINGS = (e.RunCompleted, e.RunFailed, e.RunCancelled, e.RunWithdrawn)


@runs.command("list", epilog="Example: perdure runs list --status waiting --url http://server:4000")
@click.option("--status", type=STATUSES, help="Only runs that stand so.")
@click.option("--agent", help="Only runs of this agent.")
@click.option("--session", help="Only runs of this session.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="At most so many.",
)
@json_option
@command_body
@place_options
async def list_runs(
    status: Any,
    agent: str | None,
    session: str | None,
    limit: int,
    store: str,
    server: Access | None,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    output = Output(as_json)
    if server is not None:
        async with served(server, output) as there:
            await there.list_runs(status, agent, session, limit)
        return
    async with reading(store) as reader:
        query = RunQuery(tenant=TENANT, agent=agent, key=session, status=status, limit=limit)
        rows = await reader.list(query)
        if not rows:
            output.say("There are no such runs.")
        for row in rows:
            when = (timestamp(row.created_at) or "")[:19].replace("T", " ")
            own = row.session.key == row.id
            name = plain(row.session.agent) + ("" if own else f"/{short(row.session.key, 30)}")
            text = f"{row.id}  {row.status:<9}  {when}  {name}"
            output.record(row_fields(row), text)


@runs.command(epilog="Example: perdure runs show 0199")
@click.argument("run_id")
@json_option
@command_body
@place_options
async def show(run_id: str, store: str, server: Access | None, as_json: bool) -> None:
    """Show one run: where it stands, what it waits for, and its answer."""
    output = Output(as_json)
    if server is not None:
        async with served(server, output) as there:
            await there.show(there.run(run_id))
        return
    async with reading(store) as reader:
        row = await row_of(reader, run_id)
        await whole_log(reader, row.session)
        fields, answer, steps, purse = row_fields(row), None, 0, None
        async for item in _events(reader, row):
            purse = spend(purse, item.event)
            if isinstance(item.event, e.ModelReplied):
                steps += 1
                answer = item.event.content if item.seq == row.answer else answer
        spent = None if purse is None else msgspec.to_builtins(purse)
        fields.update(steps=max(steps, row.steps), output=answer, purse=spent)
        text = [
            f"{name:<13} {short(value, 200)}"
            for name, value in fields.items()
            if value not in (None, [], "") and name not in ("output", "purse")
        ]
        if (has := shown(purse)) is not None:
            text.append(described(has))
        if row.waiting_for:
            text.append(describe_waiting(row.id, row.waiting_for))
        if answer is not None:
            text.append("\n" + plain_lines(answer if isinstance(answer, str) else short(answer)))
        output.record(fields, "\n".join(text))


@runs.command(epilog="Example: perdure runs events 0199 --json")
@click.argument("run_id")
@click.option("--after", type=int, default=0, help="Only those after this position.")
@json_option
@command_body
@place_options
async def events(run_id: str, after: int, store: str, server: Access | None, as_json: bool) -> None:
    """Print the events of a run."""
    output = Output(as_json)
    if server is not None:
        async with served(server, output) as there:
            await there.events(there.run(run_id), after)
        return
    async with reading(store) as reader:
        row = await row_of(reader, run_id)
        async for item in _events(reader, row):
            if item.seq > after:
                output.record(event_fields(item), event_line(item))


@runs.command(epilog="Example: perdure runs tail 0199")
@click.argument("run_id")
@json_option
@command_body
@place_options
async def tail(run_id: str, store: str, server: Access | None, as_json: bool) -> int:
    """Follow a run that another process is running, to its end."""
    output = Output(as_json)
    if server is not None:
        async with served(server, output) as there:
            return await there.follow(there.run(run_id))
    async with reading(store) as reader:
        row = await row_of(reader, run_id)
        after = 0
        while True:
            await whole_log(reader, row.session)
            async for item in _events(reader, row, after):
                after = item.seq
                output.record(event_fields(item), event_line(item))
            row = await row_of(reader, row.id)
            if row.status in TERMINAL or row.status == "merged":
                return {"failed": 4, "cancelled": 5}.get(row.status, 0)
            await asyncio.sleep(TAIL_INTERVAL_S)


Telling = Callable[[Node, RunRow], Awaitable[Run | None]]


async def tell_run(
    store: str,
    run_id: str,
    agent: str | None,
    output: Output,
    telling: Telling,
    recover: bool = True,
    elsewhere: bool = False,
) -> int:
    """Run the agent's session here, tell it something, and follow the run if there is one.

    It is `elsewhere` if the run is of a session of its own.
    """
    async with reading(store) as reader:
        row = await row_of(reader, run_id)
        agents = await agents_of(reader, [row], agent)
        await whole_log(reader, row.session)
        gate = await policy_of(reader, [row])
        seen = (await reader.load(row.session)).version
    if row.session.agent not in agents:
        raise InvalidInput(
            f"the agent {row.session.agent!r} is not at hand; name it: --agent FILE.py:NAME"
        )
    async with Runtime(
        store, agents=agents.values(), recover=recover, policy=gate, prices=prices_of(os.environ)
    ) as node:
        handle = await telling(node, row)
        after = 0 if elsewhere else seen
        return 0 if handle is None else await follow(node, handle, output, after=after)


agent_option = click.option("--agent", help="FILE.py:NAME, if the agent's file has moved.")


@runs.command(epilog="Example: perdure runs cancel 0199 --reason 'wrong order'")
@click.argument("run_id")
@click.option("--reason", default="cancelled on request", help="Why; it is recorded.")
@agent_option
@json_option
@command_body
@place_options
async def cancel(
    run_id: str, reason: str, agent: str | None, store: str, server: Access | None, as_json: bool
) -> int:
    """End a run; its history stays well formed."""
    output = Output(as_json)
    if server is not None:
        async with served(server, output) as there:
            run = there.run(run_id)
            await run.cancel(reason)
            output.record({"run_id": run.id, "done": "cancel"}, f"run {run.id} is cancelled")
            return 0

    async def telling(node: Node, row: RunRow) -> None:
        await node.cancel(row.id, reason)
        output.record({"run": row.id, "status": "cancelled"}, f"run {row.id} is cancelled")

    return await tell_run(store, run_id, agent, output, telling, recover=False)


@runs.command(epilog="Example: perdure runs reply 0199 'Yes, go ahead'")
@click.argument("run_id")
@click.argument("answer")
@click.option("--call", help="Which question, if several are open.")
@click.option("--by", help="Who answers.")
@click.option("--no-follow", is_flag=True, help="Do not wait for the end of the run.")
@agent_option
@json_option
@command_body
@place_options
async def reply(
    run_id: str,
    answer: str,
    call: str | None,
    by: str | None,
    no_follow: bool,
    agent: str | None,
    store: str,
    server: Access | None,
    as_json: bool,
) -> int:
    """Answer a run's question and go on with it."""
    if server is not None:
        if by is not None:
            raise InvalidInput("--by is for a store; a server goes by the key")
        async with served(server, Output(as_json)) as there:
            run = there.run(run_id)
            return await there.tell(run, lambda: run.reply(answer, call=call), not no_follow)

    async def telling(node: Node, row: RunRow) -> Run | None:
        await node.reply(row.id, answer, call=call, by=by)
        return None if no_follow else await node.run(row.id)

    return await tell_run(store, run_id, agent, Output(as_json), telling)


@runs.command(epilog="Example: perdure runs resolve 0199 1.2.t0 happened")
@click.argument("run_id")
@click.argument("call")
@click.argument("resolution", type=click.Choice(["happened", "did-not-happen", "tell-model"]))
@click.option("--content", help="The result, if it happened.")
@click.option(
    "--attempt", type=int, help="The attempt you looked into; of a later one say nothing."
)
@click.option("--no-follow", is_flag=True, help="Do not wait for the end of the run.")
@agent_option
@json_option
@command_body
@place_options
async def resolve(
    run_id: str,
    call: str,
    resolution: Any,
    content: str | None,
    attempt: int | None,
    no_follow: bool,
    agent: str | None,
    store: str,
    server: Access | None,
    as_json: bool,
) -> int:
    """Say what became of a call whose outcome is unknown, and go on."""
    verdict = resolution.replace("-", "_")
    if server is not None:
        async with served(server, Output(as_json)) as there:
            run = there.run(run_id)
            return await there.tell(
                run,
                lambda: run.resolve(call, verdict, attempt=attempt, content=content),
                not no_follow,
            )

    async def telling(node: Node, row: RunRow) -> Run | None:
        await node.resolve(
            row.id, call, verdict, attempt=attempt, content=content, by="command line"
        )
        return None if no_follow else await node.run(row.id)

    return await tell_run(store, run_id, agent, Output(as_json), telling)


@runs.command(epilog="Example: perdure runs retry 0199")
@click.argument("run_id")
@agent_option
@json_option
@command_body
@place_options
async def retry(
    run_id: str, agent: str | None, store: str, server: Access | None, as_json: bool
) -> int:
    """Go on with a failed or cancelled run where it stopped, as a new run."""
    if server is not None:
        async with served(server, Output(as_json)) as there:
            return await there.follow(await there.run(run_id).retry())

    async def telling(node: Node, row: RunRow) -> Run:
        return await node.retry(row.id)

    return await tell_run(store, run_id, agent, Output(as_json), telling)


@runs.command(epilog="Example: perdure runs fork 0199 --step 2 --message 'Ask her instead'")
@click.argument("run_id")
@click.option(
    "--step", type=click.IntRange(0), required=True, help="After which step; 0: the beginning."
)
@click.option("--message", help="What to say next; else the model goes on by itself.")
@agent_option
@json_option
@command_body
@place_options
async def fork(
    run_id: str,
    step: int,
    message: str | None,
    agent: str | None,
    store: str,
    server: Access | None,
    as_json: bool,
) -> int:
    """Go on from the middle of a run, as a new run in a session of its own."""
    if server is not None:
        async with served(server, Output(as_json)) as there:
            return await there.follow(await there.run(run_id).fork(step, message))
    async with reading(store) as reader:
        meta = await meta_of(reader, await row_of(reader, run_id))

    async def telling(node: Node, row: RunRow) -> Run:
        return await node.fork(row.id, step, message, meta=meta)

    return await tell_run(store, run_id, agent, Output(as_json), telling, elsewhere=True)


@runs.command(epilog="Example: perdure runs export 0199 --to run.jsonl && perdure verify run.jsonl")
@click.argument("run_id")
@click.option("--to", type=click.Path(dir_okay=False, writable=True), help="A file; else stdout.")
@store_option
@command_body
async def export(run_id: str, to: str | None, store: str) -> None:
    """Write the whole log of the run's session in a form that anyone can verify."""
    async with reading(store) as reader:
        row = await row_of(reader, run_id)
        records = await whole_log(reader, row.session)
    lines = b"".join(line + b"\n" for line in export_lines(row.session, records))
    if to is None:
        sys.stdout.buffer.write(lines)
    else:
        with click.open_file(to, "wb") as file:
            file.write(lines)
        click.echo(f"{len(records)} events of {plain(row.session)} written to {to}", err=True)
