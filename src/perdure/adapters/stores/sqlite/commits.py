"""Step commits, as many as wait, in a handful of vectorised statements.

Every commit is guarded by an update of its session's row that names the token and the version. If
all guards and all consumed entries changed one row each, all commits hold; if the counts differ,
the caller rolls back and writes the commits one by one to learn which one is refused, and why.
"""

from __future__ import annotations

from collections.abc import Iterable

import apsw
import msgspec

from perdure.adapters.stores.sqlite.payloads import pack, set_apart
from perdure.adapters.stores.sqlite.reading import find, one
from perdure.core.errors import Conflict, Fenced, StoreError
from perdure.core.ids import SessionId
from perdure.core.limits import BLOB_THRESHOLD_BYTES
from perdure.core.runs import RunRow
from perdure.ports.session_store import StepCommit

GUARD = """
UPDATE sessions SET
    version = ?1,
    head = coalesce(?2, head),
    claims = iif(?1 > version, 1, claims),
    trusted = iif(?1 > version, trusts, trusted),
    unconsumed = unconsumed - ?3,
    known = ?4,
    wake_at = iif(unconsumed - ?3 > ?4, 0, ?5),
    generation = max(generation, ?6)
WHERE id = ?7 AND epoch = ?8 AND nonce = ?9 AND version = ?10
"""
CONSUME = """
UPDATE inbox SET command = NULL, refusal = ?
WHERE session = ? AND id = ? AND command IS NOT NULL
"""
APPEND = "INSERT INTO events (session, seq, body, hash) VALUES (?, ?, ?, ?)"
KEEP_BLOB = "INSERT INTO blobs (address, body) VALUES (?, ?) ON CONFLICT DO NOTHING"
KEEP_SNAPSHOT = """
INSERT INTO snapshots (session, version, body) VALUES (?, ?, ?)
ON CONFLICT (session) DO UPDATE SET version = excluded.version, body = excluded.body
"""
KEEP_ROW = """
INSERT INTO runs (tenant, id, agent, key, status, created_at, row) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (tenant, id) DO UPDATE SET
    agent = excluded.agent, key = excluded.key, status = excluded.status, row = excluded.row
"""
STANDING = "SELECT epoch, nonce, version FROM sessions WHERE id = ?"

RowIds = dict[SessionId, int]
"""The row ids of claimed sessions: claims put them here, so that commits need not look them up."""

_encode_row = msgspec.json.Encoder().encode


def write_all(db: apsw.Connection, ids: RowIds, steps: Iterable[StepCommit]) -> bool:
    """Write all steps, in order; False if one is refused, and then all must be rolled back."""
    guards: list[tuple[object, ...]] = []
    events: list[tuple[int, int, bytes, bytes]] = []
    blobs: list[tuple[str, bytes]] = []
    consumed: list[tuple[bytes | None, int, str]] = []
    rows: list[RunRow] = []
    snapshots: list[tuple[int, int, bytes]] = []
    for step in steps:
        rowid = ids.get(step.session) or find(db, step.session)
        if rowid is None:
            return False
        version, head = step.expected, None
        for seq, body, head in step.records:
            version += 1
            if seq != version:
                return False
            stored = body
            if len(body) > BLOB_THRESHOLD_BYTES or body.startswith(b"\0"):
                stored, apart = set_apart(body)
                blobs.append(apart)
            events.append((rowid, seq, stored, head))
        used = step.consumed
        if used:
            refusals = dict(step.refusals)
            consumed += [(refusals.get(entry), rowid, entry) for entry in used]
        standing = (version, head, len(used), step.postponed, step.wake_at, step.generation)
        guards.append((*standing, rowid, *step.token, step.expected))
        rows += step.rows
        if step.snapshot is not None:
            snapshots.append((rowid, version, pack(step.snapshot)))
        for address, content in step.blobs:
            blobs.append((address, pack(content)))
    before = db.total_changes()
    db.executemany(GUARD, guards)
    if consumed:
        db.executemany(CONSUME, consumed)
    if db.total_changes() - before != len(guards) + len(consumed):
        return False
    if events:
        db.executemany(APPEND, events)
    if blobs:
        db.executemany(KEEP_BLOB, blobs)
    if snapshots:
        db.executemany(KEEP_SNAPSHOT, snapshots)
    if rows:
        keep_rows(db, rows)
    return True


def keep_rows(db: apsw.Connection, rows: Iterable[RunRow]) -> None:
    """Write the rows of runs over what was there, except for when they were created."""
    db.executemany(
        KEEP_ROW,
        [
            (r.session.tenant, r.id, *r.session[1:], r.status, r.created_at, _encode_row(r))
            for r in rows
        ],
    )


def why_refused(db: apsw.Connection, step: StepCommit) -> StoreError:
    """Return the reason why a step alone was not written."""
    rowid = find(db, step.session)
    found = (0, None, 0) if rowid is None else one(db, STANDING, (rowid,))
    epoch, nonce, version = found
    if (epoch, nonce) != step.token:
        return Fenced(f"the claim {step.token.epoch} of {step.session} is not the current one")
    if version != step.expected:
        return Conflict(f"{step.session} is at {version}, not at {step.expected}")
    if [record.seq - version for record in step.records] != [*range(1, len(step.records) + 1)]:
        return Conflict(f"the records do not follow position {version} of {step.session}")
    return Conflict(f"a consumed command is not in the inbox of {step.session}")
