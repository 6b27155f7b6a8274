"""The servers on one store, of which this is one: who is there, and who is to go."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from perdure.ports.clock import Clock
from perdure.ports.cluster import NodeCard
from perdure.runtime.bus import Message
from perdure.runtime.node import Node
from perdure.server.changes import Changes


class WorkerJoined(Message, frozen=True, tag="worker_joined"):
    """This worker is connected to me: a connection that another server has of it is a dead one."""

    tenant: str
    worker_id: str


class Servers:
    """What this server knows of all, and may ask of each."""

    def __init__(self, node: Node, changes: Changes, clock: Clock) -> None:
        self._node = node
        self._changes = changes
        self._clock = clock
        self.asked_to_leave = asyncio.Event()
        """Set when somebody wants this server to hand over what it has, and to end."""

    def known(self) -> list[NodeCard]:
        """Return the servers that announced themselves lately, this one as it is now."""
        mine = replace(self._node.card(), seen_at=self._clock.now_ms())
        return [mine, *(one for one in self._node.nodes() if one.id != mine.id)]

    async def drain(self, node: str) -> None:
        """Have a server hand over what it has, and end, whichever it is."""
        await self.leave(node)
        await self._changes.tell("drain", node)

    async def leave(self, node: str) -> None:
        """Hand over what this server has, if it is the one that somebody means."""
        if node == self._node.owner:
            self.asked_to_leave.set()
