"""SqliteCatalog: one file, one process, and every promise of the port."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import apsw

from perdure.adapters.catalog.sqlite import queries
from perdure.adapters.sqlite.checks import connect_to_write
from perdure.adapters.sqlite.opening import Opened, open_to_write
from perdure.adapters.sqlite.read_thread import ReadThread
from perdure.adapters.sqlite.schema import Schema
from perdure.adapters.sqlite.write_thread import WriteThread
from perdure.core.errors import Unavailable
from perdure.ports.catalog import Numbered, check_text
from perdure.ports.entries import Entry, Tenant

E = TypeVar("E", bound=Entry)
T = TypeVar("T")

NUMBERS_KNOWN_MAX = 10_000
"""How many numbers are kept in memory: they never change."""

SCHEMA = Schema(application_id=0x50524443, package=__package__)
"""Its files say `PRDC` in their header."""


class SqliteCatalog:
    """A catalog in one SQLite file, which it locks for this process and nobody else can read."""

    def __init__(
        self, path: Path, now_ms: Callable[[], int], opened: Opened, reader: ReadThread
    ) -> None:
        self._path = path
        self._now_ms = now_ms
        self._lock = opened.lock
        self._writer = WriteThread(opened.db, path, lambda: connect_to_write(path, "FULL"))
        self._reader = reader
        self._numbers: dict[tuple[str, Numbered, str], int] = {}
        self._closed = False

    @classmethod
    async def open(cls, path: Path | str, now_ms: Callable[[], int]) -> SqliteCatalog:
        """Open the catalog at `path`, creating it and its folder if they are missing.

        Raises `StoreLocked` if another process has the file open, and `StoreRefused` if the file or
        the disk cannot be trusted with it.
        """
        opened, reader = await asyncio.to_thread(_open, Path(path), now_ms())
        return cls(opened.path, now_ms, opened, reader)

    async def close(self) -> None:
        """Write what was submitted, close the file and give up its lock; safe to call twice."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reader.close()
        self._writer.stop()
        self._lock.release()

    async def create(self, tenant: str, entry: E) -> E:
        """Keep a new entry."""
        now = self._now_ms()
        return await self._write(lambda db: queries.create(db, tenant, entry, now))

    async def get(self, tenant: str, kind: type[E], id: int) -> E | None:
        """Return an entry, archived or not."""
        return await self._read(lambda db: queries.get(db, tenant, kind, id))

    async def find(self, tenant: str, kind: type[E], name: str) -> E | None:
        """Return the entry with this unique name."""
        return await self._read(lambda db: queries.find(db, tenant, kind, name))

    async def list(
        self,
        tenant: str,
        kind: type[E],
        *,
        of: int | None = None,
        after: int | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        archived: bool = False,
    ) -> builtins.list[E]:
        """Return entries in the order of their ids, or against it."""
        return await self._read(
            lambda db: queries.entries(
                db,
                tenant,
                kind,
                of=of,
                after=after,
                limit=limit,
                newest_first=newest_first,
                archived=archived,
            )
        )

    async def update(self, tenant: str, entry: E) -> E:
        """Put an entry in the place of the revision that was read."""
        now = self._now_ms()
        return await self._write(lambda db: queries.update(db, tenant, entry, now))

    async def delete(self, tenant: str, kind: type[Entry], id: int) -> bool:
        """Forget an entry."""
        return await self._write(lambda db: queries.delete(db, tenant, kind, id))

    async def locate(self, kind: type[E], handle: str) -> tuple[str, E] | None:
        """Return the entry with this handle and the slug of its tenant."""
        return await self._read(lambda db: queries.locate(db, kind, handle))

    async def tenants(self) -> builtins.list[Tenant]:
        """Return every tenant that is not archived, in the order of their ids."""
        return await self._read(queries.tenants)

    async def numbers(self, tenant: str, of: Numbered, ids: Sequence[str]) -> builtins.list[int]:
        """Return the numbers of runs or sessions, giving one to each that has none."""
        check_text(of, ids)
        keys = [(tenant, of, one) for one in ids]
        if not self._numbers.keys() >= set(keys):
            found = await self._write(lambda db: queries.numbers(db, tenant, of, ids))
            self._numbers.update(zip(keys, found, strict=True))
            while len(self._numbers) > NUMBERS_KNOWN_MAX:
                del self._numbers[next(iter(self._numbers))]
            return found
        return [self._numbers[key] for key in keys]

    async def named(self, tenant: str, of: Numbered, number: int) -> str | None:
        """Return the id with this number."""
        return await self._read(lambda db: queries.named(db, tenant, of, number))

    async def _write(self, work: Callable[[apsw.Connection], T]) -> T:
        self._check_open()
        return await self._writer.run(work)

    async def _read(self, query: Callable[[apsw.Connection], T]) -> T:
        self._check_open()
        return await self._reader.run(query)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"the catalog {self._path} is closed")


def _open(path: Path, now: int) -> tuple[Opened, ReadThread]:
    opened = open_to_write(path, SCHEMA, "FULL", now)
    path = opened.path
    try:
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).chmod(0o600)
        return opened, ReadThread(path)
    except BaseException:
        opened.abandon()
        raise
