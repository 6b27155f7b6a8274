"""What changes a session besides a step commit: accept, claim, release, renew.

Each is one function that runs inside the writer's transaction. One that raises a `PerdureError` has
written nothing.
"""

from __future__ import annotations

import hashlib

import apsw

from perdure.adapters.stores.sqlite.commits import KEEP_SNAPSHOT, RowIds, keep_rows
from perdure.adapters.stores.sqlite.payloads import pack
from perdure.adapters.stores.sqlite.reading import find, load_row, one
from perdure.core.codec import genesis
from perdure.core.errors import Fenced, KeyReused, LimitExceeded, NotFound
from perdure.core.ids import SessionId
from perdure.core.limits import INBOX_ENTRIES_MAX
from perdure.core.runs import RunRow
from perdure.ports.session_store import Claimed, InboxEntry, NotClaimed, Token

OPEN_INBOX = """
SELECT id, unconsumed FROM sessions WHERE tenant = ? AND agent = ? AND key = ?
"""
CREATE = """
INSERT INTO sessions (tenant, agent, key, epoch, version, head, unconsumed, claims, trusted)
VALUES (?, ?, ?, 0, 0, ?, 0, 0, (SELECT incarnation FROM identity)) RETURNING id, unconsumed
"""
KNOWN = "SELECT digest FROM inbox WHERE session = ? AND id = ?"
PUT_IN = "INSERT INTO inbox (session, id, digest, command, accepted_at) VALUES (?, ?, ?, ?, ?)"
MAKE_DUE = """
UPDATE sessions SET
    unconsumed = unconsumed + 1,
    wake_at = min(coalesce(wake_at, ?2), ?2),
    generation = max(generation, ?3)
WHERE id = ?1
"""

CLAIM = """
UPDATE sessions SET
    epoch = epoch + 1,
    nonce = :nonce,
    owner = :owner,
    claims = iif(owner = :owner, max(claims, 1), claims + 1),
    known = unconsumed,
    trusts = (SELECT incarnation FROM identity)
WHERE tenant = :tenant AND agent = :agent AND key = :key AND quarantine IS NULL
AND (:strikes_max IS NULL OR claims - iif(owner = :owner, 1, 0) <= :strikes_max)
AND (:reads IS NULL OR generation <= :reads) AND (
    owner IS NULL OR owner = :owner OR NOT EXISTS (
        SELECT 1 FROM nodes WHERE nodes.owner = sessions.owner AND lease_until > :now
    )
) RETURNING id, epoch
"""
HOLDER = """
SELECT owner, quarantine, generation, EXISTS (
    SELECT 1 FROM nodes WHERE nodes.owner = sessions.owner AND lease_until > ?4
) FROM sessions WHERE tenant = ?1 AND agent = ?2 AND key = ?3
"""
KNOW_NODE = "INSERT INTO nodes (owner) VALUES (?) ON CONFLICT DO NOTHING"

RELEASE = """
UPDATE sessions SET owner = NULL, nonce = NULL, quarantine = ?2, claims = iif(?2 IS NULL, 0, claims)
WHERE id = ?1 AND (?3 IS NULL OR (epoch = ?3 AND nonce = ?4))
"""
SNAPSHOT_FITS = """
SELECT ?2 <= version AND ?2 > coalesce((SELECT version FROM snapshots WHERE session = ?1), 0)
FROM sessions WHERE id = ?1
"""

LEASE = "SELECT lease_until FROM nodes WHERE owner = ?"
RENEW = """
INSERT INTO nodes (owner, lease_until) VALUES (?, ?)
ON CONFLICT DO UPDATE SET lease_until = excluded.lease_until
"""
VOID = """
UPDATE sessions SET owner = NULL, nonce = NULL, claims = max(0, claims - 1) WHERE owner = ?
"""
VOID_ALL = "UPDATE sessions SET owner = NULL, nonce = NULL WHERE owner IS NOT NULL"
FORGET_NODES = "DELETE FROM nodes"
DISTRUST = "UPDATE identity SET incarnation = max(?, incarnation + 1)"


