"""What a rig of `--served` is run by: a process that measures once, and prints it as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.sockets import allow_files

Measure = Callable[[argparse.Namespace], Awaitable[dict[str, Any]]]


def main(measure: Measure, **options: Any) -> None:
    """Measure as the command line says. `options` are what it may say, with their defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for the store")
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = parser.parse_args()
    allow_files()

    async def measure_and_leave() -> None:
        print(json.dumps(await measure(given)), flush=True)
        os._exit(0)

    asyncio.run(measure_and_leave())


def quantile(values: list[float], share: float) -> float:
    """Return the value that so large a share of the values are not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
