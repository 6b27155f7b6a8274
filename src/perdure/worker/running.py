"""A call under way: it ends once, by its outcome, its timeout or its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.core.commands import Report
from perdure.ports.deadlines import Deadlines, Queue
from perdure.ports.workers import OnReport, Task


class Running:
    """What the worker keeps of a task. After its end, whatever still comes for it is dropped.

    `withdraw` takes back what has been handed on and did not start; it says whether it could.
    """

    __slots__ = (
        "_begun",
        "_deadlines",
        "_on_report",
        "_queue",
        "_verdict",
        "aio",
        "over",
        "task",
        "withdraw",
    )

    def __init__(self, task: Task, on_report: OnReport, deadlines: Deadlines) -> None:
        self.task = task
        self.over = False
        self.aio: asyncio.Task[None] | None = None
        self.withdraw: Callable[[], bool] = _too_late
        self._on_report = on_report
        self._deadlines = deadlines
        self._queue: Queue | None = None
        self._verdict: Callable[[], Report] | None = None
        self._begun: asyncio.Future[None] | None = None

    async def begin(self, report: Report) -> None:
        """Ask to begin, and wait until the beginning is durable."""
        self._begun = asyncio.get_running_loop().create_future()
        self._on_report(self.task, report)
        await self._begun

    def proceed(self) -> None:
        """Let a call that asked to begin go on; harmless otherwise."""
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(None)

    def limit(self, timeout_ms: int, verdict: Callable[[], Report]) -> None:
        """End the call with `verdict` and stop it, unless it ends by itself before."""
        self._verdict = verdict
        self._queue = self._deadlines.queue(timeout_ms)
        self._queue.add(self)

    def time_out(self) -> None:
        """End the call: its time is over."""
        if self._verdict is not None:
            self.end(self._verdict())
        self.stop()

    def end(self, report: Report) -> None:
        """Report the outcome; only the first counts."""
        if not self.over:
            self.retire()
            self._on_report(self.task, report)

    def retire(self) -> None:
        """Report nothing any more."""
        self.over = True
        self._verdict = None  # it knows this call: a cycle that would live until it is collected
        if self._queue is not None:
            self._queue.drop(self)
            self._queue = None

    def stop(self) -> None:
        """Report nothing any more, and stop as far as it can be stopped."""
        self.retire()
        if self.aio is not None:
            self.aio.cancel()


def _too_late() -> bool:
    return False


def is_cancelled() -> bool:
    """Say whether the current asyncio task was asked to stop.

    A `CancelledError` that comes when nobody asked was raised by a tool or a model.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
