"""Presence: this node's place among the others, and who of them is there.

It announces the node a few times in the lifetime of its card, apart from the heartbeat: that this
is slow, or fails, costs no lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b

from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.ports.clock import Clock, Timer
from perdure.ports.cluster import Cluster, NodeCard
from perdure.ports.telemetry import Telemetry

ANNOUNCED_EVERY_PART = 3
"""How often a card is announced in its lifetime."""


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
        self.nodes = [card for card in self.nodes if card.id != node]

    def prefers_me(self, session: SessionId) -> bool:
        """Say whether this node is the one of all that are there that should take a session.

        Every node answers alike (rendezvous hashing), so that not all of them claim the same
        sessions at the same time.
        """
        me = self._card().id
        candidates = [card.id for card in self.nodes if not card.draining] or [me]
        return max(candidates, key=lambda node: _weight(node, session)) == me

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
            self.nodes = await self._cluster.nodes()
        except PerdureError as error:
            self._telemetry.emit("cluster.unavailable", error=str(error))


def _weight(node: str, session: SessionId) -> bytes:
    return blake2b("\x1f".join((node, *session)).encode(), digest_size=8).digest()
