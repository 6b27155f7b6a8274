"""What durability costs: the runtime against the floor, in one run, as ratios.

A run is one message and ten steps, each a model reply of about 1 KB and one tool call with a
result of about 1 KB, both faked and instant: 20 durable calls. The *floor* is the least that could
make the same calls durable: a bare loop that appends the same payloads to one SQLite table with the
same settings, grouped into commits by one writer thread, where a call is over when its commit is.

Absolute figures are this machine on this day. The ratios are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from perdure import Agent, ModelReply, ModelRequest, NodeSettings, Runtime, ToolRequest, Usage, tool
from perdure.core.messages import AssistantMessage

STEPS = 10
CALLS = 2 * STEPS
_random = random.Random(20261121)
_WORDS = [
    "".join(_random.choices("abcdefghijklmnopqrstuvwxyz", k=_random.randint(2, 10)))
    for _ in range(4000)
]
TEXTS = [" ".join(_random.choices(_WORDS, k=140))[:860] for _ in range(64)]


class Measured(NamedTuple):
    """One measurement: calls a second, seconds a call at the median, bytes on disk a call."""

    calls_per_second: float
    call_ms_median: float
    bytes_per_call: float


class Floor:
    """One table, one writer thread, group commit."""

    def __init__(self, path: Path) -> None:
        self._queue: queue.SimpleQueue[tuple[Any, asyncio.Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()
        self._db = apsw.Connection(str(path))
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.execute(
            "CREATE TABLE events(run TEXT, seq INTEGER, body BLOB, at REAL, UNIQUE(run, seq))"
        )
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def append(self, run: str, seq: int, body: Any) -> asyncio.Future[None]:
        """Append one payload; the future is done when it is durable."""
        done = self._loop.create_future()
        self._queue.put(((run, seq, json.dumps(body).encode(), time.time()), done))
        return done

    def close(self) -> None:
        """Stop the writer."""
        self._queue.put(None)
        self._thread.join()
        self._db.close()

    def _write(self) -> None:
        while True:
            batch = [self._queue.get()]
            try:
                while len(batch) < 1000:
                    batch.append(self._queue.get_nowait())
            except queue.Empty:
                pass
            work = [item for item in batch if item is not None]
            with self._db:
                self._db.executemany("INSERT INTO events VALUES(?,?,?,?)", [w[0] for w in work])
            self._loop.call_soon_threadsafe(self._tell, [w[1] for w in work])
            if len(work) < len(batch):
                return

    @staticmethod
    def _tell(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)


def reply(turn: int) -> ModelReply:
    """Return what the model says: about 1 KB with one tool call."""
    request = ToolRequest(f"call_{turn}", "search", {"query": TEXTS[turn][:60], "limit": 10})
    usage = Usage(1200 + turn, 180)
    return ModelReply(TEXTS[turn], (request,), "tool_call", usage, "fake-1")


def result(turn: int) -> dict[str, Any]:
    """Return what the tool gives: about 1 KB."""
    return {"ok": True, "content": TEXTS[turn + 20], "rows": [[1, 2, 3.5], [4, 5, 6.5]]}


async def play(request: ModelRequest) -> ModelReply:
    """Play the model: ten tool calls, then an answer."""
    turn = sum(isinstance(message, AssistantMessage) for message in request.messages)
    return reply(turn) if turn < STEPS else ModelReply("done")


@tool(effect="idempotent")
async def search(query: str, limit: int) -> dict[str, Any]:
    """Search."""
    return result(limit % 10)


async def closed_loop(
    clients: int, runs: int, one: Callable[[int], Awaitable[None]]
) -> tuple[float, list[float]]:
    """Have `clients` do `runs` runs one after the other; return seconds, and seconds for each."""
    numbers = iter(range(runs))
    took: list[float] = []

    async def client() -> None:
        for number in numbers:
            began = time.perf_counter()
            await one(number)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, took


def measured(seconds: float, took: list[float], path: Path) -> Measured:
    """Return the figures of a loop over a store that is closed by now."""
    runs = len(took)
    size = sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))
    return Measured(
        runs * CALLS / seconds,
        statistics.median(took) / CALLS * 1000,
        size / (runs * CALLS),
    )


async def floor(clients: int, runs: int, path: Path) -> Measured:
    """Measure the floor."""
    store = Floor(path)

    async def one(number: int) -> None:
        run = f"run-{number}"
        await store.append(run, 0, {"message": TEXTS[number % 64][:200]})
        for turn in range(STEPS):
            said = reply(turn)
            body = {
                "content": said.content,
                "tool_calls": [
                    {
                        "id": f"call_{turn}",
                        "name": "search",
                        "arguments": {"query": TEXTS[turn][:60], "limit": 10},
                    }
                ],
                "usage": {"input_tokens": 1200, "output_tokens": 180},
            }
            await store.append(run, 2 * turn + 1, body)
            await store.append(run, 2 * turn + 2, result(turn))

    seconds, took = await closed_loop(clients, runs, one)
    store.close()
    return measured(seconds, took, path)


async def spine(clients: int, runs: int, path: Path) -> Measured:
    """Measure the runtime."""
    agent = Agent("bench", model=play, tools=[search])
    settings = NodeSettings(linger_ms=50)
    async with Runtime(f"sqlite:///{path}", agents=[agent], settings=settings) as node:

        async def one(number: int) -> None:
            run = await node.send("bench", TEXTS[number % 64][:200])
            await run.result()

        seconds, took = await closed_loop(clients, runs, one)
    return measured(seconds, took, path)


def table(clients: int, runs: int, repetitions: int) -> list[str]:
    """Measure both in turn; return the lines of a table with medians and ranges."""
    found: dict[str, list[Measured]] = {"floor": [], "perdure": []}
    for _ in range(repetitions):
        for name, measure in (("floor", floor), ("perdure", spine)):
            with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as work:
                path = Path(work) / "bench.db"
                found[name].append(asyncio.run(measure(clients, runs, path)))
    lines = []
    for field, better in (
        ("calls_per_second", "of the floor"),
        ("call_ms_median", "times the floor"),
        ("bytes_per_call", "times the floor"),
    ):
        low = [getattr(one, field) for one in found["floor"]]
        high = [getattr(one, field) for one in found["perdure"]]
        ratios = sorted(mine / least for mine, least in zip(high, low, strict=True))
        lines.append(
            f"| {clients} | {field} "
            f"| {statistics.median(low):,.2f} | {statistics.median(high):,.2f} "
            f"| **{statistics.median(ratios):.2f}** [{ratios[0]:.2f}-{ratios[-1]:.2f}] {better} |"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 100, 1000])
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, WAL, FULL,")
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{options.repetitions} repetitions.\n"
    )
    print("| clients | figure | floor | perdure | ratio, median [range] |")
    print("| --- | --- | --- | --- | --- |")
    for clients in options.clients:
        runs = 60 if clients == 1 else max(500, 2 * clients)
        for line in table(clients, runs, options.repetitions):
            print(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
