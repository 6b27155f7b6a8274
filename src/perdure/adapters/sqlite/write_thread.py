"""Writing: one thread with the only connection that writes, and group commit.

Whatever waits when the thread looks is written in one transaction, and its callers are told after
the COMMIT has returned: an idle file commits at once, a busy one pays a single fsync for many. Each
piece of work has a savepoint of its own, so that what is refused takes nothing else with it. After
a failed write what the disk holds is unknown, so nothing more is taken until the file is opened
again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import apsw

from perdure.adapters.sqlite.checks import first_cause
from perdure.core.errors import Conflict, Unavailable

BATCH_MAX = 1_000
CHECKPOINT_PAGES = 1_000
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


class WriteThread:
    """Runs work in the order in which it comes, many pieces in one transaction."""

    def __init__(self, db: apsw.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._failure: str | None = None
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._wal_pages = 0
        db.set_wal_hook(self._note_wal)
        self._thread = threading.Thread(target=self._run, name="perdure-write", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[apsw.Connection], T]) -> T:
        """Return what `work` does, once it is durable.

        What it raises undoes it, and nothing else, and reaches the caller. Raises `Conflict` for
        what cannot be stored, and `Unavailable` if the file cannot be written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Task(work, future))
        return await future

    def close(self) -> None:
        """Write what was submitted and close the file. Blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            batch, going_on = self._collect()
            self._write(batch)
            # A loop that is closed has nobody left to tell.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_tell, batch)
            self._checkpoint()
        self._db.close()

    def _collect(self) -> tuple[list[_Task], bool]:
        batch: list[_Task] = []
        task = self._queue.get()
        with suppress(Empty):
            while task is not None:
                batch.append(task)
                if len(batch) == BATCH_MAX:
                    return batch, True
                task = self._queue.get_nowait()
            return batch, False
        return batch, True

    def _write(self, batch: list[_Task]) -> None:
        if batch and self._failure is None:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for task in batch:
                    task.run(self._db)
                self._db.execute("COMMIT")
            except BaseException as error:  # noqa: BLE001 - whoever waits must learn of it
                self._fail(error)
        if self._failure is not None:
            for task in batch:
                task.error = Unavailable(self._failure)

    def _checkpoint(self) -> None:
        if self._failure is None and self._wal_pages >= CHECKPOINT_PAGES:
            try:
                # Somebody else's checkpoint is as good as ours.
                with suppress(apsw.BusyError):
                    self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.Error as error:
                self._fail(error)

    def _note_wal(self, db: apsw.Connection, schema: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _fail(self, error: BaseException) -> None:
        # Closing would make a checkpoint; and after a failed sync nothing is written any more.
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        with suppress(apsw.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        cause = first_cause(error)
        self._failure = (
            f"{self._path} could not be written, and takes nothing more until it is opened again: "
            f"{type(cause).__name__}: {cause}"
        )


def _tell(batch: list[_Task]) -> None:
    for task in batch:
        task.tell()
