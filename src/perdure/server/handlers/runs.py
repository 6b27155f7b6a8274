"""Runs: asked for, followed, answered, ended, and gone on with."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Any

from msgspec import UNSET, UnsetType, convert

from perdure.api import shapes
from perdure.api.budgets import budget_of
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.api.limits import EVENTS_PAGE_ITEMS_MAX, PAGE_ITEMS, RUNS_PAGE_ITEMS
from perdure.api.pages import cursor, page, page_items
from perdure.api.projection import is_asked, row_statuses
from perdure.api.summary import summarise
from perdure.core.errors import NotFound, Refused
from perdure.core.messages import INHERITED_CONTEXT, AssistantMessage, UserMessage
from perdure.core.prices import micros_of
from perdure.core.runs import TERMINAL, RunRow
from perdure.ports import entries
from perdure.server.desk import GOING_ON, Answer, Desk, Request
from perdure.server.forks import fork
from perdure.server.handlers.lists import asked, place
from perdure.server.sending import make_room, send
from perdure.server.streams import begun, listed
from perdure.server.telling import Telling


async def send_message(desk: Desk, request: Request) -> Answer:
    """Take a message: it is durable when this answers, and nobody waits for its run."""
    body: shapes.MessageCreate = request.body
    entry = await desk.agent(decode_id(request.path["id"]), archived=False)
    if body.gard_id is not None:
        gard = await desk.catalog.get(entries.Gard, body.gard_id)
        if gard is None or gard.status == "destroyed":
            raise Rejected(404, "gard not found")
    run = await send(
        desk,
        entry,
        body.content,
        key=body.conversation_key,
        mode=body.mode,
        idempotency_key=request.key,
        gard=body.gard_id,
        context=_context(body.context),
        budget=None if body.budget is None else budget_of(body.budget),
    )
    return Answer(desk.accepted(await desk.numbers.run(run)), 202)


def _context(context: shapes.MessageContext | None) -> list[UserMessage | AssistantMessage]:
    """Return what the model is shown of a message's context: its messages, then its data."""
    if context is None:
        return []
    shown: list[UserMessage | AssistantMessage] = [
        (UserMessage if one.role == "user" else AssistantMessage)(one.content)
        for one in context.messages
    ]
    if context.data:
        shown.append(UserMessage(context.data, kind=INHERITED_CONTEXT))
    return shown


_FOR_PEOPLE = frozenset({"answer", "decision", "approval", "budget"})


async def list_runs(desk: Desk, request: Request) -> Answer:
    """Runs, the newest first, of one agent or status if asked so."""
    query: shapes.RunQuery = request.query
    limit = page_items(query.limit, RUNS_PAGE_ITEMS) or RUNS_PAGE_ITEMS
    status = query.status
    rows = await desk.rows(
        limit + 1,
        agent=None if query.agent_id is UNSET else str(query.agent_id),
        statuses=(None,) if isinstance(status, UnsetType) else row_statuses(status),
        before=place(query, tuple[int, str]),
        wanted=lambda row: isinstance(status, UnsetType) or is_asked(row, status),
    )
    return Answer(await _run_page(desk, rows, limit, asked=query.after is not UNSET))


async def list_agent_runs(desk: Desk, request: Request) -> Answer:
    """An agent's runs, the newest first."""
    entry = await desk.agent(decode_id(request.path["id"]))
    wants_page = asked(request.query)
    limit = page_items(request.query.limit, PAGE_ITEMS) if wants_page else None
    rows = await desk.rows(
        None if limit is None else limit + 1,
        agent=str(entry.id),
        before=place(request.query, tuple[int, str]),
    )
    return Answer(await _run_page(desk, rows, limit, asked=wants_page))


async def _run_page(
    desk: Desk, rows: list[RunRow], limit: int | None, *, asked: bool
) -> shapes.Page[shapes.Run]:
    """Return a page of runs; of their rows, one more than `limit` says that there is another."""
    shown = rows[:limit]
    more = len(shown) < len(rows)
    following = cursor(shown[-1].created_at, shown[-1].id) if more else None
    return page(await desk.show_all(shown), following, asked=asked)


