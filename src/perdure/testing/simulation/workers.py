"""A LocalWorker whose reports come late, come twice, or never come because its process was lost.

It also stands where calls leave the node, and has the observer look at every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from perdure.core.commands import (
    Report,
    ReportModelError,
    ReportProbe,
    ReportToolBegin,
    ReportToolLost,
)
from perdure.ports.workers import ModelTask, OnReport, OnText, Task, ToolTask, Worker
from perdure.testing.simulation.loop import VirtualLoop
from perdure.testing.simulation.weather import Weather

DELAY_US_MAX = 4_000_000


class Dispatches(Protocol):
    """Sees every call that a node sends out."""

    def dispatched(self, life: str, task: Task) -> None:
        """A task is given to the worker."""

    def reported(self, task: Task, report: Report) -> None:
        """A worker tells its node how a call ended."""

    def proceeded(self, life: str, task: ToolTask) -> None:
        """A `once` task may run."""


class FlakyWorker:
    """The worker of a life of a node."""

    def __init__(
        self,
        inner: Worker,
        loop: VirtualLoop,
        life: str,
        weather: Weather,
        draw: Callable[[], float],
        observer: Dispatches,
    ) -> None:
        self._inner = inner
        self._loop = loop
        self._life = life
        self._weather = weather
        self._draw = draw
        self._observer = observer
        self._held: dict[int, tuple[Task, OnReport]] = {}

    def serves(self, task: Task) -> bool:
        """Say whether the worker has what the task needs."""
        return self._inner.serves(task)

    def start(self, task: Task, on_report: OnReport, on_text: OnText) -> None:
        """Begin a task; the seed may lose it."""
        self._observer.dispatched(self._life, task)
        self._held[id(task)] = task, on_report

        def report(task: Task, report: Report) -> None:
            self._report(task, report, on_report)

        self._inner.start(task, report, on_text)
        self._maybe_lose(task, on_report)

    def resume(
        self, task: ToolTask, on_report: OnReport, on_text: OnText, by: str | None = None
    ) -> bool:
        """Say whether a call that began in an earlier life may still be going on."""
        return self._inner.resume(task, on_report, on_text, by)

    def proceed(self, task: ToolTask, by: str | None = None) -> None:
        """Let a `once` task run; the seed may lose it, now that it counts."""
        self._observer.proceeded(self._life, task)
        self._inner.proceed(task, by)
        on_report = self._held.get(id(task), (task, None))[1]
        if on_report is not None:
            self._maybe_lose(task, on_report)

    def _maybe_lose(self, task: Task, on_report: OnReport) -> None:
        likely = 0.5 * self._weather.worker_fails
        if likely > 0.3 and getattr(task, "attempt", 1) > 1:
            likely = 0.9
        if self._weather.bad and self._draw() < likely:
            chance = self._draw()
            delay_us = int(DELAY_US_MAX * (chance - 0.5) ** 4) if chance > 0.5 else 0
            loop = self._loop
            loop.schedule(loop.current, loop.now_us + delay_us, self._lose, task, on_report)

    def cancel(self, task: Task) -> None:
        """Stop a task."""
        self._held.pop(id(task), None)
        self._inner.cancel(task)

    def orphan(self, task: Task) -> bool:
        """Say whether somebody goes on with a task whose session was lost."""
        return self._inner.orphan(task)

    async def close(self) -> None:
        """Stop everything."""
        self._held.clear()
        await self._inner.close()

    def _report(self, task: Task, report: Report, on_report: OnReport) -> None:
        """Hand a report on: now, late, or twice."""
        if id(task) not in self._held:
            return
        begins = isinstance(report, ReportToolBegin)
        if not begins:
            del self._held[id(task)]
            self._observer.reported(task, report)
        odd = self._draw() if self._weather.bad and not begins else 1.0
        if odd >= self._weather.worker_fails:
            on_report(task, report)
            return
        loop = self._loop
        delay_us = int(DELAY_US_MAX * self._draw() ** 2)
        loop.schedule(loop.current, loop.now_us + delay_us, on_report, task, report)
        if odd < self._weather.worker_fails * 0.4:
            on_report(task, report)

    def _lose(self, task: Task, on_report: OnReport) -> None:
        """Lose the process that held a task; what it was doing may go on unheard."""
        if self._held.pop(id(task), None) is None:
            return
        if self._draw() < 0.5:
            self._inner.cancel(task)
        on_report(task, _lost(task))


def _lost(task: Task) -> Report:
    if isinstance(task, ModelTask):
        return ReportModelError(
            call=task.call, error_class="transient", code="worker_disconnected", message="lost"
        )
    if task.probing:
        return ReportProbe(call=task.call, attempt=task.attempt, verdict="undecided")
    return ReportToolLost(call=task.call, attempt=task.attempt, reason="its worker was lost")
