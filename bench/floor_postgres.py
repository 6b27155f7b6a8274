"""The floor on PostgreSQL: the payloads alone, in one table, by set-based group commit.

One connection; whatever waits is inserted by one statement of arrays, which is one transaction and
one fsync. Nothing is guarded, and nothing could be resumed from it. BENCH_STORE names an empty
database.
"""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from bench import workload

BATCH_RECORDS_MAX = 1_000
TABLE = """
CREATE TABLE events(run bigint NOT NULL, seq int NOT NULL, body bytea NOT NULL, UNIQUE(run, seq))
"""
INSERT = "INSERT INTO events SELECT * FROM unnest($1::bigint[], $2::int[], $3::bytea[])"

encode = msgspec.json.Encoder().encode
Waiting = tuple[int, int, bytes, asyncio.Future[None]]


class Floor:
    """One table, one connection, group commit."""

    def __init__(self, book: workload.Book, connection: Any) -> None:
        self._book = book
        self._connection = connection
        self._waiting: list[Waiting] = []
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._write())

    def append(self, run: int, seq: int, body: Any) -> asyncio.Future[None]:
        """Append one payload; the future is done when it is durable."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((run, seq, encode(body), done))
        self._news.set()
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
        """Return by what it is stored."""
        return {"version": f"asyncpg {version('asyncpg')}", "stored_bytes": 0}

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                batch = self._waiting[:BATCH_RECORDS_MAX]
                del self._waiting[:BATCH_RECORDS_MAX]
                runs, seqs, bodies, told = zip(*batch, strict=True)
                await self._connection.execute(INSERT, runs, seqs, bodies)
                for future in told:
                    future.set_result(None)


async def open_floor(folder: Path, book: workload.Book) -> Floor:
    """Open the floor."""
    connection = await asyncpg.connect(os.environ["BENCH_STORE"])
    await connection.execute(TABLE)
    return Floor(book, connection)


if __name__ == "__main__":
    workload.main(open_floor)
