"""A bus that loses, repeats and reorders what is sent, as any bus may."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from perdure.ports.cluster import Cluster, NodeCard, OnMessage


class BadBus:
    """Hands on to a cluster what it does not spoil; presence is left alone.

    `lost` and `twice` are the chances of a message; `late_ms` is the longest that one is held
    back, so that others overtake it.
    """

    def __init__(
        self,
        cluster: Cluster,
        chance: random.Random,
        *,
        lost: float = 0.0,
        twice: float = 0.0,
        late_ms: int = 0,
    ) -> None:
        self._cluster = cluster
        self._chance = chance
        self._lost = lost
        self._twice = twice
        self._late_ms = late_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    async def join(self, card: NodeCard, lifetime_ms: int, on_message: OnMessage) -> None:
        """Join."""
        await self._cluster.join(card, lifetime_ms, on_message)

    def send(self, node: str | None, message: bytes) -> None:
        """Send it never, once, or twice, now or later."""
        if self._chance.random() < self._lost:
            return
        for _ in range(2 if self._chance.random() < self._twice else 1):
            late_seconds = self._chance.uniform(0, self._late_ms) / 1_000
            loop = asyncio.get_running_loop()
            loop.call_later(late_seconds, self._cluster.send, node, message)
