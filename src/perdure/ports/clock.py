"""Clock: time, fresh identities and chance, so that tests and simulations decide them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that was asked for and has not come yet."""

    def cancel(self) -> None:
        """Drop the call; harmless when it came already."""
        ...


class Clock(Protocol):
    """What the shell knows and the core is told."""

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds since 1970, UTC."""
        ...

    def monotonic_ms(self) -> int:
        """Return a clock that never goes back, for leases and timeouts."""
        ...

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Timer:
        """Call back on the event loop after a delay."""
        ...

    def fresh_id(self) -> str:
        """Return an identity never given before; ids sort by the time they were made."""
        ...

    def chance(self) -> float:
        """Return a number in [0, 1)."""
        ...