async def get_run(desk: Desk, request: Request) -> Answer:
    """One run."""
    return Answer(shapes.Data(await desk.show(await _row(desk, request))))


async def list_events(desk: Desk, request: Request) -> Answer:
    """A run's timeline, or the part after a sequence."""
    query: shapes.EventQuery = request.query
    events = Telling(desk, await _row(desk, request)).read()
    if isinstance(query.limit, UnsetType):
        return Answer(await begun(listed(events, query.after)))
    limit = min(query.limit, EVENTS_PAGE_ITEMS_MAX)
    found: list[shapes.Event] = []
    async with aclosing(events):
        async for event in events:
            if event.sequence > query.after:
                found.append(event)
            if len(found) > limit:
                break
    shown = found[:limit]
    following = str(shown[-1].sequence) if len(shown) < len(found) else None
    return Answer(page(shown, following, asked=True))


async def get_summary(desk: Desk, request: Request) -> Answer:
    """What happened in a run, in a few kilobytes, and what looks wrong."""
    row = await _row(desk, request)
    shown, events = await desk.show(row), [event async for event in Telling(desk, row).read()]
    entry = await desk.agent(shown.agent_id)
    agent = shapes.SummaryAgent(
        id=entry.id, name=entry.name, model=entry.model, max_steps=entry.max_steps
    )
    told = summarise(events, run_id=shown.id, agent=agent, status=shown.status)
    return Answer(shapes.Data(told))


async def wait_for_run(desk: Desk, request: Request) -> Answer:
    """The run, once it has ended or needs somebody, or when the time is over."""
    row = await _row(desk, request)
    with desk.following(row.session) as news, suppress(TimeoutError):
        async with asyncio.timeout(request.query.timeout):
            while not _settled(joined := await desk.joined(row)) and not desk.leaving.begun:
                if joined.status in GOING_ON and await desk.runs.set_aside(joined.session):
                    break
                await news.wait()
                news.clear()
                row = await desk.runs.row(row.id)
    return Answer(shapes.Data(await desk.show(await desk.runs.row(row.id))))


async def reply_to_run(desk: Desk, request: Request) -> Answer:
    """Answer a run's question."""
    row = await _row(desk, request)
    body: shapes.ReplyCreate = request.body
    try:
        await desk.runs.reply(row.id, body.answer, call=body.call)
    except Refused:
        raise Rejected(409, "run is not waiting for input") from None
    return Answer(desk.accepted(decode_id(request.path["id"])), 202)


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
    return Answer(desk.accepted(decode_id(request.path["id"])), 202)


async def decide_approval(desk: Desk, request: Request) -> Answer:
    """Take a decision on a call that waits for approval, from whoever holds the key."""
    row = await _row(desk, request)
    body: shapes.DecisionCreate = request.body
    principal = request.by
    assert principal is not None, "no decision is taken without a key"
    try:
        await desk.runs.decide(
            row.id,
            body.decision,
            call=body.call,
            digest=body.digest,
            arguments=body.arguments,
            roles=body.roles,
            reason=body.reason or "",
            by=principal.name,
            held=principal.roles,
        )
    except Refused as refused:
        raise Rejected(409, str(refused)) from None
    return Answer(desk.accepted(decode_id(request.path["id"])), 202)


async def raise_budget(desk: Desk, request: Request) -> Answer:
    """Add to what a run may spend, or give no more, in the name of whoever holds the key."""
    row = await _row(desk, request)
    body: shapes.RaiseCreate = request.body
    principal = request.by
    assert principal is not None, "no budget is raised without a key"
    told: Any = {
        "call": body.call,
        "reason": body.reason or "",
        "by": principal.name,
        "held": principal.roles,
    }
    try:
        if body.deny:
            await desk.runs.deny_budget(row.id, **told)
        else:
            await desk.runs.raise_budget(
                row.id,
                tokens=body.tokens,
                cost_micros=micros_of(body.cost),
                wall_ms=body.wall_ms,
                calls=body.calls,
                **told,
            )
    except Refused as refused:
        raise Rejected(409, str(refused)) from None
    return Answer(desk.accepted(decode_id(request.path["id"])), 202)


