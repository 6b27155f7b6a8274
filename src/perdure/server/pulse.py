"""A pulse: something done again and again, at times that each beat names, and sooner when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from perdure.ports.clock import Clock, Timer
from perdure.ports.telemetry import Telemetry

AFTER_FAILURE_MS: Final = 5_000


class Pulse:
    """Calls `beat` when it starts, and then at the time (milliseconds since 1970) it returned.

    There is one beat at a time. One that raises is told to telemetry, and the next comes a little
    later: what a beat does has to be safe to be done again.
    """

    def __init__(
        self, name: str, beat: Callable[[], Awaitable[int]], clock: Clock, telemetry: Telemetry
    ) -> None:
        self._name = name
        self._beat = beat
        self._clock = clock
        self._telemetry = telemetry
        self._timer: Timer | None = None
        self._at: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Beat now."""
        self.nudge(self._clock.now_ms())

    def nudge(self, at: int) -> None:
        """Have a beat at `at` at the latest; while there is one, another after it."""
        if self._stopped or (self._at is not None and self._at <= at):
            return
        self._at = at
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None:
            delay_ms = max(0, at - self._clock.now_ms())
            self._timer = self._clock.call_later(delay_ms, self._begin)

    async def stop(self) -> None:
        """Beat no more. A beat that is under way is broken off, as a crash would do it."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> None:
        self._timer = self._at = None
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            later = await self._beat()
        except Exception as error:  # noqa: BLE001  nobody else would see it
            later = self._clock.now_ms() + AFTER_FAILURE_MS
            self._telemetry.emit("service.failed", service=self._name, error=repr(error))
        self._task = None
        nudged, self._at = self._at, None
        self.nudge(later if nudged is None else min(later, nudged))
