"""What concerns no session alone: leases, the store's clock, its identity, and distrust.

A lease is a message with the owner's name; when it ends follows from when JetStream stored it. A
renewal that is stored after the end begins a new term, and whatever was claimed in an earlier one
is void: every node that folds the message sees that. So nobody's clock matters but the server's.
The stream keeps the last two renewals of each owner: who did not hear one cannot say whether the
next was late, but it names the term.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

from perdure.adapters.nats.connection import Connection, subject_part
from perdure.adapters.nats.log import ON_SUBJECT, Doubtful, Folded, Log, Overtaken
from perdure.core.errors import StoreRefused, Unavailable

FORMAT = 1
RETRY_SECONDS = 0.5


class Renewal(msgspec.Struct, tag="lease", array_like=True, frozen=True):
    """An owner is alive. `term` is the one that he was in; `at` the time if somebody sets it.

    `after` is the number of his renewal before, 0 for his first; older versions do not say it.
    """

    owner: str
    lease_ms: int
    term: int
    at: int
    after: int | None = None


class Moment(msgspec.Struct, tag="now", array_like=True, frozen=True):
    """Somebody asked for the time, and for all that was before it."""

    at: int


class Distrust(msgspec.Struct, tag="distrust", array_like=True, frozen=True):
    """Every session became suspect, later than `before`, when it did last. `at`: see `Renewal`."""

    before: int
    at: int


class Identity(msgspec.Struct, tag="store", array_like=True, frozen=True):
    """Which store this is, and how it is laid out. It is written once."""

    id: str
    shards: int
    format: int


decode: Any = msgspec.json.Decoder(Renewal | Moment | Distrust | Identity).decode
encode = msgspec.json.Encoder().encode


class Lease:
    """An owner's lease: the `term` it belongs to, and when it ends."""

    __slots__ = ("seq", "term", "until")

    def __init__(self, seq: int, term: int, until: int) -> None:
        self.seq = seq
        self.term = term
        self.until = until


class Control:
    """The control stream, folded. `on_void` learns whose claims before which term are void."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        prefix: str,
        clock: Callable[[], int] | None,
        patience: float,
        on_void: Callable[[str, int], None] = lambda owner, term: None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self.log = Log(
            connection,
            stream,
            self._fold,
            whole=False,
            patience=patience,
            trimmed=True,
            on_loss=on_loss,
        )
        self.distrusted_at = 0
        self.identity: Identity | None = None
        self._prefix = prefix
        self._clock = clock
        self._on_void = on_void
        self._leases: dict[str, Lease] = {}
        self._distrusted = 0
        self._moment = 0
        self._seen = (0, 0.0)
        self._loop = asyncio.get_running_loop()

    async def open(self, shards: int) -> Identity:
        """Fold what there is; give the store an identity if it has none. Raises `StoreRefused`."""
        await self.log.open()
        if self.identity is None:
            new = Identity(uuid.uuid4().hex, shards, FORMAT)
            with suppress(Overtaken, Doubtful):
                await self._write("identity", encode(new), 0)
            await self.log.sync()
        assert self.identity is not None
        if self.identity.format != FORMAT:
            raise StoreRefused(
                f"{self.log.stream} has format {self.identity.format}, and this version of perdure "
                f"reads {FORMAT}: use the version that wrote it"
            )
        await self.exact_now_ms()
        return self.identity

    def now_ms(self) -> int:
        """Return the store's time; it may be a little later in truth, never earlier."""
        if self._clock is not None:
            return self._clock()
        at_ms, seen_at = self._seen
        return at_ms + int((self._loop.time() - seen_at) * 1000)

    async def exact_now_ms(self) -> int:
        """Return a time of the store such that every lease renewed before it is known here."""
        seq = await self._write("now", encode(Moment(self.set_time())), None)
        await self.log.reach(seq)
        return self._moment

    def set_time(self) -> int:
        """Return what a message says of the time: nothing, unless a clock was given."""
        return 0 if self._clock is None else self._clock()

    def alive(self, owner: str, now: int) -> bool:
        """Say whether an owner's lease goes on."""
        lease = self._leases.get(owner)
        return lease is not None and lease.until > now

    def term(self, owner: str) -> int:
        """Return the term that an owner's claims are in."""
        lease = self._leases.get(owner)
        return 0 if lease is None else lease.term

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Start or prolong a lease; False if it had run out, and then a new term begins.

        Whichever renewal it was that began it: one that is doubtful is followed by another.
        """
        await self.log.sync()
        began_in = self.term(owner)
        while True:
            lease = self._leases.get(owner)
            seq, term = (0, 0) if lease is None else (lease.seq, lease.term)
            renewal = Renewal(owner, lease_ms, term, self.set_time(), seq)
            try:
                stored = await self._write(f"lease.{subject_part(owner)}", encode(renewal), seq)
            except (Overtaken, Doubtful):
                continue
            await self.log.reach(stored)
            return self.term(owner) == began_in

    async def distrust(self) -> None:
        """Make every session suspect."""
        while True:
            await self.log.sync()
            new = Distrust(self.distrusted_at, self.set_time())
            try:
                seq = await self._write("distrust", encode(new), self._distrusted)
            except (Overtaken, Doubtful):
                continue
            await self.log.reach(seq)
            return

    async def _write(self, name: str, change: bytes, last: int | None) -> int:
        guard = "" if last is None else ON_SUBJECT
        return await self.log.write(f"{self._prefix}.{name}", change, b"", guard, last or 0)

    def _fold(self, message: Folded) -> None:
        change = decode(message.change)
        self._seen = (message.at_ms, self._loop.time())
        if isinstance(change, Renewal):
            self._fold_renewal(message, change)
        elif isinstance(change, Moment):
            self._moment = change.at or message.at_ms
        elif isinstance(change, Distrust):
            self._distrusted = message.seq
            self.distrusted_at = max(change.at or message.at_ms, change.before + 1)
        else:
            self.identity = change

    def _fold_renewal(self, message: Folded, change: Renewal) -> None:
        at, before = change.at or message.at_ms, self._leases.get(change.owner)
        # One that follows another than the last that was heard is not late because that had ended.
        late = before is not None and change.after in (None, before.seq) and before.until <= at
        term = message.seq if late else change.term
        self._leases[change.owner] = Lease(message.seq, term, at + change.lease_ms)
        # The renewal that began the term may have been trimmed: those after it name the term.
        if before is None or before.term != term:
            self._on_void(change.owner, term)


class Alarm:
    """Has a store distrusted that was seen to have lost something, over a connection of its own.

    What is seen once is enough, and what is folded already cannot be built upon.
    """

    def __init__(self, distrust: Callable[[], Awaitable[None]], patience: float) -> None:
        self._distrust = distrust
        self._patience = patience
        self._task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Something is gone that was there."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._until_done())

    async def close(self) -> None:
        """Wait until it is done, as long as for anything else."""
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._task, self._patience)

    async def _until_done(self) -> None:
        while True:
            try:
                await self._distrust()
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return
