"""A hundred thousand parked sessions: each waits for an answer or for a timer.

One process parks them. Then, each in a process of its own: the node is started again, left idle,
and a thousand sessions taken at random are answered at once, a thousand timers fall due within a
second; at last all of them are woken within a minute. A wake-up lasts from the answer, or from the
time at which a timer is due, until the agent's model is called.

So that nobody has to wait for hours, a life may live in the future: its clock is the machine's,
shifted by a constant.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw

from bench.measure import ROOT
from bench.memory import rss_mib
from perdure import Agent, ModelReply, ModelRequest, Runtime, ToolRequest, ask_human, wait
from perdure.adapters.clock import SystemClock

STORE = "perdure.db"
SESSIONS = 100_000
WOKEN = 1_000
PARKERS = 500
FIRST_TIMERS_MS, LAST_TIMERS_MS = 3_600_000, 7_200_000
FIRST_WITHIN_MS, LAST_WITHIN_MS = 1_000, 60_000
LEAD_MS = 8_000
IDLE_SECONDS = 5
ALL_SECONDS_MAX = 300


class ShiftedClock(SystemClock):
    """The machine's clock, a constant time ahead."""

    def __init__(self, ahead_ms: int) -> None:
        super().__init__()
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        """Return the shifted time."""
        return super().now_ms() + self._ahead_ms


class Wakes:
    """An agent that parks at once, and notes the time at which it is woken."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self.woken_at_ms: dict[str, float] = {}
        self.agent = Agent("bench", model=self._play, tools=[wait, ask_human])

    async def _play(self, request: ModelRequest) -> ModelReply:
        number, _, due_at = request.messages[0].content.partition(" ")
        if len(request.messages) > 1:
            self.woken_at_ms[number] = exact_ms(self._clock)
            return ModelReply("done")
        if due_at:
            left = (int(due_at) - self._clock.now_ms()) / 1000
            call = ToolRequest("call", "wait", {"seconds": left})
        else:
            call = ToolRequest("call", "ask_human", {"question": "May I?"})
        return ModelReply("", (call,), "tool_call")


def exact_ms(clock: SystemClock) -> float:
    """Return a clock's time with its fractions."""
    return clock.now_ms() + time.time_ns() % 1_000_000 / 1e6


