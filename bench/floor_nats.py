"""The floor on NATS JetStream: the payloads alone, a subject for each run, published at once.

Every publish waits for the stream's acknowledgement, and nothing else. BENCH_STORE names an empty
server.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import nats

from bench import workload

encode = msgspec.json.Encoder().encode


class Floor:
    """One connection and one stream."""

    def __init__(self, book: workload.Book, stream: Any) -> None:
        self._book = book
        self._stream = stream

    async def append(self, run: int, body: Any) -> None:
        """Append one payload, and wait until it is acknowledged."""
        await self._stream.publish(f"bench.{run}", encode(body), timeout=60)

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
        return {"version": f"nats-py {version('nats-py')}", "stored_bytes": 0}


async def open_floor(folder: Path, book: workload.Book) -> Floor:
    """Open the floor."""
    client = await nats.connect(os.environ["BENCH_STORE"].partition("?")[0])
    stream = client.jetstream()
    await stream.add_stream(name="bench", subjects=["bench.>"])
    return Floor(book, stream)


if __name__ == "__main__":
    workload.main(open_floor)
