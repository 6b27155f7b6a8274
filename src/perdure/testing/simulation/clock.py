"""The clock of a process in a simulated world: virtual time, ids of its own, chance by the seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from perdure.testing.simulation.loop import Handle, VirtualLoop

EPOCH_MS = 1_700_000_000_000


class VirtualClock:
    """One machine's clock; `skew_ms` is how far its wall clock is off."""

    def __init__(self, loop: VirtualLoop, name: str, chance: random.Random) -> None:
        self.skew_ms = 0
        self._loop = loop
        self._name = name
        self._ids = 0
        self.chance = chance.random

    def now_ms(self) -> int:
        """Return this machine's idea of the milliseconds since 1970."""
        return EPOCH_MS + self._loop.now_us // 1000 + self.skew_ms

    def monotonic_ms(self) -> int:
        """Return a clock that no skew touches."""
        return self._loop.now_us // 1000

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Handle:
        """Call back after a delay, in virtual time."""
        loop = self._loop
        return loop.schedule(loop.current, loop.now_us + delay_ms * 1000, callback)

    def fresh_id(self) -> str:
        """Return an identity that no other clock of this world gives."""
        self._ids += 1
        return f"{self._name}-{self._ids}"
