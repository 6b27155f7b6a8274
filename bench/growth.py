"""A thousand steps in one session: what a step costs and stores, early and late.

Two sessions of the same agent take turns of ten steps: while the older one does its steps 900 to
1,000 the younger one does its steps 100 to 200, so that both see the same machine. The one that
waits for its turn is held in its model call.

The agent sees a window of its history, as an agent with such a session has to. With
`--context none` it is shown everything, which grows with the history by what it means.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import apsw

from bench import workload
from perdure import Agent, ContextPolicy, Limits, ModelReply, ModelRequest, Runtime, ToolRequest
from perdure import tool as make_tool
from perdure.core.events import ModelCallIntended

OLD_STEPS, YOUNG_STEPS = 1_000, 200
LAST = 100
TURN_STEPS = 10
INTENT = f'{{"type":"{ModelCallIntended.__struct_config__.tag}"'.encode()


class Session:
    """One of the two: what its steps took, in seconds of wall and of CPU time, and its turn."""

    def __init__(self, steps: int, alone_until: int) -> None:
        self.steps = steps
        self.took: list[tuple[float, float]] = []
        self._alone_until = alone_until
        self._began: tuple[float, float] | None = None
        self._turn = 0
        self._my_turn = asyncio.Event()

    async def called(self, other: Session) -> int:
        """Note a call of the model; when a turn is over, let the other session have its own."""
        now = time.perf_counter(), time.process_time()
        if self._began is not None:
            self.took.append((now[0] - self._began[0], now[1] - self._began[1]))
        step = len(self.took)
        if step >= self._alone_until and step % TURN_STEPS == 0:
            self._my_turn.clear()
            other._my_turn.set()
            if step < self.steps:
                await self._my_turn.wait()
        self._began = time.perf_counter(), time.process_time()
        return step

    def median(self, which: int) -> float:
        """Return the median of the last hundred steps: 0 for wall time, 1 for CPU time."""
        return statistics.median(took[which] for took in self.took[-LAST:])


async def grow(folder: Path, context: ContextPolicy) -> dict[str, Any]:
    """Have both sessions do their steps; compare the last hundred of each."""
    path = folder / "perdure.db"
    old, young = Session(OLD_STEPS, OLD_STEPS - YOUNG_STEPS), Session(YOUNG_STEPS, 0)
    pairs = {"old": (old, young), "young": (young, old)}

    async def play(request: ModelRequest) -> ModelReply:
        name = request.instructions
        own, other = pairs[name]
        step = await own.called(other)
        if step == own.steps:
            return ModelReply("done")
        call = ToolRequest(f"call_{step}", "search", {"turn": step})
        return ModelReply(workload.said(step), (call,), "tool_call")

    @make_tool(effect="idempotent")
    async def search(turn: int) -> dict[str, Any]:
        """Search."""
        return workload.result(turn)

    limits = Limits(steps_max=OLD_STEPS + 1)
    agents = [
        Agent(name, model=play, instructions=name, tools=[search], limits=limits, context=context)
        for name in pairs
    ]
    async with Runtime(f"sqlite:///{path}", agents=agents) as node:
        runs = [await node.send(name, "go", session=name) for name in pairs]
        await asyncio.gather(*(run.result() for run in runs))
    stored = {name: statistics.fmean(step_bytes(path, name)[-LAST - 1 : -1]) for name in pairs}
    return {
        "late_to_early_wall": old.median(0) / young.median(0),
        "late_to_early_cpu": old.median(1) / young.median(1),
        "late_to_early_bytes": stored["old"] / stored["young"],
        "late_step_us": old.median(0) * 1e6,
        "late_step_bytes": stored["old"],
    }


def step_bytes(path: Path, agent: str) -> list[int]:
    """Return the bytes that each step of a session has in the log, from intent to intent."""
    sizes: list[int] = []
    query = """
    SELECT body, length(body) + length(hash) FROM events JOIN sessions ON sessions.id = session
    WHERE agent = ? ORDER BY seq
    """
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    for body, size in db.execute(query, (agent,)):
        if body.startswith(INTENT):
            sizes.append(0)
        if sizes:
            sizes[-1] += size
    db.close()
    return sizes


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--context", choices=["window", "none"], default="window")
    options = parser.parse_args()
    policies = {"window": ContextPolicy("window", window_messages=40), "none": ContextPolicy()}
    print(json.dumps(asyncio.run(grow(options.folder, policies[options.context]))))


if __name__ == "__main__":
    main()
