"""What 200 readers of one byte a second cost: memory, and the latency of a run beside them.

One client does the workload. It does so alone, then beside readers of one kind, and alone again:
what the readers cost is compared with the two times without them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from bench import rig, workload
from bench.memory import rss_mib
from bench.rig import quantile
from bench.served import KEY, Served, open_served
from perdure.server.outgoing import ALL_CHARS_MAX, ROOM

SETTLE_RUNS_MIN, SETTLE_RUNS_MAX = 12, 100


async def steps_ms(served: Served, book: workload.Book, seconds: float) -> list[float]:
    """Return how long the steps of a run took that were done in so many seconds."""
    book.step_seconds = []
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        book.begin()
        await served.run(0, workload.STEPS)
    return [taken * 1000 for taken in book.step_seconds]


async def settle(served: Served) -> None:
    """Do runs until the readers are behind, and nothing waits any more for those let go."""
    for number in range(SETTLE_RUNS_MAX):
        await served.run(0, workload.STEPS)
        if number > SETTLE_RUNS_MIN and ROOM.chars == ALL_CHARS_MAX:
            return


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the ratios of latency beside slow readers to that without, and their memory.

    `steps` are those of the run whose events are read: a thousand are two megabytes.
    """
    book = workload.Book(timing=True)
    served = await open_served(options.folder, book)
    run = await served.number(options.steps)
    before = await steps_ms(served, book, options.seconds)
    memory, most = rss_mib(), rss_mib()
    readers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.slow_crowd", served.port, KEY, options.kind),
        *(str(run), str(options.readers)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, rss_mib())
            await asyncio.sleep(0.1)

    watching = asyncio.ensure_future(watch())
    await settle(served)
    beside = await steps_ms(served, book, options.seconds)
    watching.cancel()
    let_go, _ = await readers.communicate(b"")
    await settle(served)
    without = before + await steps_ms(served, book, options.seconds)
    return {
        "p50_ratio": quantile(beside, 0.5) / quantile(without, 0.5),
        "p99_ratio": quantile(beside, 0.99) / quantile(without, 0.99),
        "alone_p50_ms": quantile(without, 0.5),
        "alone_p99_ms": quantile(without, 0.99),
        "added_mib": most - memory,
        "let_go": int(let_go),
    }


if __name__ == "__main__":
    rig.main(measure, kind="stream", readers=200, seconds=1.5, steps=400)