async def list_waits(desk: Desk, request: Request) -> Answer:
    """What waits for people, the newest run first."""
    query: shapes.WaitsQuery = request.query
    limit = page_items(query.limit, RUNS_PAGE_ITEMS) or RUNS_PAGE_ITEMS
    kinds = _FOR_PEOPLE if isinstance(query.what, UnsetType) else frozenset({query.what})
    rows = await desk.rows(
        limit + 1,
        agent=None if query.agent_id is UNSET else str(query.agent_id),
        statuses=("waiting", "running"),
        before=place(query, tuple[int, str]),
        wanted=lambda row: any(wait["what"] in kinds for wait in row.waiting_for),
    )
    shown = rows[:limit]
    following = cursor(shown[-1].created_at, shown[-1].id) if len(shown) < len(rows) else None
    found = [
        shapes.Waiting(
            run_id=run.id, agent_id=run.agent_id, conversation_id=run.conversation_id, wait=wait
        )
        for run in await desk.show_all(shown)
        for wait in run.waits
        if wait.what in kinds
    ]
    return Answer(page(found, following, asked=query.after is not UNSET))


async def cancel_run(desk: Desk, request: Request) -> Answer:
    """End a run, wherever it stands."""
    row = await _row(desk, request)
    try:
        await desk.runs.cancel(row.id, request.body.reason or "cancelled on request")
    except Refused:
        raise Rejected(409, "run has already ended") from None
    return Answer(desk.accepted(decode_id(request.path["id"])), 202)


async def retry_run(desk: Desk, request: Request) -> Answer:
    """Go on with a run that failed or was cancelled; a completed one's message is sent again.

    It begins a conversation of its own then: the one that it was in has its answer already. A fork
    is forked anew, from its beginning: its message alone would be about nothing.
    """
    row = await _row(desk, request)
    if row.status in ("queued", "running", "waiting"):
        raise Rejected(409, "run is still in progress")
    entry = await desk.agent(int(row.session.agent), archived=False)
    told = await desk.told(row, brief=True)
    gard = await desk.gard(told.meta.get("gard"))
    if row.status in ("failed", "cancelled") and row.started_seq is not None:
        await make_room(desk)
        run = desk.clock.fresh_id()
        await desk.webhooks.expect(desk.tenant, run)
        await desk.runs.retry(row.id, as_run=run)
    elif "fork" in told.meta:
        run = await fork(desk, row, 0)
    else:
        if told.timeline.input is None:
            raise Rejected(422, "run has no user_message to retry")
        context = convert(told.timeline.context or {}, shapes.MessageContext)
        run = await send(desk, entry, told.timeline.input, gard=gard, context=_context(context))
    return Answer(desk.accepted(await desk.numbers.run(run)), 202)


async def fork_run(desk: Desk, request: Request) -> Answer:
    """Go on from a run after one of its steps. What it did is in the history, and stays done."""
    row = await desk.joined(await _row(desk, request))
    body: shapes.ForkCreate = request.body
    run = await desk.runs.row(
        await fork(
            desk,
            row,
            body.step,
            body.message,
            model=body.model,
            system_prompt=body.system_prompt,
            idempotency_key=request.key,
        )
    )
    shown = await desk.show(run)
    answer = shapes.Forked(
        run_id=shown.id, agent_id=shown.agent_id, data=shown, durability=desk.durability
    )
    return Answer(answer, 201)


async def _row(desk: Desk, request: Request) -> RunRow:
    try:
        return await desk.row(decode_id(request.path["id"]))
    except NotFound:
        raise Rejected(404, "not found") from None


def _settled(row: RunRow) -> bool:
    """Say whether a run has ended or needs a person."""
    asked = any(wait["what"] in _FOR_PEOPLE for wait in row.waiting_for)
    return asked or row.status in TERMINAL
