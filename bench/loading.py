"""How long it takes to take up a session again, by the length of its history.

Sessions of different lengths are made, and their process ends. Each is then sent a message in a
fresh runtime, and the time is that from sending it until the model is called: the message becomes
durable, the session is claimed, its snapshot and the events after it are read and folded, the part
of the history that the model is shown is read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from bench import workload
from perdure import (
    Agent,
    ContextPolicy,
    Limits,
    ModelReply,
    ModelRequest,
    NodeSettings,
    Runtime,
    ToolRequest,
    tool,
)

EVENTS = (1_000, 10_000, 50_000)
EVENTS_PER_STEP = 4
ROUNDS = 15
WORDS = 40


class Loading:
    """An agent whose sessions can be made as long as wanted."""

    def __init__(self, path: Path) -> None:
        self._store = f"sqlite:///{path}"
        self._called_at = 0.0
        self._left: dict[str, int] = {}

        async def play(request: ModelRequest) -> ModelReply:
            self._called_at = time.perf_counter()
            name = next(iter(self._left), "")
            left = self._left.get(name, 0)
            if left == 0:
                return ModelReply("done")
            self._left[name] = left - 1
            call = ToolRequest(f"call_{left}", "search", {"turn": left})
            return ModelReply(workload.said(left)[:WORDS], (call,), "tool_call")

        @tool(effect="idempotent")
        async def search(turn: int) -> dict[str, Any]:
            """Search."""
            return {"ok": True}

        self._agent = Agent(
            "bench",
            model=play,
            tools=[search],
            limits=Limits(steps_max=max(EVENTS)),
            context=ContextPolicy("window", window_messages=40),
        )

    def runtime(self) -> Runtime:
        """Return a runtime over the store, not started."""
        return Runtime(self._store, agents=[self._agent], settings=NodeSettings(linger_ms=1))

    async def make(self, events: int) -> None:
        """Make a session of about so many events, named after their number."""
        async with self.runtime() as node:
            self._left = {str(events): events // EVENTS_PER_STEP}
            run = await node.send("bench", "go", session=str(events))
            await run.result()
            self._left = {}

    async def take_up(self, events: int) -> float:
        """Return the seconds from a message to the model's call, in a fresh runtime."""
        async with self.runtime() as node:
            began = time.perf_counter()
            run = await node.send("bench", "and now?", session=str(events))
            await run.result()
            return self._called_at - began


async def measure(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Make the sessions, then take each up in turn, some times."""
    loading = Loading(folder / "perdure.db")
    for events in EVENTS:
        await loading.make(events)
    return {"rounds": [await one_round(loading) for _ in range(ROUNDS)]}


async def one_round(loading: Loading) -> dict[str, float]:
    """Take each session up once."""
    took = {events: await loading.take_up(events) for events in EVENTS}
    shortest, *longer = EVENTS
    return {
        **{f"take_up_{events}_ms": took[events] * 1000 for events in EVENTS},
        **{f"ratio_{events}": took[events] / took[shortest] for events in longer},
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    print(json.dumps(asyncio.run(measure(parser.parse_args().folder))))


if __name__ == "__main__":
    main()
