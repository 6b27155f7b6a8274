"""Absurd: one task a run, one step a call, ten workers with a connection each.

Its schema is loaded from the file that BENCH_ABSURD_SQL names; BENCH_STORE names an empty database.
Workers look for tasks each 10 ms instead of each 250 ms, which is in its favour.
"""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from absurd_sdk import AsyncAbsurd

from bench import workload

QUEUE = "bench"
WORKERS = 10
RUNS_PER_WORKER = 100


class Absurd:
    """A queue with ten workers in this process."""

    def __init__(self, url: str, book: workload.Book) -> None:
        self._book = book
        self._ended: dict[int, asyncio.Future[None]] = {}
        self._client = self._app(url)
        self._apps = [self._app(url) for _ in range(WORKERS)]
        self._working: list[asyncio.Task[None]] = []

    def _app(self, url: str) -> Any:
        app = AsyncAbsurd(url, queue_name=QUEUE, default_max_attempts=5)
        book = self._book

        @app.register_task(name="agent")  # type: ignore[untyped-decorator]
        async def agent(asked: Any, context: Any) -> dict[str, Any]:
            for turn in range(asked["steps"]):

                async def model(turn: int = turn) -> dict[str, Any]:
                    book.model_called()
                    return workload.reply(turn)

                async def search(turn: int = turn) -> dict[str, Any]:
                    book.tool_called()
                    return workload.result(turn)

                await context.step(f"model-{turn}", model)
                await context.step(f"search-{turn}", search)
            ended = self._ended.pop(asked["run"], None)
            if ended is not None and not ended.done():
                ended.set_result(None)
            return {"answer": "done"}

        return app

    async def start(self) -> Absurd:
        """Make the queue, and start the workers."""
        await self._client.create_queue(QUEUE)
        for number, app in enumerate(self._apps):
            work = app.start_worker(
                worker_id=f"w{number}",
                claim_timeout=300,
                concurrency=RUNS_PER_WORKER,
                poll_interval=0.01,
            )
            self._working.append(asyncio.create_task(work))
        return self

    async def run(self, number: int, steps: int) -> None:
        """Spawn a task, and wait until it has run to its end."""
        ended = self._ended[number] = asyncio.get_running_loop().create_future()
        asked = {"run": number, "steps": steps, "message": workload.prompt(number)}
        await self._client.spawn("agent", asked)
        await ended

    def facts(self) -> dict[str, Any]:
        """Return the version."""
        return {"version": f"absurd-sdk {version('absurd-sdk')}", "stored_bytes": 0}


async def open_absurd(folder: Path, book: workload.Book) -> Absurd:
    """Load the schema, and start."""
    url = os.environ["BENCH_STORE"]
    schema = await asyncio.to_thread(Path(os.environ["BENCH_ABSURD_SQL"]).read_text, "utf-8")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(schema)  # type: ignore[arg-type]
    return await Absurd(url, book).start()


if __name__ == "__main__":
    workload.main(open_absurd)
