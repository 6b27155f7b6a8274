"""Reading: one thread with one connection that cannot write."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw

from perdure.adapters.stores.sqlite import checks, reading, schema
from perdure.core.codec import Record
from perdure.core.errors import NotFound, StoreRefused, Unavailable
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import Loaded, RunQuery

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


class SqliteReader:
    """A store's file, read while another process may be writing it, or none."""

    def __init__(self, path: Path, thread: ReadThread) -> None:
        self._path = path
        self._thread = thread

    @classmethod
    async def open(cls, path: Path | str) -> SqliteReader:
        """Open an existing store. Raises `NotFound` and `StoreRefused`."""
        return await asyncio.to_thread(cls._open, Path(path))

    @classmethod
    def _open(cls, path: Path) -> SqliteReader:
        checks.check_library(apsw.sqlite_lib_version())
        path = path.resolve()
        if not path.exists():
            raise NotFound(f"there is no store at {path}")
        if checks.check_file(path, schema.newest()) < schema.newest():
            raise StoreRefused(
                f"{path} was written by an older version of perdure: run this one on it once, "
                "which brings it up to date"
            )
        return cls(path, ReadThread(path))

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session; None if there is none."""
        return await self._thread.run(lambda db: reading.load(db, session))

    async def read(self, session: SessionId, after: int, limit: int) -> builtins.list[Record]:
        """Return up to `limit` records after position `after`, in order."""
        return await self._thread.run(lambda db: reading.read(db, session, after, limit))

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match, newest first."""
        return await self._thread.run(lambda db: reading.list_runs(db, query))

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        return await self._thread.run(lambda db: reading.blob(db, address))

    async def facts(self) -> dict[str, str | int]:
        """Return what `perdure doctor` shows of this file."""
        found = await self._thread.run(checks.settings)
        shown = ("schema_version", "journal_mode", "page_size")
        return {**checks.facts(self._path), **{name: found[name] for name in shown}}

    async def close(self) -> None:
        """Close the file."""
        await asyncio.to_thread(self._thread.close)
