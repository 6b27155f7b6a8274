"""Send orders to the servers, wait for their runs, and count what was done: each once, or not.

    python deploy/three-nodes/tally.py 1000

It may be ended and started again: an order has the same idempotency key each time. Exit code 0 if
every run has finished and every effect is there once, 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

from perdure.client import ApiError, AsyncClient, Unreachable
from perdure.core.errors import NotFound

AGENT = "parcels"
ENDED = ("completed", "failed", "cancelled")
AT_ONCE = 32
PAUSE_SECONDS = 0.2
SAY_EVERY_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
TRANSIENT = 500
"""From this status on the server is to blame, or on its way out: another one is asked."""

T = TypeVar("T")


class Tally(NamedTuple):
    """What was found: how the runs ended, and for each effect how often each order has it."""

    statuses: Counter[str]
    reserved: Counter[str]
    handed_over: Counter[str]
    asked: int

    def wrong(self, runs: int) -> list[str]:
        """Return what is not as it should be."""
        found = []
        if self.statuses["completed"] != runs:
            others = (f"{n} {how}" for how, n in self.statuses.items() if how != "completed")
            found.append(f"runs that did not complete: {', '.join(others)}")
        for name, effects in (("reserved", self.reserved), ("handed over", self.handed_over)):
            twice = sorted(order for order, times in effects.items() if times > 1)
            if twice:
                found.append(f"{name} more than once: orders {', '.join(twice)}")
            if len(effects) < runs:
                found.append(f"never {name}: {runs - len(effects)} orders")
        return found

    def lines(self, runs: int) -> list[str]:
        """Return what is told."""
        repeated = self.asked - self.reserved.total()
        shelves = f"{self.reserved.total():,} for {len(self.reserved):,} orders"
        parcels = f"{self.handed_over.total():,} for {len(self.handed_over):,} orders"
        return [
            f"runs completed: {self.statuses['completed']:,} of {runs:,}",
            f"shelves reserved: {shelves} ({repeated:,} calls were repeated, under their key)",
            f"parcels handed over: {parcels}",
        ]


class Servers:
    """Several servers, of which any will do."""

    def __init__(self, clients: Sequence[AsyncClient], patience_s: float) -> None:
        self._clients = itertools.cycle(clients)
        self._until = time.monotonic() + patience_s

    async def ask(self, question: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Ask one after the other until one answers. Raises what the last one said.

        There is no agent before the first worker has defined it.
        """
        while True:
            try:
                return await question(next(self._clients))
            except (ApiError, NotFound, Unreachable) as error:
                status = error.status if isinstance(error, ApiError) else TRANSIENT
                if status < TRANSIENT or time.monotonic() > self._until:
                    raise
            await asyncio.sleep(PAUSE_SECONDS)


async def send(servers: Servers, runs: int) -> list[int]:
    """Send every order; return the runs. A repeated order is the same run."""

    async def one(order: int) -> int:
        handle = await servers.ask(
            lambda client: client.send(
                AGENT,
                f"Send order {order}",
                session=f"order-{order}",
                idempotency_key=f"order-{order}",
            )
        )
        return handle.id

    return await _bounded([lambda n=order: one(n) for order in range(1, runs + 1)])


async def wait(servers: Servers, ids: Sequence[int], until: float) -> Counter[str]:
    """Wait until every run has ended, or the time is over; return how many stand how.

    A run that waits stands as what it waits for.
    """
    statuses = dict.fromkeys(ids, "")
    said = time.monotonic()

    async def look(id_: int) -> None:
        run = await servers.ask(lambda client: client.call("get_run", id=id_))
        statuses[id_] = f"waits for {run.waits[0].what}" if run.waits else run.status

    while (left := [id_ for id_ in ids if statuses[id_] not in ENDED]) and time.monotonic() < until:
        await _bounded([lambda n=id_: look(n) for id_ in left])
        if time.monotonic() > said + SAY_EVERY_SECONDS:
            said = time.monotonic()
            print(f"{len(ids) - len(left):,} of {len(ids):,} runs have ended", flush=True)
        await asyncio.sleep(PAUSE_SECONDS)
    return Counter(statuses.values())


async def _bounded(jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Do all of it, some at a time; return the answers in order."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(job: Callable[[], Awaitable[T]]) -> T:
        async with places:
            return await job()

    return list(await asyncio.gather(*map(one, jobs)))


def count(ledger: Path, statuses: Counter[str]) -> Tally:
    """Read the ledger."""

    def orders(file: str) -> list[str]:
        path = ledger / file
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    shelves = (ledger / "reserved").iterdir() if (ledger / "reserved").exists() else ()
    reserved = Counter(path.name.partition("-")[0] for path in shelves)
    return Tally(statuses, reserved, Counter(orders("handed-over")), len(orders("asked")))


async def run(folder: Path, runs: int, seconds: float) -> int:
    """Send, wait, count, and say so."""
    key, *urls = (folder / "servers").read_text().split()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(url, key, timeout=10, retries=0))
            for url in urls
        ]
        servers = Servers(clients, seconds + PATIENCE_SECONDS)
        ids = await send(servers, runs)
        print(f"{len(ids):,} orders are accepted, as {len(set(ids)):,} runs", flush=True)
        statuses = await wait(servers, ids, time.monotonic() + seconds)
    tally = count(folder / "parcels", statuses)
    wrong = tally.wrong(runs)
    print("\n".join(tally.lines(runs)))
    print("\n".join(f"WRONG: {each}" for each in wrong) or "each once", flush=True)
    return 1 if wrong else 0


def main() -> None:
    """Read the command line, and where the servers are from the folder of up.py."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=int)
    parser.add_argument("--folder", type=Path, default=Path("three-nodes"), help="that of up.py")
    parser.add_argument("--seconds", type=float, default=600, help="how long it waits at most")
    options = parser.parse_args()
    sys.exit(asyncio.run(run(options.folder, options.runs, options.seconds)))


if __name__ == "__main__":
    main()
