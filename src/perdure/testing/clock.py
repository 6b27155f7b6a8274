"""A clock that moves only when told to, for tests without waiting and without chance."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable


class FakeTimer:
    """A call that was asked for; `cancel` drops it."""

    def __init__(self, at_ms: int, callback: Callable[[], None]) -> None:
        self.at_ms = at_ms
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Drop the call."""
        self.callback = None


class FakeClock:
    """Time that stands still until `advance`; identities count up; chance comes from a seed."""

    def __init__(self, now_ms: int = 1_700_000_000_000, seed: int = 0) -> None:
        self._now_ms = now_ms
        self._ids = 0
        self._random = random.Random(seed)
        self._timers: list[tuple[int, int, FakeTimer]] = []

    def now_ms(self) -> int:
        """Return the time, in milliseconds since 1970."""
        return self._now_ms

    def monotonic_ms(self) -> int:
        """Return the same time: it never goes back."""
        return self._now_ms

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> FakeTimer:
        """Remember a call for the time when `advance` reaches it."""
        timer = FakeTimer(self._now_ms + max(0, delay_ms), callback)
        self._ids += 1
        heapq.heappush(self._timers, (timer.at_ms, self._ids, timer))
        return timer

    def fresh_id(self) -> str:
        """Return the next identity."""
        self._ids += 1
        return f"id-{self._ids:08d}"

    def chance(self) -> float:
        """Return the next number of the seed, in [0, 1)."""
        return self._random.random()

    def next_at_ms(self) -> int | None:
        """Return the time of the earliest call that is due, or None."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, delta_ms: int) -> int:
        """Move time forward and make the calls that fall due on the way; return how many."""
        end, made = self._now_ms + delta_ms, 0
        while (at := self.next_at_ms()) is not None and at <= end:
            timer = heapq.heappop(self._timers)[2]
            self._now_ms = max(self._now_ms, at)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                made += 1
        self._now_ms = end
        return made
