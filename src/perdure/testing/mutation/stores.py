"""Broken stores: each mutant wraps the methods of the port, so that it breaks every store alike."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import cycle
from typing import Any
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteStore
from perdure.core.errors import InvalidInput, StoreError
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.core.state import decode_snapshot, encode_snapshot
from perdure.ports.session_store import (
    Claimed,
    CommitDone,
    InboxEntry,
    NotClaimed,
    Receipt,
    RunQuery,
    StepCommit,
    Token,
)
from perdure.testing.mutation.patches import Patches

LOCAL_STORES = (MemoryStore, SqliteStore)
DRIVERS = ("postgres.PostgresStore", "redis.RedisStore", "nats.NatsStore")


def _drivers() -> Iterator[type]:
    """Yield the stores that nodes share whose extra is installed."""
    for name in DRIVERS:
        module, _, kind = name.partition(".")
        with suppress(ImportError, InvalidInput):
            yield getattr(import_module(f"perdure.adapters.stores.{module}"), kind)


STORES: tuple[type, ...] = (*LOCAL_STORES, *_drivers())
CLOCK_AHEAD_MS = 2 * 3_600_000
LATE_SECONDS = 0.01
"""How much too late a mutant writes: longer than the calls that it wrongly lets go first."""

Thunk = Callable[[], Awaitable[None]]


class PerSession:
    """What a mutant knows of the sessions of each store.

    Clients of one server have one store, which its identity names; the stores of one process are
    what they are, by whatever name.
    """

    def __init__(self) -> None:
        self._by_object: WeakKeyDictionary[Any, dict[SessionId, Any]] = WeakKeyDictionary()
        self._by_identity: dict[str, dict[SessionId, Any]] = {}

    def of(self, store: Any) -> dict[SessionId, Any]:
        """Return what is known of the sessions of a store."""
        if isinstance(store, LOCAL_STORES):
            return self._by_object.setdefault(store, {})
        return self._by_identity.setdefault(store.identity, {})


def no_fence(patches: Patches) -> None:
    """Write every step under the token of the latest claim, whatever token it carries."""
    latest = PerSession()

    def claim(original: Any) -> Any:
        async def noting(self: Any, session: SessionId, *claimant: Any) -> Any:
            found = await original(self, session, *claimant)
            if isinstance(found, Claimed):
                latest.of(self)[session] = found.token
            return found

        return noting

    def commit(original: Any) -> Any:
        def unfenced(self: Any, step: StepCommit, done: CommitDone) -> None:
            token = latest.of(self).get(step.session, step.token)
            original(self, replace(step, token=token), done)

        return unfenced

    for store in STORES:
        patches.method(store, "claim", claim)
        patches.method(store, "commit", commit)


def version_not_checked(patches: Patches) -> None:
    """Append the records of a step after whatever is there."""
    versions = PerSession()

    def claim(original: Any) -> Any:
        async def noting(self: Any, session: SessionId, *claimant: Any) -> Any:
            found = await original(self, session, *claimant)
            if isinstance(found, Claimed):
                versions.of(self)[session] = found.loaded.version
            return found

        return noting

    def commit(original: Any) -> Any:
        def anyhow(self: Any, step: StepCommit, done: CommitDone) -> None:
            known = versions.of(self)
            version = known.get(step.session, step.expected)
            moved = tuple(one._replace(seq=version + n) for n, one in enumerate(step.records, 1))
            known[step.session] = version + len(moved)

            def told(error: StoreError | None) -> None:
                if error is not None:
                    known[step.session] -= len(moved)
                done(error)

            original(self, replace(step, expected=version, records=moved), told)

        return anyhow

    for store in STORES:
        patches.method(store, "claim", claim)
        patches.method(store, "commit", commit)


def claim_ignores_lease(patches: Patches) -> None:
    """Let a claim take a session away from an owner that is alive."""

    def claim(original: Any) -> Any:
        async def stealing(self: Any, session: SessionId, *claimant: Any) -> Any:
            found = await original(self, session, *claimant)
            if isinstance(found, NotClaimed) and found.why == "held":
                await self.release(session, None)
                found = await original(self, session, *claimant)
            return found

        return stealing

    for store in STORES:
        patches.method(store, "claim", claim)


def lost_claim_goes_on(patches: Patches) -> None:
    """Let whoever loses a claim go on with what it has read, as if nobody counted rows."""

    def claim(original: Any) -> Any:
        async def careless(self: Any, session: SessionId, *claimant: Any) -> Any:
            found = await original(self, session, *claimant)
            if isinstance(found, NotClaimed) and found.why == "held":
                return Claimed(Token(0, claimant[1]), await self.load(session))
            return found

        return careless

    for store in STORES:
        patches.method(store, "claim", claim)


def load_before_claim(patches: Patches) -> None:
    """Read a session, and claim it afterwards."""

    def claim(original: Any) -> Any:
        async def late(self: Any, session: SessionId, *more: Any, **named: Any) -> Any:
            before = await self.load(session)
            await asyncio.sleep(LATE_SECONDS)
            found = await original(self, session, *more, **named)
            return Claimed(found.token, before) if isinstance(found, Claimed) else found

        return late

    for store in STORES:
        patches.method(store, "claim", claim)


def lease_by_node_clock(patches: Patches) -> None:
    """Decide by the clock of a node whether a lease is alive; every other one is hours ahead."""

    class Misled:
        def __init__(self, clock: Any) -> None:
            self._now = clock if callable(clock) else clock.now_ms
            self.ahead_ms = 0

        def now_ms(self) -> int:
            now: int = self._now()
            return now + self.ahead_ms

        def believe(self, now: int) -> None:
            self.ahead_ms = now - self._now()

    clocks: WeakKeyDictionary[Any, Misled] = WeakKeyDictionary()

    def made(original: Any) -> Any:
        def init(self: Any, clock: Any, *more: Any, **named: Any) -> None:
            clocks[self] = Misled(clock)
            original(self, clocks[self], *more, **named)

        return init

    def opened(original: Any) -> Any:
        async def opening(cls: Any, path: Any, clock: Any, **named: Any) -> Any:
            misled = Misled(clock)
            store = await original(cls, path, misled, **named)
            clocks[store] = misled
            return store

        return opening

    def due(original: Any) -> Any:
        async def believing(self: Any, now: int, *more: Any, **named: Any) -> Any:
            if self in clocks:
                clocks[self].believe(now)
            return await original(self, now, *more, **named)

        return believing

    patches.method(MemoryStore, "__init__", made)
    patches.method(SqliteStore, "open", opened)
    for local in LOCAL_STORES:
        patches.method(local, "due", due)
    ahead_ms = cycle((0, CLOCK_AHEAD_MS))

    def by_own_clock(original: Any) -> Any:
        async def opening(cls: Any, url: Any, **named: Any) -> Any:
            misled = Misled(lambda: time.time_ns() // 1_000_000)
            misled.ahead_ms = next(ahead_ms)
            return await original(cls, url, misled, **named)

        return opening

    for driver in STORES[len(LOCAL_STORES) :]:
        patches.method(driver, "open", by_own_clock)


def snapshot_ahead(patches: Patches) -> None:
    """Keep a snapshot of a state that the log has not reached."""

    def ahead(body: bytes) -> bytes:
        state = decode_snapshot(body)
        return body if state is None else encode_snapshot(replace(state, version=state.version + 1))

    def commit(original: Any) -> Any:
        def early(self: Any, step: StepCommit, done: CommitDone) -> None:
            if step.snapshot is not None:
                step = replace(step, snapshot=ahead(step.snapshot))
            original(self, step, done)

        return early

    for store in STORES:
        patches.method(store, "commit", commit)


class _Queue:
    """Writes that a mutant puts off: done in order, one after the other, some time later."""

    def __init__(self, late_seconds: float) -> None:
        self._late_seconds = late_seconds
        self._waiting: list[Thunk] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def put(self, thunk: Thunk) -> None:
        self._waiting.append(thunk)
        if not self.busy:
            self._task = asyncio.ensure_future(self._run())

    async def drained(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        if self._late_seconds:
            loop = asyncio.get_running_loop()
            late = loop.create_future()
            loop.call_later(self._late_seconds, late.set_result, None)
            await late
        while self._waiting:
            await self._waiting.pop(0)()


def _put_off(patches: Patches, late_seconds: float) -> Callable[[Any], _Queue]:
    """Let every other method of a store wait for what was put off; return the queue of a store."""
    queues: dict[Any, _Queue] = defaultdict(lambda: _Queue(late_seconds))

    def waiting(original: Any) -> Any:
        async def after_all(self: Any, *more: Any, **named: Any) -> Any:
            await queues[id(self)].drained()
            return await original(self, *more, **named)

        return after_all

    for store in STORES:
        for name in ("claim", "load", "release", "read", "close"):
            patches.method(store, name, waiting)
    return lambda store: queues[id(store)]


async def _committed(original: Any, store: Any, step: StepCommit) -> StoreError | None:
    told: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()
    original(store, step, told.set_result)
    return await told


def ack_before_commit(patches: Patches) -> None:
    """Tell the owner that a step is durable, and write it afterwards."""
    queue_of = _put_off(patches, LATE_SECONDS)

    def commit(original: Any) -> Any:
        def hasty(self: Any, step: StepCommit, done: CommitDone) -> None:
            async def write() -> None:
                await _committed(original, self, step)

            queue_of(self).put(write)
            asyncio.get_running_loop().call_soon(done, None)

        return hasty

    for store in STORES:
        patches.method(store, "commit", commit)


def commit_late(patches: Patches) -> None:
    """Write every step late, and tell honestly; alone this breaks nothing."""
    queue_of = _put_off(patches, LATE_SECONDS)

    def commit(original: Any) -> Any:
        def late(self: Any, step: StepCommit, done: CommitDone) -> None:
            async def write() -> None:
                done(await _committed(original, self, step))

            queue_of(self).put(write)

        return late

    for store in STORES:
        patches.method(store, "commit", commit)


def receipt_before_commit(patches: Patches) -> None:
    """Give the receipt of a message, and write the message afterwards."""
    queue_of = _put_off(patches, LATE_SECONDS)

    def accept(original: Any) -> Any:
        async def hasty(
            self: Any, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
        ) -> Receipt:
            await queue_of(self).drained()
            known = RunQuery(tenant=entry.session.tenant, run=entry.id, limit=1)
            if row is None or await self.list(known):
                receipt: Receipt = await original(self, entry, row, generation)
                return receipt

            async def write() -> None:
                await original(self, entry, row, generation)

            queue_of(self).put(write)
            return Receipt(entry.id, entry.session, self.durability)

        return hasty

    def commit(original: Any) -> Any:
        def after_all(self: Any, step: StepCommit, done: CommitDone) -> None:
            async def write() -> None:
                done(await _committed(original, self, step))

            if queue_of(self).busy:
                queue_of(self).put(write)
            else:
                original(self, step, done)

        return after_all

    for store in STORES:
        patches.method(store, "accept", accept)
        patches.method(store, "commit", commit)


def _in_two(patches: Patches, split: Callable[[StepCommit], tuple[StepCommit, StepCommit]]) -> None:
    queue_of = _put_off(patches, 0)

    def commit(original: Any) -> Any:
        def twice(self: Any, step: StepCommit, done: CommitDone) -> None:
            async def write() -> None:
                first, second = split(step)
                error = await _committed(original, self, first)
                done(error or await _committed(original, self, second))

            async def whole() -> None:
                done(await _committed(original, self, step))

            splits = len(step.records) > 1
            queue_of(self).put(write if splits else whole)

        return twice

    for store in STORES:
        patches.method(store, "commit", commit)


def result_in_two_commits(patches: Patches) -> None:
    """Write the first event of a step, and what follows from it in a commit of its own."""

    def split(step: StepCommit) -> tuple[StepCommit, StepCommit]:
        head, rest = step.records[:1], step.records[1:]
        first = replace(step, records=head, rows=(), snapshot=None)
        return first, replace(step, records=rest, expected=step.expected + 1, consumed=())

    _in_two(patches, split)


def inbox_apart(patches: Patches) -> None:
    """Write the events of a step, and settle the inbox in a commit of its own."""

    def split(step: StepCommit) -> tuple[StepCommit, StepCommit]:
        after = step.expected + len(step.records)
        first = replace(step, consumed=())
        return first, replace(step, records=(), expected=after, snapshot=None)

    _in_two(patches, split)
