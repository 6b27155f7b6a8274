"""Machines and the lives of their nodes: started, killed, paused, drained, and started again."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from perdure.adapters.models import resolve
from perdure.core.errors import PerdureError
from perdure.runtime.agents import Registered
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.testing.simulation.cast import Cast
from perdure.testing.simulation.clock import VirtualClock
from perdure.testing.simulation.loop import Died, Process, VirtualLoop
from perdure.testing.simulation.observer import Observer
from perdure.testing.simulation.store import Connection, Server
from perdure.testing.simulation.weather import Weather
from perdure.testing.simulation.workers import FlakyWorker
from perdure.worker import LocalWorker

SETTINGS = NodeSettings(
    lease_ms=5_000, scan_interval_ms=4_000, linger_ms=400, drain_ms=5_000, scan_batch_sessions=16
)


class Teller:
    """A node's telemetry: the observer hears everything."""

    def __init__(self, observer: Observer, life: str) -> None:
        self._observer = observer
        self._life = life

    def emit(self, name: str, **fields: Any) -> None:
        """Hand a fact on."""
        self._observer.emit(self._life, name, fields)


class Trap(NamedTuple):
    """What befalls a process when it reaches a fault point the n-th time: death, or a pause."""

    site: str
    hits: int
    pause_us: int = 0


class Life:
    """One life of a node: a process with a connection, a worker, and the real runtime."""

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        loop: VirtualLoop,
        server: Server,
        weather: Weather,
        chance: random.Random,
        observer: Observer,
        cast: Cast,
    ) -> None:
        self.name = name
        self.process = Process(name)
        self.started = False
        self.stopping = False
        self.over = False
        self.armed: Trap | None = None
        self._loop = loop
        self._observer = observer
        before, loop.current = loop.current, self.process
        local = LocalWorker(cast.agents, resolve, clock)
        connection = Connection(server, loop, self.process, weather, chance)
        self.node = Node(
            connection,
            [FlakyWorker(local, loop, name, weather, chance.random, observer)],
            Registered(cast.definitions),
            clock,
            Teller(observer, name),
            settings=SETTINGS,
        )
        loop.current = before

    @property
    def failed(self) -> bool:
        """Say whether the node gave up: its process ends."""
        return self.node.failure is not None

    @property
    def serving(self) -> bool:
        """Say whether a client can ask this node something."""
        return self.started and not (
            self.stopping or self.over or self.process.paused or self.process.dead or self.failed
        )

    async def start(self) -> None:
        """Begin to serve; a store that does not answer ends the process."""
        try:
            await self.node.start()
            self.started = True
        except PerdureError:
            self.end()

    async def stop(self) -> None:
        """Drain, and end."""
        self.stopping = True
        try:
            await self.node.stop()
        finally:
            self.end()

    def end(self) -> None:
        """The process is no more."""
        self.over = True
        self.process.dead = True

    def kill(self, site: str | None = None) -> None:
        """End the process without a word."""
        if not self.over:
            self._observer.died(self.name, site)
            self.end()

    def reach(self, site: str) -> int:
        """A fault point was reached: the process dies there, if that was planned.

        Or it is to be paused: then for how long is returned, in microseconds, and 0 otherwise.
        """
        trap = self.armed
        if trap is None or trap.site != site:
            return 0
        if trap.hits > 1:
            self.armed = trap._replace(hits=trap.hits - 1)
            return 0
        self.armed = None
        if trap.pause_us:
            return trap.pause_us
        self.kill(site)
        raise Died


class Machine:
    """Where a node lives: it keeps its clock through all lives."""

    def __init__(self, name: str, loop: VirtualLoop, chance: random.Random) -> None:
        self.name = name
        self.clock = VirtualClock(loop, name, chance)
        self.lives = 0
        self.curses = 0
        self.life: Life | None = None
        self.restarting = False
