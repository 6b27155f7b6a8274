"""A call under way: it ends once, by its outcome, its timeout or its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.core.commands import Report
from perdure.ports.clock import Clock, Timer
from perdure.ports.workers import OnReport, Task


class Running:
    """What the worker keeps of a task. After its end, whatever still comes for it is dropped.

    `withdraw` takes back what has been handed on and did not start; it says whether it could.
    """

    __slots__ = ("_begun", "_clock", "_on_report", "_timer", "aio", "over", "task", "withdraw")

    def __init__(self, task: Task, on_report: OnReport, clock: Clock) -> None:
        self.task = task
        self.over = False
        self.aio: asyncio.Task[None] | None = None
        self.withdraw: Callable[[], bool] = _too_late
        self._on_report = on_report
        self._clock = clock
        self._timer: Timer | None = None
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

        def time_out() -> None:
            self.end(verdict())
            self.stop()

        self._timer = self._clock.call_later(timeout_ms, time_out)

    def end(self, report: Report) -> None:
        """Report the outcome; only the first counts."""
        if not self.over:
            self.retire()
            self._on_report(self.task, report)

    def retire(self) -> None:
        """Report nothing any more."""
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
