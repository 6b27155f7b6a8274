"""SqliteStore: one file, one process, and every promise of the port."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TypeVar

import apsw

from perdure.adapters.sqlite import checks
from perdure.adapters.sqlite.checks import Synchronous
from perdure.adapters.sqlite.lock import FileLock
from perdure.adapters.sqlite.opening import open_to_write
from perdure.adapters.sqlite.read_thread import ReadThread
from perdure.adapters.stores.sqlite import operations, reading
from perdure.adapters.stores.sqlite.schema import SCHEMA
from perdure.adapters.stores.sqlite.writer import Commit, Request, Work, Writer
from perdure.core.codec import Record
from perdure.core.durability import Durability
from perdure.core.errors import Broken, InvalidInput
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    Claimed,
    CommitDone,
    InboxEntry,
    Loaded,
    NotClaimed,
    Receipt,
    RunQuery,
    Settled,
    StepCommit,
    Token,
)

T = TypeVar("T")


class _HasTime(Protocol):
    def now_ms(self) -> int: ...


class SqliteStore:
    """A store in one SQLite file, which it locks for this process.

    After a failed write (a full disk, an I/O error) every operation raises `Broken` with the
    reason, until the store is opened again. What was acknowledged stays.
    """

    durability: Durability

    def __init__(
        self,
        path: Path,
        now: Callable[[], int],
        lock: FileLock,
        writer: Writer,
        reader: ReadThread,
        settings: dict[str, str | int],
        identity: str,
    ) -> None:
        self.durability = checks.durability(settings)
        self._path = path
        self._now = now
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._settings = settings
        self.identity = identity
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path | str,
        clock: Callable[[], int] | _HasTime,
        *,
        synchronous: Synchronous = "FULL",
    ) -> SqliteStore:
        """Open the store at `path`, creating it and its folder if they are missing.

        With `synchronous="NORMAL"` the last commits may be lost with the power, though not with
        the process. Claims of earlier processes are void. Raises `StoreLocked` if another process
        has the file open, and `StoreRefused` if the file or the disk cannot be trusted with it.
        """
        now = clock if callable(clock) else clock.now_ms
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(cls._open, Path(path), now, synchronous, loop)

    @classmethod
    def _open(
        cls,
        path: Path,
        now: Callable[[], int],
        synchronous: Synchronous,
        loop: asyncio.AbstractEventLoop,
    ) -> SqliteStore:
        opened = open_to_write(path, SCHEMA, synchronous, now())
        path, lock, db = opened
        try:
            with checks.refusing(path):
                operations.free_claims(db)
                settings = checks.settings(db)
                identity = db.execute("SELECT id FROM identity").get
            reader = ReadThread(path)
        except BaseException:
            opened.abandon()
            raise
        return cls(path, now, lock, Writer(db, str(path), loop), reader, settings, identity)

    async def close(self) -> None:
        """Write what was submitted, close the file and give up its lock; safe to call twice."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reader.close()
        self._writer.stop()
        self._lock.release()

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Put a command into a session's inbox, creating the session if it is new."""
        try:
            "".join((*entry.session, entry.id)).encode()
        except UnicodeEncodeError as error:
            why = f"{entry.id!r} or its session is not valid Unicode: {error}"
            raise InvalidInput(why) from None
        now = self._now()
        duplicate: bool = await self._ask(
            entry.session, lambda db, ids: operations.accept(db, entry, row, generation, now)
        )
        return Receipt(entry.id, entry.session, self.durability, duplicate)

    async def claim(
        self,
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None = None,
        reads: int | None = None,
    ) -> Claimed | NotClaimed:
        """Take the right to write a session, then read it, in one transaction."""
        now = self._now()
        claimed: Claimed | NotClaimed = await self._ask(
            session,
            lambda db, ids: operations.claim(
                db, ids, session, owner, nonce, now, strikes_max, reads
            ),
        )
        return claimed

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session without the right to write it; None if there is none."""
        return await self._read(lambda db: reading.load(db, session))

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Submit a step commit; `done` is called on the event loop once its fate is known."""
        if self._closed:
            asyncio.get_running_loop().call_soon(done, self._broken())
        else:
            self._writer.submit(Commit(step, done))

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Confirm the node's lease for all its sessions; False if it had run out meanwhile."""
        now = self._now()
        alive: bool = await self._ask(
            None, lambda db, ids: operations.renew(db, owner, lease_ms, now)
        )
        return alive

    async def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None = None,
        quarantine: str | None = None,
    ) -> None:
        """Give up a claim, or put a session in quarantine, or lift that."""
        await self._ask(
            session,
            lambda db, ids: operations.release(db, ids, session, token, snapshot, quarantine),
        )

    async def due(
        self,
        now: int,
        limit: int,
        agents: Collection[str] | None = None,
        reads: int | None = None,
    ) -> tuple[builtins.list[SessionId], int | None]:
        """Return sessions nobody runs that are due at `now`, and the time of the next one after."""
        clock = self._now()
        return await self._read(lambda db: reading.due(db, now, clock, limit, agents, reads))

    async def unread(self, owner: str, limit: int) -> builtins.list[SessionId]:
        """Return sessions for which something was accepted that their owner may not know of."""
        return await self._read(lambda db: reading.unread(db, owner, limit))

    async def distrust(self) -> None:
        """Make every session suspect."""
        now = self._now()
        await self._ask(None, lambda db, ids: operations.distrust(db, now))

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        return await self._read(lambda db: reading.settled(db, session, id))

    async def read(self, session: SessionId, after: int, limit: int) -> builtins.list[Record]:
        """Return up to `limit` records after position `after`, in order."""
        return await self._read(lambda db: reading.read(db, session, after, limit))

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match, newest first."""
        return await self._read(lambda db: reading.list_runs(db, query))

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        return await self._read(lambda db: reading.blob(db, address))

    def facts(self) -> dict[str, str | int | None]:
        """Return what is worth knowing of this store: where and how it writes, and how much."""
        return {
            **checks.facts(self._path),
            **self._settings,
            "durability": self.durability,
            "transactions": self._writer.transactions,
            "failure": self._writer.failure,
        }

    def _broken(self) -> Broken:
        return Broken(self._writer.failure or f"the store {self._path} is closed")

    async def _ask(self, session: SessionId | None, work: Work) -> Any:
        if self._closed:
            raise self._broken()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._writer.submit(Request(session, work, future))
        return await future

    async def _read(self, query: Callable[[apsw.Connection], T]) -> T:
        if self._closed or self._writer.failure is not None:
            raise self._broken()
        return await self._reader.run(query)
