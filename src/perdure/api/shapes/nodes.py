"""Nodes: the servers that share one store."""

from __future__ import annotations

from perdure.api.shapes.common import Shape, Timestamp


class Node(Shape, frozen=True, kw_only=True):
    """A server as it announced itself last, at `seen_at`.

    `generation` is the newest schema of logs that it reads; `sessions` are those that it runs now,
    `workers` those that are connected to it. One that is `draining` takes nothing new. A process
    that is started again is another node: `id` is new then, `name` and `url` are what it was given.
    """

    id: str
    name: str
    url: str | None = None
    version: str
    generation: int
    sessions: int
    workers: int
    draining: bool
    started_at: Timestamp
    seen_at: Timestamp
