"""Every query, for the connection that only reads and for the one that has just written."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import apsw
import msgspec

from perdure.adapters.stores.sqlite.payloads import ZIPPED, restore, unpack
from perdure.core.codec import Record
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import InboxEntry, Loaded, RunQuery, Settled

FIND = "SELECT id FROM sessions WHERE tenant = ? AND agent = ? AND key = ?"
SESSION = """
SELECT version, head, claims, quarantine,
    (SELECT incarnation FROM identity WHERE trusted < incarnation)
FROM sessions WHERE id = ?
"""
SNAPSHOT = "SELECT version, body FROM snapshots WHERE session = ?"
TAIL = "SELECT seq, body, hash FROM events WHERE session = ? AND seq > ? ORDER BY seq LIMIT ?"
INBOX = """
SELECT id, command, accepted_at FROM inbox
WHERE session = ? AND command IS NOT NULL ORDER BY number
"""
RUNS = "SELECT row, created_at FROM runs"
SETTLED = (
    "SELECT coalesce(refusal, x'') FROM inbox WHERE session = ? AND id = ? AND command IS NULL"
)
UNREAD = """
SELECT tenant, agent, key FROM sessions WHERE owner = ? AND unconsumed > known LIMIT ?
"""
BLOB = "SELECT body FROM blobs WHERE address = ?"

UNOWNED = """
FROM sessions WHERE owner IS NULL AND quarantine IS NULL
AND (:reads IS NULL OR generation <= :reads)
"""
UNOWNED_DUE = f"""
SELECT wake_at, id, tenant, agent, key {UNOWNED} AND agent = :agent AND wake_at <= :now
ORDER BY wake_at, id LIMIT :limit
"""
UNOWNED_NEXT = f"SELECT min(wake_at) {UNOWNED} AND agent = :agent AND wake_at > :now"
AGENTS = f"SELECT DISTINCT agent {UNOWNED} AND wake_at IS NOT NULL"
ORPHANS = """
FROM nodes JOIN sessions ON sessions.owner = nodes.owner
WHERE coalesce(nodes.lease_until, 0) <= :clock AND quarantine IS NULL
AND (:reads IS NULL OR generation <= :reads)
AND (:agents IS NULL OR agent IN (SELECT value FROM json_each(:agents)))
"""
ORPHANED_DUE = f"""
SELECT wake_at, id, tenant, agent, key {ORPHANS} AND wake_at <= :now
ORDER BY wake_at, id LIMIT :limit
"""
ORPHANED_NEXT = f"SELECT min(wake_at) {ORPHANS} AND wake_at > :now"

NO_LIMIT = -1

_row_decoder = msgspec.json.Decoder(RunRow)


def find(db: apsw.Connection, session: SessionId) -> int | None:
    """Return the row id of a session, or None if there is none."""
    found: int | None = db.execute(FIND, session).get
    return found


def one(db: apsw.Connection, query: str, values: apsw.Bindings) -> Any:
    """Return the row that a query finds, or None."""
    return db.execute(query, values).fetchone()


def load(db: apsw.Connection, session: SessionId) -> Loaded | None:
    """Return a session as one transaction sees it. Raises `Unavailable` if a payload is lost."""
    loaded = None
    with db:
        rowid = find(db, session)
        if rowid is not None:
            loaded = load_row(db, session, rowid)
    return loaded


def load_row(db: apsw.Connection, session: SessionId, rowid: int) -> Loaded:
    """Return the session with a known row id; the caller holds a transaction."""
    version, head, claims, quarantine, suspect = one(db, SESSION, (rowid,))
    since, snapshot = one(db, SNAPSHOT, (rowid,)) or (0, None)
    return Loaded(
        session=session,
        version=version,
        head=head,
        snapshot=None if snapshot is None else unpack(snapshot),
        tail=tuple(_records(db, rowid, since, NO_LIMIT)),
        inbox=tuple(
            InboxEntry(name, session, command, accepted_at)
            for name, command, accepted_at in db.execute(INBOX, (rowid,))
        ),
        strikes=max(0, claims - 1),
        quarantine=quarantine,
        suspect=suspect,
    )


def read(db: apsw.Connection, session: SessionId, after: int, limit: int) -> list[Record]:
    """Return up to `limit` records after a position."""
    rowid = find(db, session)
    return [] if rowid is None else _records(db, rowid, after, max(0, limit))


def blob(db: apsw.Connection, address: str) -> bytes | None:
    """Return the bytes under a content address; None if there are none that can be read."""
    packed = _packed(db, address)
    if packed is None:
        return None
    found = unpack(packed)
    damaged = found is packed and packed.startswith(ZIPPED)
    return None if damaged else found


def due(
    db: apsw.Connection,
    now: int,
    clock: int,
    limit: int,
    agents: Collection[str] | None = None,
    reads: int | None = None,
) -> tuple[list[SessionId], int | None]:
    """Return sessions that are due at `now` and have no owner with a lease at `clock`, and when
    the next one is.

    Each agent is asked for by itself: what is parked for others is not looked at.
    """
    with db:
        wanted = None if agents is None else msgspec.json.encode(list(agents)).decode()
        names = {"now": now, "clock": clock, "limit": limit, "agents": wanted, "reads": reads}
        ready = list(db.execute(ORPHANED_DUE, names))
        nexts = [db.execute(ORPHANED_NEXT, names).get]
        each = {agent for (agent,) in db.execute(AGENTS, names)} if agents is None else set(agents)
        for agent in each:
            names["agent"] = agent
            ready += db.execute(UNOWNED_DUE, names)
            nexts.append(db.execute(UNOWNED_NEXT, names).get)
    ready.sort()
    sessions = [SessionId(*names) for _, _, *names in ready[:limit]]
    return sessions, min((at for at in nexts if at is not None), default=None)


def unread(db: apsw.Connection, owner: str, limit: int) -> list[SessionId]:
    """Return sessions with more in their inboxes than their owner knows of."""
    return [SessionId(*names) for names in db.execute(UNREAD, (owner, max(0, limit)))]


def settled(db: apsw.Connection, session: SessionId, id: str) -> Settled | None:
    """Say what became of an inbox entry; None while it waits, or if there is none."""
    rowid = find(db, session)
    found = None if rowid is None else one(db, SETTLED, (rowid, id))
    return None if found is None else Settled(found[0])


def list_runs(db: apsw.Connection, query: RunQuery) -> list[RunRow]:
    """Return the rows of runs that match, newest first."""
    wanted = {
        "tenant = ?": query.tenant,
        "id = ?": query.run,
        "agent = ?": query.agent,
        "key = ?": query.key,
        "status = ?": query.status,
    }
    conditions = [condition for condition, value in wanted.items() if value is not None]
    values: list[str | int] = [value for value in wanted.values() if value is not None]
    if query.before is not None:
        conditions.append("(created_at, id) < (?, ?)")
        values += query.before
    where = " AND ".join(conditions)
    newest_first = f"{RUNS} WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ?"
    rows: Iterable[Any] = db.execute(newest_first, (*values, max(0, query.limit)))
    return [_run_row(row, created_at) for row, created_at in rows]


def _run_row(encoded: bytes, created_at: int) -> RunRow:
    row = _row_decoder.decode(encoded)
    return (
        row if row.created_at == created_at else msgspec.structs.replace(row, created_at=created_at)
    )


def _records(db: apsw.Connection, rowid: int, after: int, limit: int) -> list[Record]:
    rows: Iterable[Any] = db.execute(TAIL, (rowid, after, limit))
    return [
        Record(seq, restore(body, lambda address: _packed(db, address)), chained)
        for seq, body, chained in rows
    ]


def _packed(db: apsw.Connection, address: str) -> bytes | None:
    found: bytes | None = db.execute(BLOB, (address,)).get
    return found
