"""Nodes in one process: those that were given the same `Hub` know each other."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable

from msgspec.structs import replace

from perdure.core.errors import Unavailable
from perdure.ports.cluster import MESSAGE_BYTES_MAX, NodeCard, OnMessage


class Hub:
    """What the clusters of one process share; `now` returns milliseconds since 1970."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.members: dict[str, MemoryCluster] = {}


class MemoryCluster:
    """A node's place at a hub. Of a node alone it is a cluster of one."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._card: NodeCard | None = None
        self._lifetime_ms = 0
        self._on_message: OnMessage = lambda message: None

    async def join(self, card: NodeCard, lifetime_ms: int, on_message: OnMessage) -> None:
        """Become known to the others at the hub."""
        self._lifetime_ms = lifetime_ms
        self._on_message = on_message
        self._hub.members[card.id] = self
        self._card = replace(card, seen_at=self._hub.now())

    async def announce(self, card: NodeCard) -> None:
        """Say again that this node is there."""
        if self._card is None:
            raise Unavailable("a node announces itself after it has joined")
        self._card = replace(card, seen_at=self._hub.now())

    async def nodes(self) -> builtins.list[NodeCard]:
        """Return the nodes that announced themselves lately."""
        now = self._hub.now()
        return [
            member._card
            for _, member in sorted(self._hub.members.items())
            if member._card is not None and member._card.seen_at + member._lifetime_ms > now
        ]

    def send(self, node: str | None, message: bytes) -> None:
        """Have a message heard when the event loop comes to it."""
        if self._card is None or len(message) > MESSAGE_BYTES_MAX:
            return
        loop = asyncio.get_running_loop()
        for name, member in tuple(self._hub.members.items()):
            if name == node or (node is None and member is not self):
                loop.call_soon(member._hear, message)

    async def leave(self) -> None:
        """Be known no more."""
        card, self._card = self._card, None
        if card is not None and self._hub.members.get(card.id) is self:
            del self._hub.members[card.id]

    def _hear(self, message: bytes) -> None:
        if self._card is not None:
            self._on_message(message)
