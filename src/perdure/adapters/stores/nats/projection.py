"""What a node knows of every session: the streams, folded.

It is held in memory, some kilobyte for each session and some 400 bytes for each run. Bodies are not
in it, only the numbers of the messages that have them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterable
from itertools import islice
from operator import attrgetter

from perdure.adapters.nats.log import Folded
from perdure.adapters.stores.nats.messages import (
    Arrival,
    Change,
    Changes,
    Claim,
    Commit,
    Release,
    RowKey,
    place_of,
    where,
)
from perdure.core.codec import genesis
from perdure.core.ids import SessionId
from perdure.core.runs import RowStatus
from perdure.ports.session_store import RunQuery, Token

DUE_AT_ONCE = 0
IN_ARRIVAL = 0

Parked = tuple[int, int, str]
"""When a session without an owner is due, since when it exists in nanoseconds, and its place."""


class Session:
    """A session, as of the last message of it that was folded.

    `firsts` and `numbers` say where which records are (see `where`); `waiting` has the unconsumed
    entries, oldest first, by the last part of their subjects. Its claim is `void` when its owner's
    lease ran out after it. `listed` is the owner among whose sessions it is.
    """

    __slots__ = (
        "claimed",
        "epoch",
        "firsts",
        "generation",
        "head",
        "id",
        "known",
        "listed",
        "nonce",
        "numbers",
        "owner",
        "parked",
        "place",
        "quarantine",
        "refused",
        "runs",
        "shard",
        "since_ns",
        "snapshot",
        "snapshot_at",
        "strikes",
        "term",
        "trusted",
        "trusts",
        "version",
        "void",
        "waiting",
        "wake_at",
    )

    def __init__(self, id: SessionId, shard: int, place: str, since_ns: int, trusted: int) -> None:
        self.id = id
        self.shard = shard
        self.place = place
        self.since_ns = since_ns
        self.epoch = 0
        self.nonce: str | None = None
        self.owner: str | None = None
        self.term = 0
        self.void = False
        self.listed: str | None = None
        self.claimed = False
        self.strikes = 0
        self.quarantine: str | None = None
        self.trusted = self.trusts = trusted
        self.generation = 0
        self.version = 0
        self.head = genesis(id)
        self.firsts = array("Q")
        self.numbers = array("Q")
        self.snapshot = 0
        self.snapshot_at = 0
        self.waiting: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.known = 0
        self.wake_at: int | None = None
        self.parked: Parked | None = None
        self.runs: list[Run] = []

    @property
    def token(self) -> Token | None:
        """The token of the claim that is in force."""
        return None if self.void or self.nonce is None else Token(self.epoch, self.nonce)

    @property
    def holder(self) -> str | None:
        """Whose claim is in force."""
        return None if self.void else self.owner

    @property
    def counted(self) -> tuple[bool, int]:
        """Whether a claim was not released, and the strikes."""
        return self.counted_as(self.void)

    def counted_as(self, void: bool) -> tuple[bool, int]:
        """Return the same; a void claim is no strike, for its owner lives."""
        if void:
            return self.strikes > 0, max(0, self.strikes - 1)
        return self.claimed, self.strikes

    def messages(self, after: int, limit: int) -> list[tuple[int, int]]:
        """Return what has up to `limit` records after a position: where, and from which one on."""
        if limit <= 0 or after >= self.version:
            return []
        begin = max(0, bisect_right(self.firsts, after + 1) - 1)
        end = bisect_right(self.firsts, after + limit)
        return [*zip(self.firsts[begin:end], self.numbers[begin:end], strict=True)]


class Run:
    """Where the row of a run is: the message, and which row of it. It says what is asked for."""

    __slots__ = ("at", "created_at", "id", "index", "session", "status")

    def __init__(self, id: str, session: Session, created_at: int) -> None:
        self.id = id
        self.session = session
        self.created_at = created_at
        self.status: RowStatus = "queued"
        self.at = self.index = 0

    @property
    def order(self) -> tuple[int, str]:
        """What lists are sorted by."""
        return self.created_at, self.id


ORDER = attrgetter("order")


class Runs:
    """The rows of a tenant's runs."""

    __slots__ = ("by_id", "in_order")

    def __init__(self) -> None:
        self.by_id: dict[str, Run] = {}
        self.in_order: list[Run] = []


