"""Every query that only reads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from perdure.adapters.postgres.connections import Pool
from perdure.adapters.stores.postgres.names import Keys, storable
from perdure.adapters.stores.postgres.statements import LOAD, NOW
from perdure.core.codec import Record
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import InboxEntry, Loaded, RunQuery, Settled

READ = """
SELECT seq, body, hash FROM perdure.events
WHERE tenant_id = $1 AND session = $2 AND seq > $3 ORDER BY seq LIMIT $4
"""
SETTLED = """
SELECT coalesce(refusal, '') AS refusal FROM perdure.inbox
WHERE tenant_id = $1 AND session = $2 AND id = $3 AND command IS NULL
"""
UNREAD = """
SELECT tenant_id, agent, key FROM perdure.sessions WHERE owner = $1 AND unread LIMIT $2
"""
BLOB = "SELECT body FROM perdure.blobs WHERE address = $1"
RUNS = "SELECT row, created_at FROM perdure.runs"

READABLE = "($3::integer IS NULL OR generation <= $3)"
AGENTS = """
WITH RECURSIVE parked AS (
    (SELECT agent FROM perdure.sessions WHERE due_at IS NOT NULL ORDER BY agent LIMIT 1)
    UNION ALL
    SELECT (SELECT sessions.agent FROM perdure.sessions
        WHERE due_at IS NOT NULL AND sessions.agent > parked.agent ORDER BY sessions.agent LIMIT 1)
    FROM parked WHERE parked.agent IS NOT NULL
)
SELECT agent FROM parked WHERE agent IS NOT NULL
"""
"""Every agent that has sessions which nobody runs: one step in the index for each of them."""
NAMES = "tenant_id, agent, key"
UNOWNED = f"""
FROM unnest($4::text[]) AS wanted (agent) CROSS JOIN LATERAL (
    SELECT {{columns}} FROM perdure.sessions
    WHERE sessions.agent = wanted.agent AND due_at {{when}} $1 AND {READABLE}
    ORDER BY due_at LIMIT {{limit}}
) AS found
"""
ORPHANED = f"""
FROM (
    SELECT owner FROM perdure.nodes WHERE coalesce(lease_until, 0) <= {NOW.format("$5")} OFFSET 0
) AS gone CROSS JOIN LATERAL (
    SELECT {{columns}} FROM perdure.sessions
    WHERE sessions.owner = gone.owner AND quarantine IS NULL AND wake_at {{when}} $1
    AND ($6::boolean OR agent = ANY ($4::text[])) AND {READABLE}
    ORDER BY wake_at LIMIT {{limit}}
) AS found
"""
"""Of those who have no lease any more: the sessions of others are not looked at."""
_DUE = {"when": "<=", "limit": "$2"}
_LATER = {"when": ">", "limit": "1"}
DUE = f"""
SELECT at, {NAMES} FROM (
    SELECT found.* {UNOWNED.format(columns=f"due_at AS at, {NAMES}", **_DUE)}
    UNION ALL SELECT found.* {ORPHANED.format(columns=f"wake_at AS at, {NAMES}", **_DUE)}
) AS due ORDER BY at LIMIT $2
"""
NEXT = f"""
SELECT min(at) AS at FROM (
    SELECT found.at {UNOWNED.format(columns="due_at AS at", **_LATER)}
    UNION ALL SELECT found.at {ORPHANED.format(columns="wake_at AS at", **_LATER)}
) AS later WHERE $2::bigint IS NOT NULL
"""

BIGINT_MAX = 2**63 - 1

_row_decoder = msgspec.json.Decoder(RunRow)


class Reading:
    """Reads sessions, by a pool of connections."""

    def __init__(self, pool: Pool, keys: Keys) -> None:
        self._pool = pool
        self._keys = keys

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session as it stands now; None if there is none."""
        key = self._keys.find(session)
        rows = [] if key is None else await self._pool.ask(LOAD, *key)
        return loaded(session, rows[0]) if rows else None

    async def read(self, session: SessionId, after: int, limit: int) -> list[Record]:
        """Return up to `limit` records after a position."""
        key = self._keys.find(session)
        if key is None:
            return []
        rows = await self._pool.ask(READ, *key, within(after), max(0, within(limit)))
        return [Record(*row) for row in rows]

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes under a content address."""
        rows = await self._pool.ask(BLOB, address) if storable(address) else []
        return rows[0][0] if rows else None

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        key = self._keys.find(session)
        rows = [] if key is None or not storable(id) else await self._pool.ask(SETTLED, *key, id)
        return Settled(rows[0][0]) if rows else None

    async def due(
        self,
        now: int,
        clock: int | None,
        limit: int,
        agents: Collection[str] | None,
        reads: int | None,
    ) -> tuple[list[SessionId], int | None]:
        """Return sessions that are due at `now` and have no owner with a lease at `clock`, and when
        the next one is.

        Each agent is asked for by itself: what is parked for others is not looked at.
        """
        if agents is None:
            wanted = [row[0] for row in await self._pool.ask(AGENTS)]
        else:
            wanted = [agent for agent in set(agents) if storable(agent)]
        values = (within(now), max(0, within(limit)), reads, wanted, clock, agents is None)
        ready = await self._pool.ask(DUE, *values)
        later = await self._pool.ask(NEXT, *values)
        return [SessionId(*row[1:]) for row in ready], later[0][0]

    async def unread(self, owner: str, limit: int) -> list[SessionId]:
        """Return sessions with more in their inboxes than their owner knows of."""
        rows = await self._pool.ask(UNREAD, owner, max(0, within(limit))) if storable(owner) else []
        return [SessionId(*row) for row in rows]

    async def list_runs(self, query: RunQuery) -> list[RunRow]:
        """Return the rows of runs that match, newest first."""
        wanted = {
            "tenant_id = ${}": query.tenant,
            "id = ${}": query.run,
            "agent = ${}": query.agent,
            "key = ${}": query.key,
            "status = ${}": query.status,
        }
        given = {condition: value for condition, value in wanted.items() if value is not None}
        before = query.before
        if not storable(*given.values(), *(() if before is None else (before[1],))):
            return []
        values: list[str | int] = [max(0, within(query.limit)), *given.values()]
        conditions = [condition.format(n) for n, condition in enumerate(given, 2)]
        if before is not None:
            conditions.append(f"(created_at, id) < (${len(values) + 1}, ${len(values) + 2})")
            values += before
        where = " AND ".join(conditions)
        newest_first = f"{RUNS} WHERE {where} ORDER BY created_at DESC, id DESC LIMIT $1"
        return [_run_row(*row) for row in await self._pool.ask(newest_first, *values)]


def loaded(session: SessionId, row: Any) -> Loaded:
    """Return a session from the row that `LOADED` asks for."""
    records = zip(row["seqs"] or (), row["bodies"] or (), row["hashes"] or (), strict=True)
    entries = zip(row["ids"] or (), row["commands"] or (), row["times"] or (), strict=True)
    return Loaded(
        session=session,
        version=row["version"],
        head=row["head"],
        snapshot=row["snapshot"],
        tail=tuple(Record(*record) for record in records),
        inbox=tuple(InboxEntry(name, session, command, at) for name, command, at in entries),
        strikes=max(0, row["claims"] - 1),
        quarantine=row["quarantine"],
        suspect=row["suspect"],
    )


def is_whole(row: Any) -> bool:
    """Say whether a claim read all that its session had when it was taken.

    The claim may have waited for a commit or an acceptance to end, which it then read past.
    """
    tail = row["version"] - (row["snapshot_version"] or 0)
    return (len(row["bodies"] or ()), len(row["ids"] or ())) == (tail, row["unconsumed"])


def within(number: int) -> int:
    """Return a number as PostgreSQL can hold it."""
    return max(-BIGINT_MAX, min(number, BIGINT_MAX))


def _run_row(encoded: bytes, created_at: int) -> RunRow:
    row = _row_decoder.decode(encoded)
    same = row.created_at == created_at
    return row if same else msgspec.structs.replace(row, created_at=created_at)
