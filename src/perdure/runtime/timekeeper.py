"""The timekeeper holds one alarm for each active session: its earliest timer, retry or deadline.

Parked sessions have no alarm: their time is a column in the store, and the recovery scan finds it.
"""

from __future__ import annotations

from collections.abc import Callable

from perdure.ports.clock import Clock
from perdure.runtime.actor import Actor

ALARM_MS_MAX = 3_600_000
"""An alarm further off is set again after this long: clocks jump, and timers have a range."""


class Timekeeper:
    """Alarms of active sessions."""

    def __init__(self, clock: Clock, on_due: Callable[[Actor], None]) -> None:
        self._clock = clock
        self._on_due = on_due

    def arm(self, actor: Actor, at: int | None) -> None:
        """Set, move or (with None) drop the alarm of a session."""
        if at == actor.alarm_at and actor.alarm is not None:
            return
        if actor.alarm is not None:
            actor.alarm.cancel()
            actor.alarm = None
        actor.alarm_at = at
        if at is not None:
            delay_ms = min(ALARM_MS_MAX, max(0, at - self._clock.now_ms()))
            actor.alarm = self._clock.call_later(delay_ms, lambda: self._ring(actor))

    def _ring(self, actor: Actor) -> None:
        actor.alarm = None
        if not actor.gone:
            self._on_due(actor)
