"""How long a GET of a run takes from outside while the node does all it can."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from bench import rig, workload
from bench.rig import quantile
from bench.served import KEY, open_served
from bench.served_worker import STEPS_MAX

PAUSE_MS = 20


async def asked(port: str, runs: list[int], seconds: float) -> list[float]:
    """Return how many milliseconds the answers took that a process got in so many seconds."""
    paths = [f"/api/v1/runs/{run}" for run in runs]
    prober = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.prober", port, KEY, str(seconds), str(PAUSE_MS), *paths),
        stdout=asyncio.subprocess.PIPE,
    )
    took, _ = await prober.communicate()
    return list(json.loads(took))


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return percentiles, at rest and at full load, and what was done meanwhile.

    Asked for is a run that has ended, at full load in turn with one that goes on all the time.
    """
    book = workload.Book(timing=False)
    served = await open_served(options.folder, book)
    runs = [await served.number(workload.STEPS)]
    figures: dict[str, Any] = {}
    for name, clients in (("rest", 0), ("load", options.concurrency)):
        async with workload.busy(served, book, clients):
            if clients:
                runs.append(await served.number(STEPS_MAX - 1, ended=False))
            calls, began = book.calls, time.perf_counter()
            took = await asked(served.port, runs, options.seconds)
            figures[f"{name}_calls_per_second"] = (book.calls - calls) / (
                time.perf_counter() - began
            )
        figures |= {f"{name}_p50_ms": quantile(took, 0.5), f"{name}_p99_ms": quantile(took, 0.99)}
    return figures


if __name__ == "__main__":
    rig.main(measure, concurrency=1_000, seconds=3.0)
