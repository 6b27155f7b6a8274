"""Probation: a session that may be what kills its host gets its last chance alone.

When a process dies nobody knows which of its sessions killed it, so all that had got nowhere get a
strike, also those that merely waited for a long model call. If they ran together every time, the
guilty one would take them all to quarantine. So those for which the next death would be the last
are claimed one after the other: the next one when this one has got on (its strikes are gone then),
was let go, or has kept its host alive for `probation_ms`. Whoever waits is not claimed, so that a
death is no strike against it. All other sessions run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from perdure.core.ids import SessionId
from perdure.ports.clock import Clock, Timer

LAST_STRIKES = 2
"""A session that is so many strikes from quarantine, or less, is not claimed beside others like it.
"""


class Probation:
    """One place, and those who wait for it in the order in which they came."""

    def __init__(self, clock: Clock, probation_ms: int) -> None:
        self._clock = clock
        self._probation_ms = probation_ms
        self._waiting: dict[SessionId, None] = {}
        self._current: SessionId | None = None
        self._timer: Timer | None = None
        self.activate: Callable[[SessionId], None] = lambda session: None

    @property
    def waiting(self) -> Container[SessionId]:
        """Those who wait: they are due, and it is no use to claim them."""
        return self._waiting

    def count(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def enter(self, session: SessionId) -> bool:
        """Take the place, or wait for it: then `activate` is called when it is free."""
        if self._current is None:
            self._current = session
            self._waiting.pop(session, None)
            self._timer = self._clock.call_later(self._probation_ms, self._next)
        if self._current != session:
            self._waiting[session] = None
        return self._current == session

    def leave(self, session: SessionId) -> None:
        """Say that a session got on, or is not run any more; of any other one it means nothing."""
        if session == self._current:
            self._next()

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._current = self._timer = None
        following = next(iter(self._waiting), None)
        if following is not None:
            del self._waiting[following]
            self.activate(following)