def accept(
    db: apsw.Connection, entry: InboxEntry, row: RunRow | None, generation: int, now: int
) -> bool:
    """Put a command into an inbox; True if the same one was there before.

    Raises `KeyReused` and `LimitExceeded`.
    """
    digest = hashlib.sha256(entry.command).digest()
    found = one(db, OPEN_INBOX, entry.session)
    if found is not None:
        known = db.execute(KNOWN, (found[0], entry.id)).get
        if known is not None and known != digest:
            raise KeyReused(f"{entry.session} knows {entry.id!r} with another command")
        if known is not None:
            return True
        if row is not None and found[1] >= INBOX_ENTRIES_MAX:
            raise LimitExceeded(
                f"{INBOX_ENTRIES_MAX} commands wait in the inbox of {entry.session} already"
            )
    rowid, _ = found or one(db, CREATE, (*entry.session, genesis(entry.session)))
    db.execute(PUT_IN, (rowid, entry.id, digest, entry.command, entry.accepted_at))
    db.execute(MAKE_DUE, (rowid, now, generation))
    if row is not None:
        keep_rows(db, (row,))
    return False


def claim(
    db: apsw.Connection,
    ids: RowIds,
    session: SessionId,
    owner: str,
    nonce: str,
    now: int,
    strikes_max: int | None = None,
    reads: int | None = None,
) -> Claimed | NotClaimed:
    """Take the right to write a session by a conditional update, and read it after that.

    Raises `Unavailable` if a payload of the session is lost.
    """
    with db:
        names = dict(zip(SessionId._fields, session, strict=True))
        wanted = {"owner": owner, "nonce": nonce, "now": now}
        wanted |= {"strikes_max": strikes_max, "reads": reads}
        taken = one(db, CLAIM, {**names, **wanted})
        if taken is None:
            return _not_claimed(db, session, owner, now, reads)
        rowid, epoch = taken
        db.execute(KNOW_NODE, (owner,))
        loaded = load_row(db, session, rowid)
    ids[session] = rowid
    return Claimed(Token(epoch, nonce), loaded)


def _not_claimed(
    db: apsw.Connection, session: SessionId, asks: str, now: int, reads: int | None
) -> NotClaimed:
    found = one(db, HOLDER, (*session, now))
    if found is None:
        return NotClaimed("absent")
    owner, quarantine, generation, alive = found
    if quarantine is not None:
        return NotClaimed("quarantined")
    if alive and owner != asks:
        return NotClaimed("held", owner)
    newer = reads is not None and generation > reads
    return NotClaimed("newer" if newer else "struck")


def release(
    db: apsw.Connection,
    ids: RowIds,
    session: SessionId,
    token: Token | None,
    snapshot: tuple[int, bytes] | None,
    quarantine: str | None,
) -> None:
    """Give up a claim. Raises `Fenced`, or `NotFound` for an absent session without a token."""
    rowid = find(db, session)
    if rowid is None and token is None:
        raise NotFound(f"there is no session {session}")
    epoch, nonce = token or (None, None)
    db.execute(RELEASE, (rowid, quarantine, epoch, nonce))
    if not db.changes() or rowid is None:
        raise Fenced(f"the claim {epoch} of {session} is not the current one")
    if snapshot is not None and db.execute(SNAPSHOT_FITS, (rowid, snapshot[0])).get:
        db.execute(KEEP_SNAPSHOT, (rowid, snapshot[0], pack(snapshot[1])))
    ids.pop(session, None)


def renew(db: apsw.Connection, owner: str, lease_ms: int, now: int) -> bool:
    """Start or prolong a lease; False if it had run out, and then the owner's claims are void.

    They are no strikes: whoever renews is alive.
    """
    until = db.execute(LEASE, (owner,)).get
    db.execute(RENEW, (owner, now + lease_ms))
    if until is None or until > now:
        return True
    db.execute(VOID, (owner,))
    return False


def distrust(db: apsw.Connection, now: int) -> None:
    """Make every session suspect."""
    db.execute(DISTRUST, (now,))


def free_claims(db: apsw.Connection) -> None:
    """Void every claim of earlier processes: the lock on the file proves that they are dead.

    The claims stay counted, so that the next claim of such a session is a strike.
    """
    with db:
        db.execute(VOID_ALL)
        db.execute(FORGET_NODES)
