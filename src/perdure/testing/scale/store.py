"""A store of many sessions, reduced to who owns which, what is due, and how long it takes.

It answers in the order of arrival, `lanes` requests at a time, so that what one node asks for is
felt by all others. Whether a lease is alive is for its own clock to say, at the moment at which a
request is served and not at that at which it was sent.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from perdure.core.errors import Unavailable
from perdure.core.ids import SessionId
from perdure.testing.scale.figures import Counter
from perdure.testing.simulation.clock import EPOCH_MS
from perdure.testing.simulation.loop import Process, VirtualLoop


class Costs(msgspec.Struct, frozen=True):
    """How long a store takes for what, in microseconds of one of its `lanes`.

    `latency_us` is the way to it, and the same back; a store that is away is noticed after
    `patience_us`. The defaults are what `python -m perdure.testing.scale.measure postgres` has
    found, with one request at a time.
    """

    lanes: int = 2
    latency_us: int = 250
    renew_us: int = 210
    scan_us: int = 150
    scan_row_us: float = 0.55
    unread_us: int = 40
    claim_us: int = 365
    refusal_us: int = 210
    release_us: int = 305
    patience_us: int = 1_000_000


def named(number: int) -> SessionId:
    """Return the name of a session."""
    return SessionId("tenant", "agent", str(number))


class ModelStore:
    """Rows of sessions by number, and the leases of nodes."""

    def __init__(self, loop: VirtualLoop, costs: Costs, sessions: int) -> None:
        self._loop = loop
        self._costs = costs
        self._lanes = [0] * costs.lanes
        self._owner: list[str | None] = [None] * sessions
        self._held: dict[str, set[int]] = {}
        self._lease_until_us: dict[str, int] = {}
        self._due: OrderedDict[SessionId, None] = OrderedDict()
        self._wakes: list[tuple[int, int]] = []
        self.away = False
        self.busy_us = 0
        self.wait_max_us = 0
        self.scan_rows = 0
        self.claims, self.won, self.scans = Counter(), Counter(), Counter()
        self.renewals = Counter()
        self.on_void: Callable[[list[int]], None] = lambda sessions: None

    # ------------------------------------------------------------------ what a scenario does to it

    def own(self, owner: str, sessions: Collection[int]) -> None:
        """Have a node own sessions, without asking anybody."""
        self._held.setdefault(owner, set()).update(sessions)
        for session in sessions:
            self._owner[session] = owner

    def held(self, owner: str) -> set[int]:
        """Return what a node owns."""
        return self._held.get(owner, set())

    def wake(self, at_us: int, session: int) -> None:
        """Have a parked session be due at a time."""
        heapq.heappush(self._wakes, (at_us, session))
        self._loop.schedule(self._loop.world, at_us, self._wake)

    def _wake(self) -> None:
        while self._wakes and self._wakes[0][0] <= self._loop.now_us:
            self._due[named(heapq.heappop(self._wakes)[1])] = None

    # ------------------------------------------------------------------------ what nodes ask of it

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Confirm a node's lease; False if it had run out."""
        self.renewals.count(self._loop.now_us)

        def apply() -> bool:
            now_us, until_us = self._loop.now_us, self._lease_until_us.get(owner)
            alive = until_us is not None and until_us > now_us
            if until_us is not None and not alive:
                self._void(owner)
            self._lease_until_us[owner] = now_us + lease_ms * 1000
            self._loop.schedule(
                self._loop.world, now_us + lease_ms * 1000, self._look_at_lease, owner
            )
            return alive

        return bool(await self._ask(self._costs.renew_us, apply))

    async def due(
        self, now: int, limit: int, agents: Collection[str] | None = None, reads: int | None = None
    ) -> tuple[list[SessionId], int | None]:
        """Return sessions that nobody runs and that are due, and the time of the next one."""
        self.scans.count(self._loop.now_us)
        rows = min(limit, len(self._due))

        def apply() -> tuple[list[SessionId], int | None]:
            found = list(itertools.islice(self._due, limit))
            self.scan_rows += len(found)
            next_at = EPOCH_MS + self._wakes[0][0] // 1000 if self._wakes else None
            return found, next_at

        cost_us = self._costs.scan_us + int(rows * self._costs.scan_row_us)
        result: tuple[list[SessionId], int | None] = await self._ask(cost_us, apply)
        return result

    async def unread(self, owner: str, limit: int) -> list[SessionId]:
        """Nothing is accepted here for sessions that are run."""
        await self._ask(self._costs.unread_us, lambda: None)
        return []

    async def claim(self, session: SessionId, owner: str) -> bool:
        """Take a session; False if another one has it."""
        self.claims.count(self._loop.now_us)
        number = int(session.key)

        def apply() -> bool:
            if session not in self._due:
                return False
            del self._due[session]
            self.won.count(self._loop.now_us)
            before = self._owner[number]
            if before is not None:
                self._held[before].discard(number)
            self._owner[number] = owner
            self._held.setdefault(owner, set()).add(number)
            if self._lease_until_us.get(owner, 0) <= self._loop.now_us:
                self._void(owner)
            return True

        taken = session not in self._due
        cost_us = self._costs.refusal_us if taken else self._costs.claim_us
        return bool(await self._ask(cost_us, apply))

    async def release(self, session: SessionId, owner: str, due: bool) -> None:
        """Give a session up; with `due` it is to be run on at once."""
        number = int(session.key)

        def apply() -> None:
            if self._owner[number] == owner:
                self._owner[number] = None
                self._held[owner].discard(number)
                if due:
                    self._due[session] = None

        await self._ask(self._costs.release_us, apply)

    # --------------------------------------------------------------------------------------- below

    def _look_at_lease(self, owner: str) -> None:
        if self._lease_until_us.get(owner, 0) <= self._loop.now_us:
            self._void(owner)

    def _void(self, owner: str) -> None:
        held = self._held.get(owner)
        if held:
            lost = [number for number in sorted(held) if named(number) not in self._due]
            self._due.update(dict.fromkeys(map(named, lost)))
            self.on_void(lost)

    def _ask(self, cost_us: int, apply: Callable[[], Any]) -> asyncio.Future[Any]:
        """Serve a request when its turn has come, and answer the process that made it."""
        loop, latency_us = self._loop, self._costs.latency_us
        asker = loop.current
        answer: asyncio.Future[Any] = loop.create_future()
        if self.away:
            at_us = loop.now_us + self._costs.patience_us
            loop.schedule(asker, at_us, _fail, answer)
            return answer
        arrival_us = loop.now_us + latency_us
        start_us = max(arrival_us, heapq.heappop(self._lanes))
        end_us = start_us + cost_us
        heapq.heappush(self._lanes, end_us)
        self.busy_us += cost_us
        self.wait_max_us = max(self.wait_max_us, start_us - arrival_us)
        loop.schedule(loop.world, end_us, self._serve, apply, answer, asker, end_us + latency_us)
        return answer

    def _serve(
        self, apply: Callable[[], Any], answer: asyncio.Future[Any], asker: Process, at_us: int
    ) -> None:
        self._loop.schedule(asker, at_us, _give, answer, apply())


def _give(answer: asyncio.Future[Any], result: Any) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(Unavailable("the store is away"))
