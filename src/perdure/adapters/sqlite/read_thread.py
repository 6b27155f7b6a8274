"""Reading: one thread with one connection that cannot write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw

from perdure.adapters.sqlite import checks
from perdure.core.errors import Unavailable

T = TypeVar("T")


class ReadThread:
    """Runs queries one after the other, away from the event loop."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises `StoreRefused`."""
        with checks.refusing(path):
            self._db = checks.connect_to_read(path)
        self._path = path
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="perdure-reader")

    async def run(self, query: Callable[[apsw.Connection], T]) -> T:
        """Return what `query` finds. Raises `Unavailable` if the file cannot be read."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, query, self._db)
        except apsw.Error as error:
            why = f"{type(error).__name__}: {error}"
            raise Unavailable(f"the store {self._path} could not be read: {why}") from None

    def close(self) -> None:
        """Finish what runs and close the file. Blocks."""
        self._pool.shutdown()
        self._db.close()
