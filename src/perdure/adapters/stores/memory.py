"""MemoryStore: everything a store promises, except that it outlives the process."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from perdure.core.codec import Record, genesis
from perdure.core.durability import Durability
from perdure.core.errors import (
    Conflict,
    Fenced,
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    StoreError,
)
from perdure.core.ids import SessionId
from perdure.core.limits import INBOX_ENTRIES_MAX
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    Claimed,
    CommitDone,
    InboxEntry,
    Loaded,
    NotClaimed,
    Receipt,
    RunQuery,
    Settled,
    StepCommit,
    Token,
)

DUE_AT_ONCE = 0


class _HasTime(Protocol):
    def now_ms(self) -> int: ...


class _Session:
    __slots__ = (
        "claimed",
        "digests",
        "epoch",
        "generation",
        "inbox",
        "known",
        "log",
        "number",
        "owner",
        "quarantine",
        "refusals",
        "snapshot",
        "snapshot_version",
        "strikes",
        "token",
        "trusted",
        "trusts",
        "wake_at",
    )

    def __init__(self, number: int, incarnation: int) -> None:
        self.number = number
        self.trusted = self.trusts = incarnation
        self.generation = 0
        self.known = 0
        self.epoch = 0
        self.token: Token | None = None
        self.owner: str | None = None
        self.claimed = False
        self.strikes = 0
        self.quarantine: str | None = None
        self.log: list[Record] = []
        self.snapshot: bytes | None = None
        self.snapshot_version = 0
        self.inbox: dict[str, InboxEntry] = {}
        self.digests: dict[str, bytes] = {}
        self.refusals: dict[str, bytes] = {}
        self.wake_at: int | None = None


class MemoryStore:
    """A deterministic store without threads and without time of its own.

    A commit is in force when `commit` returns; `done` is called by the event loop afterwards.
    """

    durability: Durability = "memory"

    def __init__(
        self, clock: Callable[[], int] | _HasTime, identity: str = "a store in memory"
    ) -> None:
        self.identity = identity
        self._now = clock if callable(clock) else clock.now_ms
        self._sessions: dict[SessionId, _Session] = {}
        self._leases: dict[str, int] = {}
        self._rows: dict[str, dict[str, RunRow]] = {}
        self._blobs: dict[str, bytes] = {}
        self._incarnation = 0
        self._untold: dict[tuple[SessionId, Token], list[StoreError]] = {}

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Put a command into a session's inbox."""
        _check_names(entry)
        session = self._sessions.get(entry.session) or _Session(
            len(self._sessions), self._incarnation
        )
        digest = hashlib.sha256(entry.command).digest()
        known = session.digests.get(entry.id)
        if known is not None:
            if known != digest:
                raise KeyReused(f"{entry.session} knows {entry.id!r} with another command")
            return Receipt(entry.id, entry.session, self.durability, duplicate=True)
        if row is not None and len(session.inbox) >= INBOX_ENTRIES_MAX:
            raise LimitExceeded(
                f"{INBOX_ENTRIES_MAX} commands wait in the inbox of {entry.session} already"
            )
        self._sessions[entry.session] = session
        session.digests[entry.id] = digest
        session.inbox[entry.id] = entry
        session.generation = max(session.generation, generation)
        now = self._now()
        session.wake_at = now if session.wake_at is None else min(session.wake_at, now)
        if row is not None:
            self._keep_row(row)
        return Receipt(entry.id, entry.session, self.durability)

    async def claim(
        self,
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None = None,
        reads: int | None = None,
    ) -> Claimed | NotClaimed:
        """Take the right to write a session, then read it."""
        found = self._sessions.get(session)
        if found is None:
            return NotClaimed("absent")
        if found.quarantine is not None:
            return NotClaimed("quarantined")
        if found.owner != owner and self._is_held(found):
            return NotClaimed("held", found.owner)
        if reads is not None and found.generation > reads:
            return NotClaimed("newer")
        strike = found.claimed and found.owner != owner
        if strikes_max is not None and found.strikes + strike > strikes_max:
            return NotClaimed("struck")
        found.strikes += strike
        found.claimed = True
        found.epoch += 1
        found.token = Token(found.epoch, nonce)
        found.owner = owner
        found.known = len(found.inbox)
        found.trusts = self._incarnation
        return Claimed(found.token, self._loaded(session, found))

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session without the right to write it."""
        found = self._sessions.get(session)
        return None if found is None else self._loaded(session, found)

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Write a step, or nothing of it."""
        claim = (step.session, step.token)
        earlier = self._untold.get(claim)
        error = self._why_refused(step) if earlier is None else type(earlier[0])(str(earlier[0]))
        if error is None:
            self._write(step)
        else:
            self._untold.setdefault(claim, []).append(error)
        asyncio.get_running_loop().call_soon(self._tell, step, done, error)

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Start or prolong an owner's lease; when it had run out, its claims are void."""
        now, until = self._now(), self._leases.get(owner)
        self._leases[owner] = now + lease_ms
        if until is None or until > now:
            return True
        for session in self._sessions.values():
            if session.owner == owner:
                session.owner = session.token = None
                session.claimed = session.strikes > 0
                session.strikes = max(0, session.strikes - 1)
        return False

    async def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None = None,
        quarantine: str | None = None,
    ) -> None:
        """Give up a claim, or put a session in quarantine, or lift that."""
        found = self._sessions.get(session)
        if token is not None and (found is None or found.token != token):
            raise Fenced(f"the claim {token.epoch} of {session} is not the current one")
        if found is None:
            raise NotFound(f"there is no session {session}")
        if snapshot is not None and found.snapshot_version < snapshot[0] <= len(found.log):
            found.snapshot_version, found.snapshot = snapshot
        found.owner = found.token = None
        found.quarantine = quarantine
        if quarantine is None:
            found.claimed = False
            found.strikes = 0

    async def due(
        self,
        now: int,
        limit: int,
        agents: Collection[str] | None = None,
        reads: int | None = None,
    ) -> tuple[builtins.list[SessionId], int | None]:
        """Return sessions nobody runs that are due at `now`, and the time of the next one after."""
        ready: list[tuple[int, int, SessionId]] = []
        later: list[int] = []
        for session, found in self._sessions.items():
            if found.wake_at is None or found.quarantine is not None or self._is_held(found):
                continue
            if agents is not None and session.agent not in agents:
                continue
            if reads is not None and found.generation > reads:
                continue
            if found.wake_at <= now:
                ready.append((found.wake_at, found.number, session))
            else:
                later.append(found.wake_at)
        ready.sort()
        return [session for *_, session in ready[:limit]], min(later, default=None)

    async def unread(self, owner: str, limit: int) -> builtins.list[SessionId]:
        """Return sessions for which something was accepted that their owner may not know of."""
        unread = [
            session
            for session, found in self._sessions.items()
            if found.owner == owner and len(found.inbox) > found.known
        ]
        return unread[:limit]

    async def distrust(self) -> None:
        """Make every session suspect."""
        self._incarnation = max(self._now(), self._incarnation + 1)

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        found = self._sessions.get(session)
        if found is None or id not in found.digests or id in found.inbox:
            return None
        return Settled(found.refusals.get(id, b""))

    async def read(self, session: SessionId, after: int, limit: int) -> builtins.list[Record]:
        """Return up to `limit` records after position `after`, in order."""
        found = self._sessions.get(session)
        return [] if found is None else found.log[after : after + limit]

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match, newest first."""
        rows = self._rows.get(query.tenant, {})
        if query.run is not None:
            only = rows.get(query.run)
            rows = {} if only is None else {only.id: only}
        found = [row for row in rows.values() if _matches(query, row)]
        found.sort(key=lambda row: (row.created_at, row.id), reverse=True)
        return found[: query.limit]

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        return self._blobs.get(address)

    async def close(self) -> None:
        """Nothing is held; the facts go with the object."""

    def _is_held(self, session: _Session) -> bool:
        owner = session.owner
        return owner is not None and self._leases.get(owner, 0) > self._now()

    def _loaded(self, session: SessionId, found: _Session) -> Loaded:
        log = found.log
        return Loaded(
            session=session,
            version=len(log),
            head=log[-1].hash if log else genesis(session),
            snapshot=found.snapshot,
            tail=tuple(log[found.snapshot_version :]),
            inbox=tuple(found.inbox.values()),
            strikes=found.strikes,
            quarantine=found.quarantine,
            suspect=self._incarnation if found.trusted < self._incarnation else None,
        )

    def _why_refused(self, step: StepCommit) -> StoreError | None:
        session = self._sessions.get(step.session)
        if session is None or session.token != step.token:
            return Fenced(f"the claim {step.token.epoch} of {step.session} is not the current one")
        version = len(session.log)
        if version != step.expected:
            return Conflict(f"{step.session} is at {version}, not at {step.expected}")
        if any(record.seq != version + n for n, record in enumerate(step.records, 1)):
            return Conflict(f"the records do not follow position {version} of {step.session}")
        if len(set(step.consumed)) < len(step.consumed) or not session.inbox.keys() >= set(
            step.consumed
        ):
            return Conflict(f"a consumed command is not in the inbox of {step.session}")
        return None

    def _write(self, step: StepCommit) -> None:
        session = self._sessions[step.session]
        session.log.extend(step.records)
        for entry in step.consumed:
            del session.inbox[entry]
        session.refusals.update(step.refusals)
        session.known = step.postponed
        session.generation = max(session.generation, step.generation)
        known = len(session.inbox) <= step.postponed
        session.wake_at = step.wake_at if known else DUE_AT_ONCE
        if step.records:
            session.strikes = 0
            session.trusted = session.trusts
        if step.snapshot is not None:
            session.snapshot_version, session.snapshot = len(session.log), step.snapshot
        for row in step.rows:
            self._keep_row(row)
        for address, body in step.blobs:
            self._blobs.setdefault(address, body)

    def _tell(self, step: StepCommit, done: CommitDone, error: StoreError | None) -> None:
        if error is not None:
            claim = (step.session, step.token)
            self._untold[claim].pop()
            if not self._untold[claim]:
                del self._untold[claim]
        done(error)

    def _keep_row(self, row: RunRow) -> None:
        rows = self._rows.setdefault(row.session.tenant, {})
        first = rows.get(row.id)
        if first is not None and first.created_at != row.created_at:
            row = msgspec.structs.replace(row, created_at=first.created_at)
        rows[row.id] = row


def _check_names(entry: InboxEntry) -> None:
    try:
        "".join((*entry.session, entry.id)).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{entry.id!r} or its session is not valid Unicode: {error}") from None


def _matches(query: RunQuery, row: RunRow) -> bool:
    return (
        (query.agent is None or row.session.agent == query.agent)
        and (query.key is None or row.session.key == query.key)
        and (query.status is None or row.status == query.status)
        and (query.before is None or (row.created_at, row.id) < query.before)
    )
