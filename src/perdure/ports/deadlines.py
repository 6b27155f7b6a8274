"""Time limits of calls: one timer for each length of limit, however many calls have it."""

from __future__ import annotations

from typing import Protocol

from perdure.ports.clock import Clock, Timer


class Limited(Protocol):
    """What a limit ends."""

    def time_out(self) -> None:
        """End: the time is over."""
        ...


class Queue:
    """Everybody with a limit of one length: who came first is due first."""

    __slots__ = ("_clock", "_timeout_ms", "_timer", "_waiting")

    def __init__(self, clock: Clock, timeout_ms: int) -> None:
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._waiting: dict[Limited, int] = {}
        self._timer: Timer | None = None

    def add(self, limited: Limited) -> None:
        """Begin a limit."""
        self._waiting[limited] = self._clock.monotonic_ms() + self._timeout_ms
        if self._timer is None:
            self._timer = self._clock.call_later(self._timeout_ms, self._ring)

    def drop(self, limited: Limited) -> None:
        """Lift a limit; harmless if there is none. The timer stays: it rings for the next ones."""
        self._waiting.pop(limited, None)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.monotonic_ms()
        while self._waiting:
            limited, due_ms = next(iter(self._waiting.items()))
            if due_ms > now:
                self._timer = self._clock.call_later(due_ms - now, self._ring)
                return
            del self._waiting[limited]
            limited.time_out()


class Deadlines:
    """The queues, by the length of their limits: as many as there are different settings."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[int, Queue] = {}

    def queue(self, timeout_ms: int) -> Queue:
        """Return the queue of limits of this length."""
        queue = self._queues.get(timeout_ms)
        if queue is None:
            queue = self._queues[timeout_ms] = Queue(self._clock, timeout_ms)
        return queue
