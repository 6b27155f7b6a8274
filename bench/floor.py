"""The floor: the least that could make the same calls durable. Not a product.

One table with an integer key, one writer thread that commits whatever waits in one transaction
(group commit), WAL and synchronous=FULL with the store's own cache, page size and checkpoints. A
call is over when its commit has returned. What is written are the payloads alone, encoded by
msgspec: a record when a run starts, one for each call, one when it ends. There are no identities of
calls, no hashes, no queues, no retries, no rows of runs: nothing could be resumed from it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from pathlib import Path
from typing import Any

import apsw
import msgspec

from bench import workload

BATCH_RECORDS_MAX = 1_000
CHECKPOINT_PAGES = 4_000
TABLE = "CREATE TABLE events(run INTEGER, seq INTEGER, body BLOB, UNIQUE(run, seq))"
INSERT = "INSERT INTO events VALUES(?, ?, ?)"

encode = msgspec.json.Encoder().encode


class Floor:
    """One table, one writer thread, group commit."""

    def __init__(self, folder: Path, book: workload.Book) -> None:
        self._book = book
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._wal_pages = 0
        self._commits = 0
        self._path = str(folder / "floor.db")
        self._db = apsw.Connection(self._path)
        self._db.pragma("journal_mode", "wal")
        self._db.pragma("synchronous", "FULL")
        self._db.pragma("wal_autocheckpoint", 0)
        self._db.pragma("cache_size", -16 * 1024)
        self._db.execute(TABLE)
        self._db.set_wal_hook(self._note_wal)
        threading.Thread(target=self._write, daemon=True).start()

    def append(self, run: int, seq: int, body: Any) -> asyncio.Future[None]:
        """Append one payload; the future is done when it is durable."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((run, seq, encode(body), done))
        return done

    async def run(self, number: int, steps: int) -> None:
        """Append what a run has to say, each record when the one before is durable."""
        await self.append(number, 0, {"message": workload.prompt(number)})
        for turn in range(steps):
            self._book.model_called()
            await self.append(number, 2 * turn + 1, workload.reply(turn))
            self._book.tool_called()
            await self.append(number, 2 * turn + 2, workload.result(turn))
        await self.append(number, 2 * steps + 1, {"answer": "done"})

    def facts(self) -> dict[str, Any]:
        """Return what is stored, and by what."""
        reader = apsw.Connection(self._path)
        stored = reader.pragma("page_count") * reader.pragma("page_size")
        reader.close()
        return {
            "version": f"apsw {apsw.apsw_version()}, SQLite {apsw.sqlite_lib_version()}",
            "stored_bytes": stored,
            "commits": self._commits,
        }

    def _write(self) -> None:
        while True:
            batch = [self._queue.get()]
            try:
                while len(batch) < BATCH_RECORDS_MAX:
                    batch.append(self._queue.get_nowait())
            except queue.Empty:
                pass
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(INSERT, [record[:3] for record in batch])
            self._db.execute("COMMIT")
            self._commits += 1
            self._loop.call_soon_threadsafe(self._tell, [record[3] for record in batch])
            if self._wal_pages >= CHECKPOINT_PAGES:
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _note_wal(self, db: apsw.Connection, schema: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    @staticmethod
    def _tell(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)


async def open_floor(folder: Path, book: workload.Book) -> Floor:
    """Open the floor."""
    return Floor(folder, book)


if __name__ == "__main__":
    workload.main(open_floor)
