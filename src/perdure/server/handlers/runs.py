"""Runs: asked for, followed, answered, ended, and gone on with."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from msgspec import UNSET

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import INVALID, Rejected
from perdure.api.limits import EVENTS_PAGE_ITEMS_MAX, RUNS_PAGE_ITEMS
from perdure.api.pages import cursor, page, page_items, place_of
from perdure.api.projection import row_statuses, run_status
from perdure.api.summary import summarise
from perdure.core.errors import NotFound, Refused
from perdure.core.runs import TERMINAL, RunRow
from perdure.ports import entries
from perdure.server.desk import Answer, Desk, Request


async def send_message(desk: Desk, request: Request) -> Answer:
    """Take a message: it is durable when this answers, and nobody waits for its run."""
    body: shapes.MessageCreate = request.body
    entry = await desk.agent(decode_id(request.path["id"]), archived=False)
    if body.context is not None:
        raise Rejected(422, {"context": [f"{INVALID}: not supported yet; put it into the content"]})
    if body.gard_id is not None:
        gard = await desk.catalog.get(entries.Gard, body.gard_id)
        if gard is None or gard.status == "destroyed":
            raise Rejected(404, "gard not found")
    run = await desk.send(
        entry,
        body.content,
        key=body.conversation_key,
        mode=body.mode,
        idempotency_key=request.key,
        gard=body.gard_id,
    )
    return Answer(shapes.Accepted(run_id=await desk.numbers.run(run)), 202)


async def list_runs(desk: Desk, request: Request) -> Answer:
    """Runs, the newest first, of one agent or status if asked so."""
    query: shapes.RunQuery = request.query
    limit = page_items(query.limit, RUNS_PAGE_ITEMS) or RUNS_PAGE_ITEMS
    before = None if query.after is UNSET else place_of(query.after, tuple[int, str])
    agent = None if query.agent_id is UNSET else str(query.agent_id)
    rows: list[RunRow] = []
    for status in (None,) if query.status is UNSET else row_statuses(query.status):
        rows += await desk.runs.rows(agent=agent, status=status, before=before, limit=limit + 1)
    rows.sort(key=lambda row: (row.created_at, row.id), reverse=True)
    if query.status is not UNSET:
        rows = [row for row in rows if run_status(row) == query.status]
    more, rows = len(rows) > limit, rows[:limit]
    following = cursor(rows[-1].created_at, rows[-1].id) if more else None
    asked = query.after is not UNSET
    return Answer(page(await desk.show_all(rows), following, asked=asked))


async def get_run(desk: Desk, request: Request) -> Answer:
    """One run."""
    return Answer(shapes.Data(await desk.show(await _row(desk, request))))


async def list_events(desk: Desk, request: Request) -> Answer:
    """A run's timeline, or the part after a sequence."""
    query: shapes.EventQuery = request.query
    telling = await desk.told(await _row(desk, request))
    found = [event for event in telling.events if event.sequence > query.after]
    if query.limit is not UNSET:
        found = found[: min(query.limit, EVENTS_PAGE_ITEMS_MAX)]
    return Answer(shapes.Data(found))


async def get_summary(desk: Desk, request: Request) -> Answer:
    """What happened in a run, in a few kilobytes, and what looks wrong."""
    row = await _row(desk, request)
    telling, shown = await desk.told(row), await desk.show(row)
    entry = await desk.agent(shown.agent_id)
    agent = shapes.SummaryAgent(
        id=entry.id, name=entry.name, model=entry.model, max_steps=entry.max_steps
    )
    told = summarise(telling.events, run_id=shown.id, agent=agent, status=shown.status)
    return Answer(shapes.Data(told))


async def wait_for_run(desk: Desk, request: Request) -> Answer:
    """The run, once it has ended or needs somebody, or when the time is over."""
    row = await _row(desk, request)
    with desk.following(row.session) as news, suppress(TimeoutError):
        async with asyncio.timeout(request.query.timeout):
            while not _settled(row := await desk.runs.row(row.id)):
                await news.wait()
                news.clear()
    return Answer(shapes.Data(await desk.show(row)))


async def reply_to_run(desk: Desk, request: Request) -> Answer:
    """Answer a run's question."""
    row = await _row(desk, request)
    body: shapes.ReplyCreate = request.body
    try:
        await desk.runs.reply(row.id, body.answer, call=body.call)
    except Refused:
        raise Rejected(409, "run is not waiting for input") from None
    return Answer(shapes.Accepted(run_id=decode_id(request.path["id"])), 202)


async def resolve_call(desk: Desk, request: Request) -> Answer:
    """Say what became of a call whose outcome nobody here can know."""
    row = await _row(desk, request)
    body: shapes.ResolveCreate = request.body
    try:
        await desk.runs.resolve(
            row.id, body.call, body.resolution, attempt=body.attempt, content=body.content
        )
    except Refused as refused:
        raise Rejected(409, str(refused)) from None
    return Answer(shapes.Accepted(run_id=decode_id(request.path["id"])), 202)


async def cancel_run(desk: Desk, request: Request) -> Answer:
    """End a run, wherever it stands."""
    row = await _row(desk, request)
    try:
        await desk.runs.cancel(row.id, request.body.reason or "cancelled on request")
    except Refused:
        raise Rejected(409, "run has ended already") from None
    return Answer(shapes.Accepted(run_id=decode_id(request.path["id"])), 202)


async def retry_run(desk: Desk, request: Request) -> Answer:
    """Go on with a run that failed or was cancelled; a completed one is asked for again."""
    row = await _row(desk, request)
    if row.status in ("queued", "running", "waiting"):
        raise Rejected(409, "run is still in progress")
    entry = await desk.agent(int(row.session.agent), archived=False)
    if row.status in ("failed", "cancelled") and row.started_seq is not None:
        run = (await desk.runs.retry(row.id)).id
    else:
        content = (await desk.told(row)).timeline.input
        if content is None:
            raise Rejected(422, "run has no user_message to retry")
        run = await desk.send(entry, content, key=row.session.key, idempotency_key=request.key)
    return Answer(shapes.Accepted(run_id=await desk.numbers.run(run)), 202)


async def _row(desk: Desk, request: Request) -> RunRow:
    try:
        return await desk.row(decode_id(request.path["id"]))
    except NotFound:
        raise Rejected(404, "not found") from None


def _settled(row: RunRow) -> bool:
    """Say whether a run has ended or needs a person."""
    asked = any(wait["what"] in ("answer", "decision") for wait in row.waiting_for)
    return asked or row.status in TERMINAL or row.status == "merged"
