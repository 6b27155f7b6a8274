"""SessionStore: where the facts are kept. It knows no rule; it compares tokens and versions.

Every write of a session names the token of its claim and the version it expects. When either
differs nothing is written, and the error says which: `Fenced` (another claim came after this one),
`Conflict` (the version has moved), `Unavailable` (it is not known what happened: claim again and
read). A store applies the commits of one session in the order they were submitted.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple, Protocol

import msgspec

from perdure.core.codec import Record
from perdure.core.durability import Durability
from perdure.core.errors import StoreError
from perdure.core.ids import SessionId
from perdure.core.runs import RowStatus, RunRow


class Token(NamedTuple):
    """The right to write a session: an epoch that only grows, and a nonce never seen before."""

    epoch: int
    nonce: str


class InboxEntry(msgspec.Struct, frozen=True, gc=False):
    """A command that was accepted: its id is the client's idempotency key within the session."""

    id: str
    session: SessionId
    command: bytes
    accepted_at: int


class Settled(msgspec.Struct, frozen=True, gc=False):
    """What became of an inbox entry that was consumed; `refusal` is empty if it was not refused."""

    refusal: bytes = b""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The answer to an accepted command; a repeat returns the same one, marked as duplicate."""

    id: str
    session: SessionId
    durability: Durability
    duplicate: bool = False


class Loaded(msgspec.Struct, frozen=True, gc=False):
    """A session as it stands: the snapshot, the records after it, and the unconsumed inbox.

    `head` is the hash of the log at `version`; `strikes` counts the claims in a row that were not
    released; `quarantine` says why the session may not be claimed. `suspect` is the time at which
    the store was distrusted last, if that was after the session's last progress: what was
    acknowledged may be missing, and what was accepted before that may have been done.
    """

    session: SessionId
    version: int
    head: bytes
    snapshot: bytes | None
    tail: tuple[Record, ...]
    inbox: tuple[InboxEntry, ...]
    strikes: int = 0
    quarantine: str | None = None
    suspect: int | None = None


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """A claim that succeeded, with the session read after it in the same transaction."""

    token: Token
    loaded: Loaded


class NotClaimed(msgspec.Struct, frozen=True, gc=False):
    """A claim that did not: who holds the session, or why it may not be claimed."""

    why: Literal["held", "absent", "quarantined", "struck", "newer"]
    owner: str | None = None


class StepCommit(msgspec.Struct, frozen=True, gc=False):
    """The only write to a session, one transaction.

    `expected` is the version it was decided on; `records` are the positions after it. `consumed`
    are inbox entries that it settles: their ids stay known for ever. Records that do not follow,
    or an entry that is not waiting, are a `Conflict`. `wake_at` (milliseconds since
    1970) is when somebody must look at the session if nobody runs it; None: only when something is
    accepted. `rows` are upserted, but keep the `created_at` of their first write; `snapshot` is of
    the version after the commit; `blobs` are kept by content. A commit with records is progress:
    it resets the session's strikes, and what was claimed after a distrust is suspect no more.

    `refusals` say of ids among `consumed` why nothing came of them. `generation` is that of the
    newest schema in the commit: from then on only those who read it may claim the session.

    `postponed` is how many unconsumed inbox entries the owner knows and leaves where they are. If
    the session has more than that, one was accepted meanwhile: the store then ignores `wake_at` and
    keeps the session due at once. A wake-up too many is harmless, a lost one is not.
    """

    session: SessionId
    token: Token
    expected: int
    records: tuple[Record, ...] = ()
    consumed: tuple[str, ...] = ()
    postponed: int = 0
    wake_at: int | None = None
    rows: tuple[RunRow, ...] = ()
    snapshot: bytes | None = None
    blobs: tuple[tuple[str, bytes], ...] = ()
    refusals: tuple[tuple[str, bytes], ...] = ()
    generation: int = 0


class RunQuery(msgspec.Struct, frozen=True, gc=False):
    """Which runs to list, newest first; `before` is the (created_at, id) to continue after."""

    tenant: str
    run: str | None = None
    agent: str | None = None
    key: str | None = None
    status: RowStatus | None = None
    before: tuple[int, str] | None = None
    limit: int = 100


CommitDone = Callable[[StoreError | None], None]


class SessionReader(Protocol):
    """What can be read of sessions without the right to write any.

    Any method may raise `Unavailable`. Methods are called from one event loop.
    """

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session; None if there is none."""
        ...

    async def read(self, session: SessionId, after: int, limit: int) -> list[Record]:
        """Return up to `limit` records after position `after`, in order."""
        ...

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match, newest first."""
        ...

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        ...

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        ...


class SessionStore(SessionReader, Protocol):
    """Facts about sessions, kept with the durability that `durability` names.

    `identity` is what no other store has, and stays the same as long as the facts do. A method may
    raise `Broken`, which is an `Unavailable` after which this object answers no more.
    """

    durability: Durability
    identity: str

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Put a command into a session's inbox, creating the session if it is new.

        `row` is the row of the run that the command asks for. A known id with the same command
        gives the same receipt and writes nothing; with another command it raises `KeyReused`.
        Raises `LimitExceeded` for a command that asks for a run when `INBOX_ENTRIES_MAX` entries
        are unconsumed (what answers or ends a run is always accepted), and `InvalidInput` for a
        name that is not Unicode. Makes the session due at once. `generation` is what a node has to
        read to understand the command; the session's becomes at least that (see `StepCommit`).
        """
        ...

    async def claim(
        self,
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None = None,
        reads: int | None = None,
    ) -> Claimed | NotClaimed:
        """Take the right to write a session, then read it, in one transaction.

        Never steals from an owner whose lease is alive (the same owner may claim again). The epoch
        grows by one; a claim that follows one of another owner without a release counts a strike:
        that one may be dead, while whoever claims again is not. One after which
        the session would have more than `strikes_max` is refused as "struck", and one of a session
        whose generation is greater than `reads` as "newer"; neither counts a strike. When several
        reasons hold, the first of absent, quarantined, held, newer, struck is given.
        """
        ...

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Submit a step commit; `done` is called on the event loop once it is durable or failed.

        `done` gets None, or the `Fenced`, `Conflict` or `Unavailable` because of which nothing
        counts as written. Steps of the same claim that were submitted before the owner was told of
        a refusal are refused with it: they were decided on what never happened.
        """
        ...

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Confirm the node's lease for all its sessions; False if it had run out meanwhile.

        Then a new lease begins, and the claims that the node had are void. They are no strikes:
        whoever renews is alive.
        """
        ...

    async def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None = None,
        quarantine: str | None = None,
    ) -> None:
        """Give up a claim, keeping a snapshot (version, bytes), or put the session in quarantine.

        The token is void after that. Resets the strikes, unless it quarantines. A snapshot of a
        version that the log has not reached is not kept. Without a token it is done by hand: it
        lifts a quarantine, or takes the session away from its owner. Raises `Fenced` when the token
        is not the current one, and by hand `NotFound` when there is no such session.
        """
        ...

    async def due(
        self,
        now: int,
        limit: int,
        agents: Collection[str] | None = None,
        reads: int | None = None,
    ) -> tuple[builtins.list[SessionId], int | None]:
        """Return sessions nobody runs that are due at `now`, and the time of the next one after.

        Only sessions of `agents`, and of no generation greater than `reads`, if they are given. The
        earliest come first. Whether an owner's lease is alive is for the store's clock to say.
        """
        ...

    async def unread(self, owner: str, limit: int) -> builtins.list[SessionId]:
        """Return up to `limit` sessions for which something was accepted that their owner,
        `owner`, may not know of: they have more entries than it read, or said it postponed.

        It may name one whose owner does know; it never leaves out one whose owner does not.
        """
        ...

    async def distrust(self) -> None:
        """Make every session suspect: the store was restored, or failed over with a loss.

        A later distrust has a greater time, whatever the clock says.
        """
        ...
