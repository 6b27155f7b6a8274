"""What the tests of PostgreSQL's failures have in common: owners at work, and a wire to cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from perdure.adapters.stores.postgres import PostgresStore
from perdure.core.codec import verify_chain
from perdure.core.errors import StoreError
from perdure.core.ids import SessionId
from perdure.testing.conformance.claimant import SESSION, Claimant, claim, entry

LEASE_MS = 600_000
MET_SECONDS_MAX = 30.0


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresStore]:
    """Open a store and close it."""
    store = await PostgresStore.open(url, **options)
    try:
        yield store
    finally:
        await store.close()


class Owner:
    """Commits one step after the other, two at a time, and notes what was acknowledged."""

    def __init__(self, store: PostgresStore, claimant: Claimant) -> None:
        self.claimant = claimant
        self.acknowledged = claimant.version
        self.error: StoreError | None = None
        self.resting = asyncio.Event()
        self._store = store
        self._under_way = 0
        self._stopping = False

    @property
    def session(self) -> SessionId:
        """The session that it owns."""
        return self.claimant.session

    def work(self) -> None:
        """Commit what comes next, ahead of what is durable."""
        for _ in range(2):
            step = self.claimant.step(b"x" * 100, b"y")
            self._under_way += 1
            self._store.commit(step, lambda error, at=step.expected + 2: self._learn(at, error))

    def stop(self) -> None:
        """Commit no more."""
        self._stopping = True

    def _learn(self, version: int, error: StoreError | None) -> None:
        self._under_way -= 1
        if error is not None:
            self.error = error
        elif self.error is None:
            self.acknowledged = version
        if self._under_way == 0:
            if self._stopping or self.error is not None:
                self.resting.set()
            else:
                self.work()


@asynccontextmanager
async def at_work(store: PostgresStore, count: int, name: str = "s") -> AsyncIterator[list[Owner]]:
    """Have so many owners at work, and stop them at the end."""
    await store.renew("node", LEASE_MS)
    sessions = [SESSION._replace(key=f"{name}{n}") for n in range(count)]
    await asyncio.gather(*(store.accept(entry("first", session=one)) for one in sessions))
    claimed = await asyncio.gather(*(claim(store, one, nonce=one.key) for one in sessions))
    owners = [Owner(store, claimant) for claimant in claimed]
    for owner in owners:
        owner.work()
    yield owners
    for owner in owners:
        owner.stop()
    await asyncio.wait_for(
        asyncio.gather(*(owner.resting.wait() for owner in owners)), MET_SECONDS_MAX
    )


async def progress(owners: list[Owner], steps: int) -> None:
    """Wait until all owners together have got on by so many steps."""

    def done() -> int:
        return sum(owner.acknowledged for owner in owners)

    wanted = done() + 2 * steps
    await met(lambda: done() >= wanted)


async def met(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + MET_SECONDS_MAX
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def check(store: PostgresStore, owners: list[Owner]) -> None:
    """Check that every log is whole, holds all that was acknowledged, and nothing refused."""
    for owner in owners:
        log = await store.read(owner.session, 0, 1_000_000)
        verify_chain(owner.claimant.loaded.head, 0, log)
        assert owner.error is None, owner.error
        assert len(log) == owner.acknowledged == owner.claimant.version


class Wire:
    """A way to a server that can lose the server's next answers, and then itself."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.cuts = 0
        self._to = port
        self._armed = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Take a port."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def lose_answers(self, longer_than: int) -> None:
        """Lose the answer to the next request of more bytes than this, and the connection."""
        self._armed = longer_than

    async def close(self) -> None:
        """Cut everything."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection("127.0.0.1", self._to)
        lost = asyncio.Event()

        async def requests() -> None:
            while data := await near.read(1 << 20):
                if self._armed and len(data) > self._armed:
                    self._armed = 0
                    lost.set()
                forth.write(data)

        async def answers() -> None:
            while data := await far.read(1 << 20):
                if lost.is_set():
                    self.cuts += 1
                    return
                back.write(data)

        tasks = {asyncio.ensure_future(requests()), asyncio.ensure_future(answers())}
        self._tasks |= tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for writer in (back, forth):
                writer.close()
