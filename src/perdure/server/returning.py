"""Returning: what workers came back with before the sessions it belongs to were loaded.

After a restart the workers of a server come back while it still reads its sessions. What they are
at, and what they bring, is kept here until somebody asks for it, within bounds. What is said by the
workers of one tenant, or in one gard, takes nothing from others: who has most here loses first.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from perdure.server.members import Member, Need
from perdure.wire.results import Result

TASKS_MAX = 10_000
RESULTS_MAX = 1_000
RESULT_BYTES_MAX = 16 * 1024 * 1024

_encode = msgspec.json.Encoder().encode
V = TypeVar("V")
Place = tuple[str, str | None]
"""A tenant, and the gard in it, if its worker is in one."""


class Returning:
    """Tasks by id: who is at them, and results that nobody asked for yet."""

    def __init__(self) -> None:
        self._workers = _Shelves[tuple[Member, bool]](TASKS_MAX)
        self._results = _Shelves[tuple[Member, Result]](RESULT_BYTES_MAX)
        self._stopped: dict[str, None] = {}

    def stop(self, task_id: str) -> None:
        """Note that a task was stopped while nobody had it."""
        self._stopped[task_id] = None
        if len(self._stopped) > TASKS_MAX:
            del self._stopped[next(iter(self._stopped))]

    def ends(self, task_id: str) -> bool:
        """Say, once, whether a task was stopped while nobody had it."""
        return self._stopped.pop(task_id, self) is None

    def knows(self, task_id: str) -> bool:
        """Say whether a worker came back with a task, or its result."""
        return task_id in self._workers or task_id in self._results

    def is_at(self, task_id: str, member: Member) -> None:
        """Note that a worker is at a task."""
        self._workers.put(_place(member), task_id, (member, False), 1)

    def wants(self, task_id: str, member: Member) -> bool:
        """Note that a worker waits to begin a task; False if it is not known to be at it."""
        known = self._workers.take(_place(member), task_id)
        if known is not None:
            self._workers.put(_place(member), task_id, (known[0], known[0] is member), 1)
        return known is not None and known[0] is member

    def brought(self, task_id: str, member: Member, result: Result) -> None:
        """Keep a result."""
        self._workers.take(_place(member), task_id)
        size_bytes = max(len(_encode(result)), RESULT_BYTES_MAX // RESULTS_MAX)
        self._results.put(_place(member), task_id, (member, result), size_bytes)

    def result(self, task_id: str, need: Need) -> Result | None:
        """Return the result of a task, if a worker brought it that might have been given it."""
        kept = self._results.take((need.tenant, need.gard), task_id)
        return kept[1] if kept is not None and kept[0].fits(need) else None

    def worker(self, task_id: str, need: Need) -> tuple[Member, bool] | None:
        """Return who is at a task, and whether he waits to begin it."""
        kept = self._workers.take((need.tenant, need.gard), task_id)
        if kept is None or kept[0].gone or not kept[0].fits(need):
            return None
        return kept


class _Shelves(Generic[V]):
    """Things by place and id, of which the oldest go where most is, once their sizes are `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._sizes: dict[Place, int] = {}
        self._things: dict[Place, dict[str, tuple[V, int]]] = {}

    def __contains__(self, id: str) -> bool:
        return any(id in here for here in self._things.values())

    def put(self, place: Place, id: str, thing: V, size: int) -> None:
        self.take(place, id)
        self._things.setdefault(place, {})[id] = thing, size
        self._count(place, size)
        while self._size > self._most:
            fullest = max(self._sizes, key=self._sizes.__getitem__)
            self.take(fullest, next(iter(self._things[fullest])))

    def take(self, place: Place, id: str) -> V | None:
        here = self._things.get(place)
        if here is None or id not in here:
            return None
        thing, size = here.pop(id)
        if not here:
            del self._things[place]
        self._count(place, -size)
        return thing

    def _count(self, place: Place, size: int) -> None:
        self._size += size
        self._sizes[place] = self._sizes.get(place, 0) + size
        if not self._sizes[place]:
            del self._sizes[place]


def _place(member: Member) -> Place:
    return member.tenant, member.registration.gard
