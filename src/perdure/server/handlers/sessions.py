"""Sessions, which clients of Norns know as conversations: what was said, run by run."""

from __future__ import annotations

from msgspec import UNSET
from msgspec.structs import replace

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.api.limits import SESSIONS_PAGE_ITEMS
from perdure.api.pages import cursor, page, page_items
from perdure.api.projection import conversation_object, run_status, session_object, session_whole
from perdure.core.errors import Refused
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers.lists import asked, place


async def list_conversations(desk: Desk, request: Request) -> Answer:
    """An agent's conversations, the latest first."""
    entry = await desk.agent(decode_id(request.path["id"]))
    query: shapes.PageQuery = request.query
    limit = page_items(query.limit, SESSIONS_PAGE_ITEMS) if asked(query) else None
    before = place(query, tuple[int, str])
    rows, more = await desk.latest_runs(limit, agent=str(entry.id), before=before)
    shown = [await _conversation(desk, row) for row in rows]
    following = cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Answer(page(shown, following, asked=asked(query)))


async def get_conversation(desk: Desk, request: Request) -> Answer:
    """One conversation, by its key."""
    entry = await desk.agent(decode_id(request.path["id"]))
    session = await desk.session(entry.id, request.path["key"])
    rows = await desk.runs.rows(agent=session.agent, key=session.key, limit=1)
    if not rows:
        raise Rejected(404, "not found")
    return Answer(shapes.Data(await _conversation(desk, rows[0])))


async def delete_conversation(desk: Desk, request: Request) -> Answer:
    """Begin a key anew: what was said stays in the log, and nobody is shown it by this key."""
    entry = await desk.agent(decode_id(request.path["id"]))
    key = request.path["key"]
    session = await desk.session(entry.id, key)
    if not await desk.runs.rows(agent=session.agent, key=session.key, limit=1):
        raise Rejected(404, "not found")
    await desk.end(await desk.active(session.agent, session.key), "its conversation was deleted")
    await desk.begin_anew(entry.id, key)
    now = desk.clock.now_ms()
    await desk.note(session, lambda note: replace(note, put_away_at=now))
    return Answer(shapes.Status(status="deleted"))


async def list_sessions(desk: Desk, request: Request) -> Answer:
    """Sessions of all agents, the latest first; those of archived agents are left out."""
    query: shapes.SessionQuery = request.query
    limit = page_items(query.limit, SESSIONS_PAGE_ITEMS) or SESSIONS_PAGE_ITEMS
    before = place(query, tuple[int, str])
    rows, more = await desk.latest_runs(
        limit, before=before, archived=query.archived, subagents=query.subagents
    )
    shown = [await _session(desk, row) for row in rows]
    following = cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Answer(page(shown, following, asked=query.after is not UNSET))


async def get_session(desk: Desk, request: Request) -> Answer:
    """One session with its messages and runs."""
    session = await _named(desk, request)
    rows = await _all_rows(desk, session)
    latest = rows[-1]
    numbers = await desk.numbers.runs([row.id for row in rows])
    runs = [
        shapes.RunGlimpse(id=number, status=run_status(await desk.joined(row)))
        for row, number in zip(rows, numbers, strict=True)
    ]
    whole = session_whole(
        await desk.session_facts(session, latest, rows[0]),
        await desk.transcript(session),
        await desk.show(latest),
        runs,
        {row.id: run.id for row, run in zip(rows, runs, strict=True)},
        _standing(latest),
    )
    return Answer(shapes.Data(whole))


async def update_session(desk: Desk, request: Request) -> Answer:
    """Give a session a title, or take it away."""
    session = await _named(desk, request)
    body: shapes.SessionUpdate = request.body
    if body.title is not UNSET:
        title = (body.title or "").strip() or None
        await desk.note(session, lambda note: replace(note, title=title))
    return Answer(shapes.Data(await _session(desk, await _latest(desk, session))))


async def archive_session(desk: Desk, request: Request) -> Answer:
    """Put a session away."""
    session = await _named(desk, request)
    active = await desk.active(session.agent, session.key)
    if active and not request.query.force:
        raise Rejected(409, "session has an active run — pass force=true to archive anyway")
    await desk.end(active, "its session was archived")
    now = desk.clock.now_ms()
    await desk.note(session, lambda note: replace(note, put_away_at=now))
    return Answer(None, 204)


async def restore_session(desk: Desk, request: Request) -> Answer:
    """Take a session back."""
    session = await _named(desk, request)
    await desk.note(session, lambda note: replace(note, put_away_at=None))
    return Answer(shapes.Data(await _session(desk, await _latest(desk, session))))


async def release_session(desk: Desk, request: Request) -> Answer:
    """Let a session go on that is in quarantine."""
    session = await _named(desk, request)
    await desk.agent(int(session.agent))
    try:
        await desk.runs.release(session.agent, session.key)
    except Refused:
        raise Rejected(409, "session is not in quarantine") from None
    return Answer(shapes.Data(await _session(desk, await _latest(desk, session))))


async def _named(desk: Desk, request: Request) -> SessionId:
    text = request.path["id"]
    if not (text.isascii() and text.isdigit()):
        raise Rejected(404, "not found")
    session = await desk.numbers.session_named(decode_id(text))
    if session is None:
        raise Rejected(404, "not found")
    return session


async def _latest(desk: Desk, session: SessionId) -> RunRow:
    rows = await desk.runs.rows(agent=session.agent, key=session.key, limit=1)
    if not rows:
        raise Rejected(404, "not found")
    return rows[0]


async def _all_rows(desk: Desk, session: SessionId) -> list[RunRow]:
    """Return all runs of a session, oldest first. Raises `Rejected` (404) if there are none."""
    found = await desk.rows(agent=session.agent, key=session.key)
    if not found:
        raise Rejected(404, "not found")
    return found[::-1]


async def _conversation(desk: Desk, latest: RunRow) -> shapes.Conversation:
    facts = await desk.session_facts(latest.session, latest)
    return conversation_object(facts, await desk.outline(latest))


async def _session(desk: Desk, latest: RunRow) -> shapes.Session:
    facts = await desk.session_facts(latest.session, latest)
    run = await desk.show(latest)
    return session_object(facts, await desk.outline(latest), run, _standing(latest))


def _standing(latest: RunRow) -> str:
    """Return how a session stands: what its run does, or that it is idle."""
    if latest.status in ("queued", "running"):
        return "running"
    return "waiting" if latest.status == "waiting" else "idle"
