"""Perdure as a server for a worker that speaks Norns' protocol: no batches, nothing of ours."""

from __future__ import annotations

from pathlib import Path

from bench import workload
from bench.served import Served, open_served


async def open_norns(folder: Path, book: workload.Book) -> Served:
    """Open the server, and start the worker."""
    return await open_served(folder, book, "bench.norns_worker")


if __name__ == "__main__":
    workload.main(open_norns)
