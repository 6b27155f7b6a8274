"""Writing work of any kind: group commit, in which each piece of work stands for itself.

Each has a savepoint of its own, so that what is refused takes nothing else with it. After a write
that failed nothing more is written with the connection. With the next work, at most once in a
second, the file is opened again, as the next process would do it: then what was left is made
durable first, and the disk may have room again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from perdure.adapters.sqlite.group_commit import GroupCommit
from perdure.core.errors import Conflict, PerdureError, Unavailable

CHECKPOINT_PAGES = 1_000
REOPENED_EVERY_S: Final = 1.0
UNSTORABLE = (apsw.ConstraintError, apsw.TooBigError, OverflowError)

T = TypeVar("T")


class _Task:
    __slots__ = ("answer", "error", "future", "work")

    def __init__(self, work: Callable[[apsw.Connection], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.answer: Any = None
        self.error: Exception | None = None

    def run(self, db: apsw.Connection) -> None:
        try:
            with db:
                self.answer = self.work(db)
        except UNSTORABLE as error:
            self.error = Conflict(f"it cannot be stored: {error}")
        except apsw.Error:
            raise
        except Exception as error:  # noqa: BLE001 - it is told to whoever asked
            self.error = error

    def tell(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.answer)
        else:
            self.future.set_exception(self.error)


class WriteThread(GroupCommit[_Task]):
    """Runs work in the order in which it comes, many pieces in one transaction.

    `connect` opens the file again; `seconds` is a clock that never goes back.
    """

    def __init__(
        self,
        db: apsw.Connection,
        path: Path,
        connect: Callable[[], apsw.Connection],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._seconds = seconds
        self._failed_at = 0.0
        super().__init__(db, str(path), asyncio.get_running_loop(), CHECKPOINT_PAGES)

    async def run(self, work: Callable[[apsw.Connection], T]) -> T:
        """Return what `work` does, once it is durable.

        What it raises undoes it, and nothing else, and reaches the caller. Raises `Conflict` for
        what cannot be stored, and `Unavailable` if the file cannot be written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(_Task(work, future))
        return await future

    def _write(self, batch: Sequence[_Task]) -> None:
        if self.failure is not None:
            self._reopen()
        if self.failure is None:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for task in batch:
                    task.run(self._db)
                self._db.execute("COMMIT")
            except BaseException as error:  # noqa: BLE001 - whoever waits must learn of it
                self._fail(error)
        if self.failure is not None:
            for task in batch:
                task.error = Unavailable(self.failure)

    def _tell(self, batch: Sequence[_Task], written: None) -> None:
        for task in batch:
            task.tell()

    def _fail(self, error: BaseException) -> None:
        super()._fail(error)
        self._failed_at = self._seconds()

    def _reopen(self) -> None:
        if self._seconds() < self._failed_at + REOPENED_EVERY_S:
            return
        self._failed_at = self._seconds()
        with suppress(apsw.Error):
            self._db.close()
        try:
            self._db = self._connect()
        except PerdureError as error:
            self.failure = str(error)
            return
        self._wal_pages = 0
        self._db.set_wal_hook(self._note_wal)
        self.failure = None