class Projection:
    """All sessions of a store. `terms` are those of the owners' leases, as they are known."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self._terms: dict[str, int] = {}
        self._owned: dict[str, set[Session]] = {}
        self._parked: list[Parked] = []
        self._runs: dict[str, Runs] = {}

    def fold(self, shard: int, message: Folded, changes: Changes) -> list[bool]:
        """Take in a message of a shard, and say which of its changes hold.

        Every node says the same: it follows from the messages before.
        """
        return [
            self._fold(shard, message, place, change, where(message.seq, index))
            for index, (place, change) in enumerate(changes)
        ]

    def _fold(self, shard: int, message: Folded, place: str, change: Change, at: int) -> bool:
        session = self.sessions.get(place)
        if isinstance(change, Arrival):
            if session is None:
                session = Session(change.session, shard, place, message.at_ns, change.trusted)
                self.sessions[place] = session
            self._arrive(session, message, change, at)
            holds = True
        elif session is None:
            return False
        elif isinstance(change, Commit):
            holds = self._commit(session, change, at)
        elif isinstance(change, Claim):
            holds = self._claim(session, change)
        else:
            holds = self._release(session, change, at)
        if holds:
            self._settle(session)
        return holds

    def void(self, owner: str, term: int) -> None:
        """Take from an owner what it claimed before a term; it is no strike.

        It is given back when an earlier term turns out to go on.
        """
        self._terms[owner] = term
        for session in [*self._owned.get(owner, ())]:
            self._settle(session)

    def due(
        self,
        dead: Iterable[str],
        now: int,
        limit: int,
        agents: Collection[str] | None,
        reads: int | None,
    ) -> tuple[list[SessionId], int | None]:
        """Return sessions that are due and owned by nobody, or by the dead, and the next time."""

        def wanted(session: Session) -> bool:
            return (agents is None or session.id.agent in agents) and (
                reads is None or session.generation <= reads
            )

        ready, later = list[Parked](), list[int]()
        for session in (one for owner in dead for one in self._owned.get(owner, ())):
            at = session.wake_at
            if at is None or session.void or session.quarantine is not None or not wanted(session):
                continue
            if at <= now:
                ready.append((at, session.since_ns, session.place))
            else:
                later.append(at)
        later_at = bisect_left(self._parked, (now + 1,))
        ours = (one for one in self._parked[:later_at] if wanted(self.sessions[one[2]]))
        ready += islice(ours, max(0, limit))
        for at in range(later_at, len(self._parked)):
            if wanted(self.sessions[self._parked[at][2]]):
                later.append(self._parked[at][0])
                break
        ready.sort()
        ids = [self.sessions[place].id for _, _, place in ready[: max(0, limit)]]
        return ids, min(later, default=None)

    def owners(self) -> list[str]:
        """Return who has sessions, or had some when its lease ran out."""
        return [*self._owned]

    def unread(self, owner: str, limit: int) -> list[SessionId]:
        """Return sessions of an owner that have more entries than it knows."""
        owned = self._owned.get(owner, ())
        unread = [s.id for s in owned if len(s.waiting) > s.known and not s.void]
        return unread[: max(0, limit)]

    def runs(self, query: RunQuery) -> list[Run]:
        """Return the runs whose rows match, newest first."""
        runs = self._runs.get(query.tenant)
        if runs is None:
            return []
        candidates = runs.in_order
        if query.run is not None:
            only = runs.by_id.get(query.run)
            candidates = [] if only is None else [only]
        elif query.agent is not None and query.key is not None:
            candidates = self._of_session(SessionId(query.tenant, query.agent, query.key))
        end = len(candidates)
        if query.before is not None:
            end = bisect_left(candidates, query.before, key=ORDER)
        found = list[Run]()
        for at in range(end - 1, -1, -1):
            if len(found) >= query.limit:
                break
            if _matches(query, candidates[at]):
                found.append(candidates[at])
        return found

    def _of_session(self, id: SessionId) -> list[Run]:
        session = self.sessions.get(place_of(id))
        return [] if session is None else session.runs

    def _arrive(self, session: Session, message: Folded, change: Arrival, place: int) -> None:
        at = change.at or message.at_ms
        session.waiting[message.subject.split(".")[4]] = message.seq
        session.generation = max(session.generation, change.generation)
        session.wake_at = at if session.wake_at is None else min(session.wake_at, at)
        if change.row is not None:
            self._keep_row(session, change.row, place, IN_ARRIVAL)

    def _claim(self, session: Session, change: Claim) -> bool:
        if session.epoch + 1 != change.epoch or session.quarantine is not None:
            return False
        claimed, strikes = session.counted_as(change.void)
        again = session.owner == change.owner and not change.void
        session.epoch, session.nonce = change.epoch, change.nonce
        session.owner, session.term = change.owner, change.term
        session.claimed, session.strikes = True, strikes + (claimed and not again)
        session.trusts = change.trusts
        session.known = len(session.waiting)
        return True

    def _commit(self, session: Session, change: Commit, at: int) -> bool:
        if (session.epoch, session.nonce, session.version) != (
            change.epoch,
            change.nonce,
            change.expected,
        ):
            return False
        if change.version > session.version:
            session.firsts.append(session.version + 1)
            session.numbers.append(at)
            session.version, session.head = change.version, change.head
            session.strikes = 0
            session.trusted = session.trusts
        if change.consumed:
            consumed = set(change.consumed)
            waiting = session.waiting
            for entry in [entry for entry, seq in waiting.items() if seq in consumed]:
                del waiting[entry]
        session.known = change.postponed
        surprised = len(session.waiting) > change.postponed
        session.wake_at = DUE_AT_ONCE if surprised else change.wake_at
        session.generation = max(session.generation, change.generation)
        if change.snapshot is not None:
            session.snapshot, session.snapshot_at = change.snapshot, at
        for entry in change.refused:
            session.refused[entry] = at
        for index, row in enumerate(change.rows):
            self._keep_row(session, row, at, index)
        return True

    def _release(self, session: Session, change: Release, at: int) -> bool:
        if session.epoch != change.epoch or change.nonce not in (None, session.nonce):
            return False
        session.owner = session.nonce = None
        session.quarantine = change.quarantine
        if change.quarantine is None:
            session.claimed, session.strikes = False, 0
        kept = change.snapshot
        if kept is not None and session.snapshot < kept <= session.version:
            session.snapshot, session.snapshot_at = kept, at
        return True

    def _settle(self, session: Session) -> None:
        """Keep in step who owns what, and what nobody owns."""
        owner = session.owner
        session.void = owner is not None and self._terms.get(owner, 0) > session.term
        if owner != session.listed:
            if session.listed is not None:
                theirs = self._owned[session.listed]
                theirs.discard(session)
                if not theirs:
                    del self._owned[session.listed]
            if owner is not None:
                self._owned.setdefault(owner, set()).add(session)
            session.listed = owner
        parked: Parked | None = None
        if session.holder is None and session.quarantine is None and session.wake_at is not None:
            parked = (session.wake_at, session.since_ns, session.place)
        if parked != session.parked:
            if session.parked is not None:
                del self._parked[bisect_left(self._parked, session.parked)]
            if parked is not None:
                insort(self._parked, parked)
            session.parked = parked

    def _keep_row(self, session: Session, row: RowKey, at: int, index: int) -> None:
        name, status, created_at = row
        runs = self._runs.setdefault(session.id.tenant, Runs())
        run = runs.by_id.get(name)
        if run is None:
            run = runs.by_id[name] = Run(name, session, created_at)
            insort(runs.in_order, run, key=ORDER)
            insort(session.runs, run, key=ORDER)
        run.status = status  # type: ignore[assignment]  # whoever wrote it had it from a RunRow
        run.at, run.index = at, index


def _matches(query: RunQuery, run: Run) -> bool:
    session = run.session.id
    return (
        (query.agent is None or session.agent == query.agent)
        and (query.key is None or session.key == query.key)
        and (query.status is None or run.status == query.status)
    )
