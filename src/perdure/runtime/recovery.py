"""Recovery is a scan: sessions that are due and that nobody runs are claimed, at start and on.

It is the only thing that wakes parked sessions. Whoever parks one says when it is due, so that the
next scan comes in time; without that hint the interval still finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.core.errors import StoreError, Unavailable
from perdure.core.ids import SessionId
from perdure.ports import faults
from perdure.ports.clock import Clock, Timer
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.runtime.agents import Agents
from perdure.runtime.probation import Probation
from perdure.runtime.settings import NodeSettings


class Recovery:
    """A bounded, repeated scan for due sessions."""

    def __init__(
        self,
        store: SessionStore,
        agents: Agents,
        activate: Callable[[SessionId], None],
        active: Callable[[], int],
        probation: Probation,
        clock: Clock,
        telemetry: Telemetry,
        settings: NodeSettings,
    ) -> None:
        self._store = store
        self._agents = agents
        self._activate = activate
        self._active = active
        self._probation = probation
        self._clock = clock
        self._telemetry = telemetry
        self._settings = settings
        self._timer: Timer | None = None
        self._at = 0
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self.on_store_failure: Callable[[StoreError], None] = lambda error: None

    async def run_once(self) -> int:
        """Wake what is due, and set the time of the next scan; return how many were due."""
        now, batch = self._clock.now_ms(), self._settings.scan_batch_sessions
        limit = batch + self._probation.count()
        due, next_at = await self._store.due(now, limit, self._agents.served())
        sessions = [session for session in due if session not in self._probation.waiting]
        if sessions:
            faults.reach("recovery.scanned")
            self._telemetry.emit("recovery.scanned", due=len(sessions))
        for session in sessions:
            self._activate(session)
        interval_ms = int(self._settings.scan_interval_ms * (0.9 + 0.2 * self._clock.chance()))
        later = now + interval_ms
        if len(due) == limit:
            later = now + 10 if self._active() < 2 * batch else now + 50
        self._set(later if next_at is None else max(now + 10, min(later, next_at)))
        return len(sessions)

    def nudge(self, at: int) -> None:
        """Have a scan at `at` at the latest."""
        if not self._stopped and (self._timer is None or at < self._at):
            self._set(at)

    async def stop(self) -> None:
        """Scan no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _set(self, at: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stopped:
            return
        self._at = at
        delay_ms = min(self._settings.scan_interval_ms, max(0, at - self._clock.now_ms()))
        self._timer = self._clock.call_later(delay_ms, self._wake)

    def _wake(self) -> None:
        self._timer = None
        if not self._stopped:
            self._task = asyncio.ensure_future(self._scan())

    async def _scan(self) -> None:
        try:
            await self.run_once()
        except StoreError as error:
            self.on_store_failure(error)
        except Exception as error:  # noqa: BLE001  nobody else would see it
            self.on_store_failure(Unavailable(f"the scan for due sessions failed: {error!r}"))
