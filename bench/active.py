"""What an active session costs its node while it waits for a model: memory, and CPU.

    python -m bench.active
    python -m bench.active --sessions 10000 --message-bytes 10000

Each session has one run, whose model does not answer. The worker is in the same process, so that a
task of it is counted as well; a node whose workers are elsewhere has less.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.memory import rss_mib
from perdure import Agent, ModelReply, ModelRequest, Runtime

SENDERS = 200
IDLE_S = 5


class Waits:
    """An agent whose model never answers, and when so many wait for it."""

    def __init__(self, sessions: int) -> None:
        self.left = sessions
        self.all_wait = asyncio.Event()
        self.agent = Agent("bench", model=self._play)

    async def _play(self, request: ModelRequest) -> ModelReply:
        self.left -= 1
        if self.left == 0:
            self.all_wait.set()
        await asyncio.Event().wait()
        return ModelReply("")


async def measure(folder: Path, sessions: int, message_bytes: int) -> tuple[float, float]:
    """Return the KiB for each session, and how much of a core they take while all of them wait."""
    waits = Waits(1 + sessions)
    async with Runtime(f"sqlite:///{folder}/perdure.db", agents=[waits.agent]) as node:
        await node.send("bench", "first", session="first")
        numbers = iter(range(sessions))

        async def sender() -> None:
            for number in numbers:
                text = f"{number} ".ljust(message_bytes, "x")
                await node.send("bench", text, session=str(number))

        gc.collect()
        before_mib = rss_mib()
        await asyncio.gather(*(sender() for _ in range(SENDERS)))
        await waits.all_wait.wait()
        gc.collect()
        after_mib, spent_s = rss_mib(), time.process_time()
        await asyncio.sleep(IDLE_S)
        core = (time.process_time() - spent_s) / IDLE_S
    return (after_mib - before_mib) * 1024 / sessions, core


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.active")
    parser.add_argument("--sessions", type=int, default=5_000)
    parser.add_argument("--message-bytes", type=int, default=1_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        kib, core = asyncio.run(measure(Path(folder), options.sessions, options.message_bytes))
    print(
        f"{options.sessions} sessions that wait for a model, messages of {options.message_bytes}"
        f" bytes: {kib:.1f} KiB each, {core:.3f} of a core in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