def due_times(sessions: int, now_ms: int) -> list[int | None]:
    """Return when each session's timer is due: every other one has a timer.

    A thousand of them fall due within a second an hour from now, the rest within a minute of the
    next hour; which is which is left to chance.
    """
    timed = sessions // 2
    soon = min(WOKEN, timed)
    times: list[int | None] = [None] * (sessions - timed)
    times += [now_ms + FIRST_TIMERS_MS + i * FIRST_WITHIN_MS // soon for i in range(soon)]
    rest = timed - soon
    times += [now_ms + LAST_TIMERS_MS + i * LAST_WITHIN_MS // max(1, rest) for i in range(rest)]
    random.Random(1).shuffle(times)
    return times


async def park(folder: Path, sessions: int) -> dict[str, Any]:
    """Park them all."""
    clock = SystemClock()
    times = due_times(sessions, clock.now_ms())
    began = time.perf_counter()
    path = folder / STORE
    async with Runtime(f"sqlite:///{path}", agents=[Wakes(clock).agent], clock=clock) as node:
        numbers = iter(range(sessions))

        async def parker() -> None:
            for number in numbers:
                due_at = times[number]
                text = f"{number} {due_at}" if due_at else str(number)
                await node.send("bench", text, session=str(number), idempotency_key="go")

        await asyncio.gather(*(parker() for _ in range(PARKERS)))
        await node.idle()
        seconds = time.perf_counter() - began
        await asyncio.sleep(3)
        rss = rss_mib()
    return {
        "parked_per_second": sessions / seconds,
        "rss_after_parking_mib": rss,
        "stored_bytes_per_session": path.stat().st_size / sessions,
    }


class Life:
    """A started node over the parked sessions, and what it measures."""

    def __init__(self, folder: Path, ahead_ms: int, born: float) -> None:
        self._clock = ShiftedClock(ahead_ms)
        self._wakes = Wakes(self._clock)
        self._born = born
        self._path = folder / STORE
        self._runtime = Runtime(
            f"sqlite:///{self._path}", agents=[self._wakes.agent], clock=self._clock
        )
        self.figures: dict[str, float] = {}

    async def live(self, what: Callable[[], Awaitable[None]]) -> None:
        """Start, note how that went, and do something."""
        self._node = await self._runtime.start()
        self.figures["ready_seconds"] = time.time() - self._born
        await what()
        await self._runtime.stop()

    async def rest_and_wake(self) -> None:
        """Be idle, be answered a thousand times at once, and have a thousand timers fall due."""
        cpu = time.process_time()
        await asyncio.sleep(IDLE_SECONDS)
        self.figures["idle_cpu_fraction"] = (time.process_time() - cpu) / IDLE_SECONDS
        self.figures["idle_rss_mib"] = rss_mib()
        asked = random.sample(self._asking(), WOKEN)
        began = {key: exact_ms(self._clock) for key, _ in asked}
        await asyncio.gather(*(self._node.reply(run, "yes") for _, run in asked))
        await self._until(began, 30)
        self._tell("answered", began)
        soon = self._due()
        await self._until(soon, 30)
        self._tell("timer", soon)

    async def wake_all(self) -> None:
        """Have every timer fall due within a minute, and answer every question in the same."""
        asked = self._asking()
        due = self._due()
        start = min(due.values())
        began = {key: start + i * LAST_WITHIN_MS / len(asked) for i, (key, _) in enumerate(asked)}
        answering: set[asyncio.Task[None]] = set()
        for key, run in asked:
            if (left := began[key] - self._clock.now_ms()) > 0:
                await asyncio.sleep(left / 1000)
            began[key] = exact_ms(self._clock)
            task = asyncio.ensure_future(self._node.reply(run, "yes"))
            answering.add(task)
            task.add_done_callback(answering.discard)
        everything = {**due, **began}
        await self._until(everything, ALL_SECONDS_MAX)
        self._tell("all", everything)
        last = max(self._wakes.woken_at_ms.values())
        self.figures["all_awake_after_seconds"] = (last - start) / 1000
        self.figures["all_peak_rss_mib"] = rss_mib()

    def _asking(self) -> list[tuple[str, str]]:
        """Return the keys of the sessions that wait for an answer, and their runs."""
        query = """
        SELECT runs.key, runs.id FROM sessions JOIN runs USING (tenant, agent, key)
        WHERE status = 'waiting' AND wake_at IS NULL
        """
        db = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)
        found = [(str(key), str(run)) for key, run in db.execute(query)]
        db.close()
        return found

    def _due(self) -> dict[str, float]:
        """Return the parked sessions whose timers fall due within about a minute from now."""
        now = self._clock.now_ms()
        query = "SELECT key, wake_at FROM sessions WHERE wake_at BETWEEN ? AND ?"
        db = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)
        found = dict(db.execute(query, (now, now + LEAD_MS + 2 * LAST_WITHIN_MS)))
        db.close()
        return found

    async def _until(self, woken: dict[str, float], seconds_max: float) -> None:
        until = time.monotonic() + seconds_max
        while not woken.keys() <= self._wakes.woken_at_ms.keys():
            if time.monotonic() > until:
                missing = len(woken.keys() - self._wakes.woken_at_ms.keys())
                raise TimeoutError(f"{missing} of {len(woken)} sessions were not woken")
            await asyncio.sleep(0.05)

    def _tell(self, name: str, began: dict[str, float]) -> None:
        late = sorted(self._wakes.woken_at_ms[key] - at for key, at in began.items())
        self.figures[f"{name}_p50_ms"] = late[len(late) // 2]
        self.figures[f"{name}_p99_ms"] = late[len(late) * 99 // 100]
        self.figures[f"{name}_woken"] = len(late)


def in_process(folder: Path, mode: str, **options: int) -> dict[str, float]:
    """Run one life in a process of its own, and return its figures."""
    command = [sys.executable, "-m", "bench.parked", f"--folder={folder}", f"--mode={mode}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command += [f"--born={time.time()}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Do one part, and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mode", choices=["park", "rest", "all"], required=True)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--ahead-ms", type=int, default=0)
    parser.add_argument("--born", type=float, default=time.time())
    options = parser.parse_args()
    if options.mode == "park":
        print(json.dumps(asyncio.run(park(options.folder, options.sessions))))
        return
    life = Life(options.folder, options.ahead_ms, options.born)
    asyncio.run(life.live(life.rest_and_wake if options.mode == "rest" else life.wake_all))
    print(json.dumps(life.figures))


if __name__ == "__main__":
    main()
