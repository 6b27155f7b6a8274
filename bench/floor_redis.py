"""The floor on Redis: the payloads alone, each run a stream, in pipelines of whatever waits.

BENCH_STORE names an empty Redis; what an acknowledgement is worth is what its settings say.
"""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from bench import workload

BATCH_RECORDS_MAX = 1_000

encode = msgspec.json.Encoder().encode


class Floor:
    """One connection, and a pipeline for whatever waits."""

    def __init__(self, book: workload.Book, client: Any) -> None:
        self._book = book
        self._client = client
        self._waiting: list[tuple[int, bytes, asyncio.Future[None]]] = []
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._write())

    def append(self, run: int, body: Any) -> asyncio.Future[None]:
        """Append one payload; the future is done when it is acknowledged."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((run, encode(body), done))
        self._news.set()
        return done

    async def run(self, number: int, steps: int) -> None:
        """Append what a run has to say, each record when the one before is acknowledged."""
        await self.append(number, {"message": workload.prompt(number)})
        for turn in range(steps):
            self._book.model_called()
            await self.append(number, workload.reply(turn))
            self._book.tool_called()
            await self.append(number, workload.result(turn))
        await self.append(number, {"answer": "done"})

    def facts(self) -> dict[str, Any]:
        """Return by what it is stored."""
        return {"version": f"redis-py {version('redis')}", "stored_bytes": 0}

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                batch = self._waiting[:BATCH_RECORDS_MAX]
                del self._waiting[:BATCH_RECORDS_MAX]
                pipeline = self._client.pipeline(transaction=False)
                for run, body, _ in batch:
                    pipeline.xadd(f"run:{run}", {"b": body})
                await pipeline.execute()
                for _, _, future in batch:
                    future.set_result(None)


async def open_floor(folder: Path, book: workload.Book) -> Floor:
    """Open the floor."""
    return Floor(book, Redis.from_url(os.environ["BENCH_STORE"]))


if __name__ == "__main__":
    workload.main(open_floor)
