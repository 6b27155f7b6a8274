"""Group commit: one thread, the only connection that writes, and one transaction for many.

Whatever waits when the thread looks is written in one transaction and told after its COMMIT has
returned, in one callback on the event loop: no timer, so that an idle file commits at once and a
busy one pays a single fsync for hundreds. The same thread makes the checkpoints, after everybody
has been told.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import apsw

from perdure.adapters.sqlite.checks import first_cause

BATCH_MAX = 1_000

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Writes operations in the order in which they are submitted, many at a time.

    Who inherits says how a batch is written (`_write`, which never raises) and told (`_tell`).
    After a write that failed what the disk holds is not known: `failure` says so, and nothing more
    is written with this connection.
    """

    def __init__(
        self, db: apsw.Connection, name: str, loop: asyncio.AbstractEventLoop, checkpoint_pages: int
    ) -> None:
        self.failure: str | None = None
        self._db = db
        self._name = name
        self._loop = loop
        self._checkpoint_pages = checkpoint_pages
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._wal_pages = 0
        self._stopping = False
        db.set_wal_hook(self._note_wal)
        self._thread = threading.Thread(target=self._run, name="perdure-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: T) -> None:
        """Queue an operation; it is told on the event loop what became of it."""
        self._queue.put(operation)

    def stop(self) -> None:
        """Write what was submitted, close the connection, and wait for that. Blocks."""
        self._queue.put(None)
        self._thread.join()

    def _write(self, batch: Sequence[T]) -> Any:
        """Write a batch, or `_fail`; return what `_tell` has to know besides."""
        raise NotImplementedError

    def _tell(self, batch: Sequence[T], written: Any) -> None:
        """Tell, on the event loop, what became of a batch."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stopping:
            batch = self._collect()
            if not batch:
                continue
            written = self._write(batch)
            # A loop that is closed has nobody left to tell.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell, batch, written)
            del batch
            self._checkpoint()
        self._db.close()

    def _collect(self) -> list[T]:
        batch: list[T] = []
        operation = self._queue.get()
        with suppress(Empty):
            while operation is not None:
                batch.append(operation)
                if len(batch) == BATCH_MAX:
                    return batch
                operation = self._queue.get_nowait()
            self._stopping = True
        return batch

    def _checkpoint(self) -> None:
        if self.failure is None and self._wal_pages >= self._checkpoint_pages:
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
        self.failure = (
            f"the store {self._name} failed and takes nothing more until it is opened again: "
            f"{type(cause).__name__}: {cause}"
        )
