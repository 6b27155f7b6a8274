"""The real clock, real chance, and identities that sort by time (UUID version 7, RFC 9562)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable

CHANCE_BITS = 74
"""What version 7 has besides the time, the version and the variant."""
CHANCE_BYTES = 10
SPARE_BITS = 8 * CHANCE_BYTES - CHANCE_BITS
IDS_PER_READ = 128
"""How many identities the system is asked for at a time: each asking is a system call."""


class SystemClock:
    """Time and chance of this machine."""

    def __init__(self) -> None:
        self._last_id = 0
        self._chances: list[int] = []
        # A child must not give the identities that its parent is about to give.
        os.register_at_fork(after_in_child=self._chances.clear)

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return a clock that never goes back."""
        return time.monotonic_ns() // 1_000_000

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back on the running event loop after a delay."""
        return asyncio.get_running_loop().call_later(delay_ms / 1000, callback)

    def fresh_id(self) -> str:
        """Return a UUIDv7; within a process each is greater than the one before."""
        if not self._chances:
            chances = os.urandom(CHANCE_BYTES * IDS_PER_READ)
            self._chances += [
                int.from_bytes(chances[at : at + CHANCE_BYTES], "big") >> SPARE_BITS
                for at in range(0, len(chances), CHANCE_BYTES)
            ]
        stamp = (self.now_ms() << CHANCE_BITS) | self._chances.pop()
        self._last_id = stamp = max(stamp, self._last_id + 1)
        high, low = stamp >> 62, stamp & (1 << 62) - 1
        bits = (high >> 12) << 80 | 0x7 << 76 | (high & 0xFFF) << 64 | 0x2 << 62 | low
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def chance(self) -> float:
        """Return a number in [0, 1)."""
        return random.random()


def secret_bytes(size: int) -> bytes:
    """Return so many bytes that nobody can guess, from the system."""
    return os.urandom(size)
