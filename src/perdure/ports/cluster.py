"""Cluster: who else is there, and how to reach them. Nothing but speed depends on it.

Who may write a session is for the store alone to say. What is sent here may get lost, come twice,
late or out of order, and whom this shows may be gone; whoever acts on it has a slower way that
needs none of it. That a node cannot be reached is no evidence that it is dead.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Protocol

import msgspec

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
"""The largest message that a cluster has to carry; what is larger is dropped."""


class NodeCard(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of itself. `id` is the owner that it claims sessions as.

    `url` is where its API is reached, if it has one; `generation` the newest schema of logs that it
    reads; `seen_at` is filled in by the cluster: when it was announced last. Times are milliseconds
    since 1970.
    """

    id: str
    name: str = ""
    url: str | None = None
    version: str = ""
    generation: int = 0
    started_at: int = 0
    draining: bool = False
    sessions: int = 0
    workers: int = 0
    seen_at: int = 0


OnMessage = Callable[[bytes], None]


class Cluster(Protocol):
    """Presence and a bus. Methods are called, and `on_message` calls back, on one event loop."""

    async def join(self, card: NodeCard, lifetime_ms: int, on_message: OnMessage) -> None:
        """Become known, for `lifetime_ms` at a time, and hear what is sent to this node.

        Raises `Unavailable` when the cluster cannot be reached at all; once joined, it comes back
        to what it lost by itself.
        """
        ...

    async def announce(self, card: NodeCard) -> None:
        """Say again that this node is there, and how it is. Raises `Unavailable`."""
        ...

    async def nodes(self) -> builtins.list[NodeCard]:
        """Return the nodes that announced themselves within their lifetime, this one included.

        In the order of their ids. Raises `Unavailable`.
        """
        ...

    def send(self, node: str | None, message: bytes) -> None:
        """Send a message to a node, or to all others; never raises and never blocks."""
        ...

    async def leave(self) -> None:
        """Be known no more, and hear nothing more; the connection is closed. Safe twice."""
        ...
