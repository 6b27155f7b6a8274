"""The real clock, real chance, and identities that sort by time (UUID version 7, RFC 9562)."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
import uuid
from collections.abc import Callable


class SystemClock:
    """Time and chance of this machine."""

    def __init__(self) -> None:
        self._last_id = 0

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
        stamp = (self.now_ms() << 80) | secrets.randbits(80)
        self._last_id = stamp = max(stamp, self._last_id + 1)
        bits = stamp & ~(0xF << 76) & ~(0x3 << 62) | (0x7 << 76) | (0x2 << 62)
        return str(uuid.UUID(int=bits))

    def chance(self) -> float:
        """Return a number in [0, 1)."""
        return random.random()
