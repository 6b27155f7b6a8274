"""That a server is about to stop: whoever waits for news is woken, and lets its client go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Leaving:
    """Whether the server is leaving, and who is to be woken when it does."""

    def __init__(self) -> None:
        self.begun = False
        self._waiting: set[asyncio.Event] = set()

    def begin(self) -> None:
        """Leave: set every event that somebody waits for."""
        self.begun = True
        self.wake()

    def wake(self) -> None:
        """Have everybody look whether he may go on waiting."""
        for event in self._waiting:
            event.set()

    @contextmanager
    def waking(self, event: asyncio.Event) -> Iterator[None]:
        """Set `event` when the server leaves, as long as this lasts."""
        self._waiting.add(event)
        try:
            yield
        finally:
            self._waiting.discard(event)
