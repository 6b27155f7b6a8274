"""The workload that every contestant does, and how it is driven and timed.

A run is a start and ten steps; a step is a model's reply of 1 KB and one tool call with a result of
1 KB, both faked and instant: 20 durable calls. This file needs nothing but the standard library,
because the peers' environments have nothing of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

STEPS = 10
CALLS = 2 * STEPS
WARM_UP_RUNS = 2
RAMP_SECONDS_MAX = 60

# Text that neither repeats nor compresses to nothing.
_random = random.Random(20261121)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = ["".join(_random.choices(_LETTERS, k=_random.randint(2, 10))) for _ in range(4000)]
TEXTS = [" ".join(_random.choices(_WORDS, k=200))[:1000] for _ in range(64)]


def prompt(run: int) -> str:
    """Return what starts a run: 200 bytes."""
    return TEXTS[run % 64][:200]


def query(turn: int) -> str:
    """Return what the model asks the tool for."""
    return TEXTS[turn % 64][:60]


def said(turn: int) -> str:
    """Return what the model says beside its tool call; with that the reply is 1 KB of JSON."""
    return TEXTS[(turn + 7) % 64][:820]


def reply(turn: int) -> dict[str, Any]:
    """Return the model's reply as JSON data."""
    arguments = {"query": query(turn), "turn": turn}
    return {
        "content": said(turn),
        "tool_calls": [{"id": f"call_{turn}", "name": "search", "arguments": arguments}],
        "usage": {"input_tokens": 1200, "output_tokens": 180},
        "model": "fake-1",
    }


def result(turn: int) -> dict[str, Any]:
    """Return what the tool gives, as JSON data: 1 KB."""
    content = TEXTS[(turn + 20) % 64][:960]
    return {"ok": True, "content": content, "rows": [[turn, 2, 3.5], [4, 5, 6.5]]}


class Book:
    """Counts calls as they are made. With one client it also times the steps.

    A step lasts from one model call to the next: until then the reply and the result in between
    have become durable. The last step of a run is left out, because contestants end differently.
    """

    def __init__(self, timing: bool) -> None:
        self.calls = 0
        self.step_seconds: list[float] = []
        self._timing = timing
        self._since: float | None = None

    def begin(self) -> None:
        """Note the begin of a run."""
        self._since = None

    def model_called(self) -> None:
        """Note a call of the fake model."""
        self.calls += 1
        if self._timing:
            now = time.perf_counter()
            if self._since is not None:
                self.step_seconds.append(now - self._since)
            self._since = now

    def tool_called(self) -> None:
        """Note a call of the fake tool."""
        self.calls += 1


class Contestant(Protocol):
    """What is measured."""

    async def run(self, number: int, steps: int) -> None:
        """Do one run of so many steps to its end."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return its `version`, the `stored_bytes` by now, and the `commits` if it counts them."""
        ...


Open = Callable[[Path, Book], Awaitable[Contestant]]


def options() -> argparse.Namespace:
    """Return what the command line of a contestant says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for the store")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="the length of the window")
    parser.add_argument("--runs", type=int, help="or: how many runs, each to its end")
    return parser.parse_args()


def main(open_contestant: Open) -> None:
    """Measure one contestant once, as the command line says, and print the figures as JSON."""
    asked = options()

    async def measure_and_leave() -> None:
        figures = await _measure(
            open_contestant, asked.folder, asked.concurrency, asked.runs, asked.seconds
        )
        print(json.dumps(figures), flush=True)
        # What is still under way in a window is of no interest.
        os._exit(0)

    asyncio.run(measure_and_leave())


async def _measure(
    open_contestant: Open, folder: Path, concurrency: int, runs: int | None, seconds: float | None
) -> dict[str, Any]:
    book = Book(timing=concurrency == 1)
    contestant = await open_contestant(folder, book)
    for number in range(WARM_UP_RUNS):
        book.begin()
        await contestant.run(10**6 + number, STEPS)
    book.calls, book.step_seconds = 0, []
    before = contestant.facts()
    if seconds is None:
        measured = await complete(contestant, book, concurrency, runs or concurrency)
    else:
        measured = await window(contestant, book, concurrency, seconds)
    after = contestant.facts()
    calls = measured.pop("calls")
    figures = {
        "version": after["version"],
        "calls_per_second": calls / measured["seconds"],
        "cpu_us_per_call": measured["cpu_seconds"] / calls * 1e6,
        "bytes_per_call": (after["stored_bytes"] - before["stored_bytes"]) / book.calls,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if "commits" in after:
        figures["commits_per_call"] = (after["commits"] - before["commits"]) / book.calls
    if book.step_seconds:
        figures["call_p50_us"] = statistics.median(book.step_seconds) / 2 * 1e6
    return figures


async def complete(contestant: Contestant, book: Book, clients: int, runs: int) -> dict[str, float]:
    """Do `runs` runs to their ends in a closed loop; return calls, seconds and CPU seconds."""
    numbers = iter(range(runs))

    async def client() -> None:
        for number in numbers:
            book.begin()
            await contestant.run(number, STEPS)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {
        "calls": runs * CALLS,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }


async def window(
    contestant: Contestant, book: Book, clients: int, seconds: float
) -> dict[str, float]:
    """Keep `clients` busy, and count the calls within a window of the steady state."""
    async with busy(contestant, book, clients) as clients_busy:
        calls, began, cpu = book.calls, time.perf_counter(), time.process_time()
        await asyncio.wait([clients_busy], timeout=seconds)
        if clients_busy.done():
            clients_busy.result()
        return {
            "calls": book.calls - calls,
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
        }


@asynccontextmanager
async def busy(
    contestant: Contestant, book: Book, clients: int
) -> AsyncIterator[asyncio.Future[Any]]:
    """Keep `clients` busy from the steady state on.

    The first run of each client is cut to between one and ten steps, so that the clients are out
    of step with each other; the steady state begins when each has made a call on average.
    """

    async def client(number: int) -> None:
        await contestant.run(number, 1 + number % STEPS)
        while True:
            number += clients
            await contestant.run(number, STEPS)

    calls, began = book.calls, time.perf_counter()
    clients_busy = asyncio.gather(*(client(number) for number in range(clients)))
    while book.calls < calls + 2 * clients and not clients_busy.done():
        if time.perf_counter() - began > RAMP_SECONDS_MAX:
            sys.exit(f"only {book.calls} calls in {RAMP_SECONDS_MAX} s: no steady state")
        await asyncio.sleep(0.005)
    yield clients_busy
