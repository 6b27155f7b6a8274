"""Returning: what workers came back with before the sessions it belongs to were loaded.

After a restart the workers of a server come back while it still reads its sessions. What they are
at, and what they bring, is kept here until somebody asks for it, within bounds.
"""

from __future__ import annotations

import msgspec

from perdure.server.members import Member, Need
from perdure.wire.results import Result

TASKS_MAX = 10_000
RESULTS_MAX = 1_000
RESULT_BYTES_MAX = 16 * 1024 * 1024

_encode = msgspec.json.Encoder().encode


class Returning:
    """Tasks by id: who is at them, and results that nobody asked for yet."""

    def __init__(self) -> None:
        self._workers: dict[str, Member] = {}
        self._wanting: set[str] = set()
        self._results: dict[str, tuple[Member, Result, int]] = {}
        self._bytes = 0

    def is_at(self, task_id: str, member: Member) -> None:
        """Note that a worker is at a task."""
        self._workers.pop(task_id, None)
        self._workers[task_id] = member
        if len(self._workers) > TASKS_MAX:
            self._drop_worker(next(iter(self._workers)))

    def wants(self, task_id: str, member: Member) -> bool:
        """Note that a worker waits to begin a task; False if it is not known to be at it."""
        if self._workers.get(task_id) is not member:
            return False
        self._wanting.add(task_id)
        return True

    def brought(self, task_id: str, member: Member, result: Result) -> None:
        """Keep a result."""
        self._drop_worker(task_id)
        self._drop_result(task_id)
        size_bytes = len(_encode(result))
        self._results[task_id] = member, result, size_bytes
        self._bytes += size_bytes
        while len(self._results) > RESULTS_MAX or self._bytes > RESULT_BYTES_MAX:
            self._drop_result(next(iter(self._results)))

    def result(self, task_id: str, need: Need) -> Result | None:
        """Return the result of a task, if a worker brought it that might have been given it."""
        kept = self._results.get(task_id)
        self._drop_result(task_id)
        return kept[1] if kept is not None and kept[0].fits(need) else None

    def worker(self, task_id: str, need: Need) -> tuple[Member, bool] | None:
        """Return who is at a task, and whether he waits to begin it."""
        member, wants = self._workers.get(task_id), task_id in self._wanting
        self._drop_worker(task_id)
        if member is None or member.gone or not member.fits(need):
            return None
        return member, wants

    def _drop_worker(self, task_id: str) -> None:
        self._workers.pop(task_id, None)
        self._wanting.discard(task_id)

    def _drop_result(self, task_id: str) -> None:
        kept = self._results.pop(task_id, None)
        if kept is not None:
            self._bytes -= kept[2]
