"""A store's file for those who only look: `perdure runs` beside a running server."""

from __future__ import annotations

import asyncio
import builtins
from pathlib import Path

import apsw

from perdure.adapters.sqlite import checks
from perdure.adapters.sqlite.read_thread import ReadThread
from perdure.adapters.stores.sqlite import reading
from perdure.adapters.stores.sqlite.schema import SCHEMA
from perdure.core.codec import Record
from perdure.core.errors import NotFound, StoreRefused
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import Loaded, RunQuery, Settled


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
        newest = SCHEMA.newest()
        if checks.check_file(path, SCHEMA.application_id, newest) < newest:
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

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        return await self._thread.run(lambda db: reading.settled(db, session, id))

    async def facts(self) -> dict[str, str | int]:
        """Return what `perdure doctor` shows of this file."""
        found = await self._thread.run(checks.settings)
        shown = ("schema_version", "journal_mode", "page_size")
        return {**checks.facts(self._path), **{name: found[name] for name in shown}}

    async def close(self) -> None:
        """Close the file."""
        await asyncio.to_thread(self._thread.close)
