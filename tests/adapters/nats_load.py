"""Owners that write as fast as they can, whatever happens to the servers, and an auditor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from perdure.adapters.stores.nats import NatsStore
from perdure.core.codec import genesis, verify_chain
from perdure.core.errors import StoreError, Unavailable
from perdure.core.ids import SessionId
from perdure.ports.session_store import Claimed, StepCommit
from perdure.testing.conformance.claimant import Claimant, entry

OWNER = "node"
LEASE_MS = 60_000
PROGRESS_SECONDS_MAX = 30.0


class Load:
    """Some sessions of one node. `acknowledged` are the bodies that a store said were written.

    With `pause_seconds` a session rests that long after each commit.
    """

    def __init__(self, url: str, sessions: int, pause_seconds: float = 0) -> None:
        self.url = url
        self.pause_seconds = pause_seconds
        self.sessions = [SessionId("tenant", "agent", str(n)) for n in range(sessions)]
        self.acknowledged: dict[SessionId, list[tuple[int, bytes]]] = {
            session: [] for session in self.sessions
        }
        self.accepted: dict[SessionId, list[str]] = {session: [] for session in self.sessions}
        self.refused: list[str] = []
        self.store: NatsStore
        self._ends = False
        self._news = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write until the block ends."""
        self.store = await NatsStore.open(self.url)
        await self.store.renew(OWNER, LEASE_MS)
        writing = [asyncio.create_task(self._write(session)) for session in self.sessions]
        try:
            yield
            self._ends = True
            await asyncio.wait_for(asyncio.gather(*writing), PROGRESS_SECONDS_MAX)
        finally:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
            await self.store.close()

    async def progress(self, commits: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = self.count + commits
        await self.until(lambda: self.count >= wanted)

    async def progress_of_all(self) -> None:
        """Wait until one more of each session is acknowledged."""
        before = {session: len(told) for session, told in self.acknowledged.items()}
        await self.until(lambda: all(len(self.acknowledged[s]) > before[s] for s in before))

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so that is so after a commit or a refusal."""

        async def wait() -> None:
            while not reached():
                self._news.clear()
                await self._news.wait()

        await asyncio.wait_for(wait(), PROGRESS_SECONDS_MAX)

    @property
    def count(self) -> int:
        """How many commits were acknowledged."""
        return sum(map(len, self.acknowledged.values()))

    async def audit(self) -> None:
        """Read everything anew, and compare it with what was acknowledged."""
        store = await NatsStore.open(self.url)
        try:
            for session in self.sessions:
                records = await store.read(session, 0, 1_000_000)
                bodies = {record.seq: record.body for record in records}
                for seq, body in self.acknowledged[session]:
                    assert bodies.get(seq) == body, f"{session} lost {seq}"
                loaded = await store.load(session)
                assert loaded is not None
                assert verify_chain(genesis(session), 0, records) == loaded.head
                for name in self.accepted[session]:
                    known = await store.accept(entry(name, session=session))
                    assert known.duplicate, f"{session} lost {name}"
        finally:
            await store.close()

    async def _write(self, session: SessionId) -> None:
        n = 0
        while not self._ends:
            try:
                n += 1
                await self.store.accept(entry(f"{n}", session=session))
                self.accepted[session].append(f"{n}")
                claimed = await self.store.claim(session, OWNER, f"nonce{n}")
                assert isinstance(claimed, Claimed), claimed
                owner = Claimant(claimed)
                while not self._ends:
                    await self._commit(owner)
                    if self.pause_seconds:
                        await asyncio.sleep(self.pause_seconds)
            except Unavailable as error:
                self.refused.append(type(error).__name__)
                self._news.set()

    async def _commit(self, owner: Claimant) -> None:
        told: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()
        body = b"%d of %d" % (owner.version + 1, owner.token.epoch)
        step: StepCommit = owner.step(body)
        self.store.commit(step, told.set_result)
        error = await told
        if error is not None:
            raise error
        self.acknowledged[owner.session].append((step.expected + 1, body))
        self._news.set()
