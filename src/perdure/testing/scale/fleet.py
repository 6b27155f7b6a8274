"""Nodes of a fleet: the real heartbeat, recovery and presence, and of the host what they touch.

A host keeps up to `activations_max` claims under way, and its one event loop takes up the sessions
that it got one after the other. A session stays where it is until its node dies, drains or is
fenced; one that was woken is let go again when its work is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec

from perdure.adapters.cluster.memory import Hub, MemoryCluster
from perdure.core.errors import Fenced, StoreError
from perdure.core.ids import SessionId
from perdure.ports.cluster import NodeCard
from perdure.ports.session_store import SessionStore
from perdure.runtime.agents import Registered
from perdure.runtime.heartbeat import Heartbeat
from perdure.runtime.presence import Presence
from perdure.runtime.probation import Probation
from perdure.runtime.recovery import Recovery
from perdure.runtime.settings import NodeSettings
from perdure.testing.scale.store import ModelStore, named
from perdure.testing.simulation.clock import VirtualClock
from perdure.testing.simulation.loop import Process, VirtualLoop

OnTaken = Callable[[int], None]


class Policy(msgspec.Struct, frozen=True):
    """How nodes come to share the work: unless it is `shared`, whoever sees a session claims it."""

    settings: NodeSettings
    shared: bool = True


class Silence:
    """Telemetry that nobody reads."""

    def emit(self, name: str, **fields: Any) -> None:
        """Drop one fact."""


class Host:
    """The sessions of a node: those it has, and those it is about to have."""

    def __init__(
        self,
        loop: VirtualLoop,
        store: ModelStore,
        owner: str,
        settings: NodeSettings,
        activate_us: int,
        on_taken: OnTaken,
    ) -> None:
        self.work_of: Callable[[int], int | None] = lambda number: None
        """How long a session is run until it is parked again, in milliseconds; None: for good."""
        self._loop = loop
        self._store = store
        self._owner = owner
        self._settings = settings
        self._activate_us = activate_us
        self._on_taken = on_taken
        self._waiting: deque[SessionId] = deque()
        self._under_way = 0
        self._free_at_us = 0
        self._loading: set[SessionId] = set()
        self._generation = 0
        self.sessions: set[int] = set()
        self.draining = False

    def active(self) -> int:
        """Return how many sessions are loaded or being loaded."""
        return len(self.sessions) + len(self._loading)

    def activate(self, session: SessionId) -> None:
        """Claim a session when there is room for it, if it is not here already."""
        if self.draining or session in self._loading or int(session.key) in self.sessions:
            return
        self._loading.add(session)
        self._waiting.append(session)
        self._claim_more()

    def lose_all(self) -> None:
        """Drop every session."""
        self._generation += 1
        self.sessions.clear()

    async def release_all(self) -> None:
        """Let every session go, as a drain does."""
        self.draining = True
        self._waiting.clear()
        while self.sessions:
            batch = [self.sessions.pop() for _ in range(min(len(self.sessions), 512))]
            await asyncio.gather(
                *(self._store.release(named(one), self._owner, due=True) for one in batch)
            )

    def _claim_more(self) -> None:
        while self._waiting and self._under_way < self._settings.activations_max:
            self._under_way += 1
            self._spawn(self._claim(self._waiting.popleft(), self._generation))

    async def _claim(self, session: SessionId, generation: int) -> None:
        taken = False
        with contextlib.suppress(StoreError):
            taken = await self._store.claim(session, self._owner)
        self._under_way -= 1
        if taken and generation != self._generation:
            await self._store.release(session, self._owner, due=True)
            self._loading.discard(session)
        elif taken:
            now_us = self._loop.now_us
            self._free_at_us = max(now_us, self._free_at_us) + self._activate_us
            self._loop.schedule(self._loop.current, self._free_at_us, self._run, session)
        else:
            self._loading.discard(session)
        self._claim_more()

    def _run(self, session: SessionId) -> None:
        self._loading.discard(session)
        self.sessions.add(int(session.key))
        self._on_taken(int(session.key))
        work_ms = self.work_of(int(session.key))
        if work_ms is not None:
            at_us = self._loop.now_us + work_ms * 1000
            self._loop.schedule(self._loop.current, at_us, self._park, session)

    def _park(self, session: SessionId) -> None:
        if int(session.key) in self.sessions:
            self.sessions.discard(int(session.key))
            self._spawn(self._store.release(session, self._owner, due=False))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.spawn(self._loop.current, work)


class SharedPresence(Presence):
    """Presence that works out who comes first once for all who know of the same nodes."""

    _worked_out: tuple[tuple[str, ...], dict[SessionId, list[str]]] | None = None

    def first(self, session: SessionId) -> list[str]:
        """Return the nodes that should take a session."""
        if self._worked_out is None or self._worked_out[0] is not self._names:
            self._worked_out = self._names, _worked_out_among(self._names)
        known = self._worked_out[1]
        first = known.get(session)
        if first is None:
            first = known[session] = super().first(session)
        return first


@functools.lru_cache(maxsize=64)
def _worked_out_among(names: tuple[str, ...]) -> dict[SessionId, list[str]]:
    return {}


class Node:
    """One life of a node."""

    def __init__(
        self,
        loop: VirtualLoop,
        store: ModelStore,
        hub: Hub,
        policy: Policy,
        name: str,
        chance: random.Random,
        activate_us: int,
        on_taken: OnTaken,
    ) -> None:
        clock = VirtualClock(loop, name, chance)
        settings, port = policy.settings, cast(SessionStore, store)
        self.owner = clock.fresh_id()
        self.process = Process(name)
        self.fences = 0
        self.host = Host(loop, store, self.owner, settings, activate_us, on_taken)
        self._loop = loop
        self._clock = clock
        self.heartbeat = Heartbeat(
            port, clock, self.owner, settings.lease_ms, self._lease_lost, lambda: None
        )
        self._cluster = MemoryCluster(hub)
        self.presence = SharedPresence(
            self._cluster, clock, Silence(), settings.lease_ms, self._card, self._hear
        )
        self.recovery = Recovery(
            port,
            Registered({}),
            self.host.activate,
            self.host.active,
            Probation(clock, settings.probation_ms),
            clock,
            Silence(),
            settings,
            self.owner,
            lambda session: None,
        )
        self.recovery.holds = self.heartbeat.holds
        if policy.shared:
            self.recovery.place = self.presence.place
            self.recovery.peers = lambda: len(self.presence.nodes)
        else:
            self.recovery.place = lambda session: 0

    def start(self) -> asyncio.Task[None]:
        """Begin to live."""
        return self._loop.spawn(self.process, self._start())

    def drain(self) -> asyncio.Task[None]:
        """Let everything go, and leave."""
        return self._loop.spawn(self.process, self._drain())

    def kill(self) -> None:
        """Die at once."""
        self.process.dead = True

    async def _start(self) -> None:
        await self.heartbeat.start()
        await self.presence.start()
        await self.recovery.run_once()

    async def _drain(self) -> None:
        await self.recovery.stop()
        self.host.draining = True
        await self.presence.announce()
        self._cluster.send(None, self.owner.encode())
        await self.host.release_all()
        self._cluster.send(None, self.owner.encode())
        await self.heartbeat.stop()
        await self.presence.stop()
        self.process.dead = True

    def _card(self) -> NodeCard:
        return NodeCard(
            id=self.owner, draining=self.host.draining, sessions=len(self.host.sessions)
        )

    def _hear(self, message: bytes) -> None:
        self._loop.schedule(self.process, self._loop.now_us, self._released, message.decode())

    def _released(self, node: str) -> None:
        self.presence.drains(node)
        self.recovery.nudge(self._clock.now_ms())

    def _lease_lost(self, error: StoreError) -> None:
        if isinstance(error, Fenced):
            self.fences += 1
            self.host.lose_all()
