"""Turns on the event loop: whoever has much to do lets others in between.

A worker brings hundreds of results in one frame, and each is the next step of a session. Without
turns, a request that comes meanwhile waits for all of them, again at each of its own steps.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TURN_SECONDS: Final = 0.001
"""How long a turn may last."""

SWITCH_SECONDS: Final = 0.0005
"""How long a thread that reads or writes a store waits for the interpreter lock, if it is held."""


class Turn:
    """One task's turn, which begins now."""

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._end = self._time() + TURN_SECONDS

    async def pause(self) -> None:
        """Let others have their turn, if this one has lasted long enough."""
        if self._time() > self._end:
            await asyncio.sleep(0)
            self._end = self._time() + TURN_SECONDS


@contextmanager
def brisk_threads() -> Iterator[None]:
    """Have the threads of this process take turns more often, as long as this lasts."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
