"""Turns on the event loop and between threads: whoever has much to do lets others in between.

A worker brings hundreds of results in one frame, and each is the next step of a session. Without
turns, a request that comes meanwhile waits for all of them, again at each of its own steps.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TURN_SECONDS: Final = 0.001
"""How long a turn may last."""

SWITCH_SECONDS: Final = 0.0005
"""How long a thread that reads or writes a store waits for the interpreter lock, if it is held."""


COLLECTED_AFTER: Final = (5_000, 20, 50)
"""After how many new objects, and collections of younger ones, cycles are looked for.

With thousands of sessions in memory a collection of all takes 50 ms, and the defaults have so many
that they are a tenth of all work. Little here is part of a cycle.
"""


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
def tuned() -> Iterator[None]:
    """Have the interpreter of this process serve many at once, as long as this lasts.

    Its threads take turns more often, and its collector looks for cycles less often.
    """
    switched, collected = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*COLLECTED_AFTER)
    try:
        yield
    finally:
        sys.setswitchinterval(switched)
        gc.set_threshold(*collected)
