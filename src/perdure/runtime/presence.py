"""Presence: this node's place among the others, and who of them is there.

It announces the node a few times in the lifetime of its card, apart from the heartbeat: that this
is slow, or fails, costs no lease.
"""

from __future__ import annotations

import asyncio
import functools
from bisect import bisect
from collections.abc import Callable, Iterable
from hashlib import blake2b
from struct import unpack

from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.ports.clock import Clock, Timer
from perdure.ports.cluster import Cluster, NodeCard
from perdure.ports.telemetry import Telemetry

ANNOUNCED_EVERY_PART = 3
"""How often a card is announced in its lifetime."""
PLACES_MAX = 7
"""How many nodes are asked, one after the other, before anybody may take a session."""
RING_PARTS = 8
"""A node has eight times as many places on the ring: the shares differ by an eighth or so."""


class Presence:
    """Announces a node, and keeps who else was there the last time it looked."""

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        telemetry: Telemetry,
        lifetime_ms: int,
        card: Callable[[], NodeCard],
        on_message: Callable[[bytes], None],
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._telemetry = telemetry
        self._lifetime_ms = lifetime_ms
        self._card = card
        self._on_message = on_message
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._names: tuple[str, ...] = ()
        self._ring = _ring(())
        self.nodes: list[NodeCard] = []
        """Who was there the last time, this node included."""

    async def start(self) -> None:
        """Join the cluster. Raises `Unavailable` if it cannot be reached."""
        await self._cluster.join(self._card(), self._lifetime_ms, self._on_message)
        await self._look()
        self._arm()

    async def announce(self) -> None:
        """Say now how this node is: that it drains, for one."""
        try:
            await self._cluster.announce(self._card())
        except PerdureError as error:
            self._telemetry.emit("cluster.unavailable", error=str(error))

    async def stop(self) -> None:
        """Leave the cluster."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._cluster.leave()

    def drains(self, node: str) -> None:
        """Note, before its card says so, that a node takes no sessions any more."""
        self._see([card for card in self.nodes if card.id != node])

    def place(self, session: SessionId) -> int:
        """Say how many of the nodes that are there should rather take a session than this one.

        It is counted up to `PLACES_MAX`.
        """
        me, first = self._card().id, self.first(session)
        return first.index(me) if me in first else len(first)

    def first(self, session: SessionId) -> list[str]:
        """Return up to `PLACES_MAX` nodes that should take a session, the best one first.

        Every node ranks them alike (by a ring of hashes), so that not all of them claim the same
        sessions at the same time.
        """
        ring, found = self._ring, list[str]()
        at = bisect(ring, (_points(session)[0], ""))
        for step in range(len(ring)):
            node = ring[(at + step) % len(ring)][1]
            if node not in found:
                found.append(node)
                if len(found) == PLACES_MAX:
                    break
        return found

    def _arm(self) -> None:
        if not self._stopped:
            delay_ms = self._lifetime_ms // ANNOUNCED_EVERY_PART
            self._timer = self._clock.call_later(delay_ms, self._wake)

    def _wake(self) -> None:
        self._task = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        await self.announce()
        await self._look()
        self._arm()

    async def _look(self) -> None:
        try:
            self._see(await self._cluster.nodes())
        except PerdureError as error:
            self._telemetry.emit("cluster.unavailable", error=str(error))

    def _see(self, nodes: list[NodeCard]) -> None:
        self.nodes = nodes
        self._names = tuple(card.id for card in nodes if not card.draining)
        self._ring = _ring(self._names)


@functools.lru_cache(maxsize=8)
def _ring(names: tuple[str, ...]) -> list[tuple[int, str]]:
    """Return the nodes in the order in which they come on the ring, each at many places."""
    parts = [(str(part), name) for name in names for part in range(RING_PARTS)]
    return sorted((point, part[1]) for part in parts for point in _points(part))


def _points(name: Iterable[str]) -> tuple[int, ...]:
    """Return eight places on the ring that belong to a name alone."""
    return unpack("8Q", blake2b("\x1f".join(name).encode()).digest())
