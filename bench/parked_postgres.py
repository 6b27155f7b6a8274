"""A hundred thousand parked sessions on PostgreSQL: what `bench.parked` does, on a shared store.

A server is started, one process parks them, and another one is a node that starts, rests, and has a
thousand of them answered at once and a thousand timers due within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

from bench import machine, parked, report
from bench.measure import ROOT, Figures
from bench.report import Target
from perdure import Runtime
from perdure.testing.servers.postgres import PostgresServer

START_SECONDS = 4
ASKING = """
SELECT runs.key, runs.id FROM perdure.sessions JOIN perdure.runs USING (tenant_id, agent, key)
WHERE status = 'waiting' AND wake_at IS NULL
"""
DUE = "SELECT key, wake_at FROM perdure.sessions WHERE wake_at BETWEEN $1 AND $2"
FIRST = "SELECT min(wake_at) FROM perdure.sessions WHERE wake_at > 0"


class Life(parked.Life):
    """A started node over sessions that are parked on PostgreSQL."""

    def __init__(self, url: str, ahead_ms: int, born: float) -> None:
        super().__init__(Path(), ahead_ms, born)
        self._url = url
        self._runtime = Runtime(url, agents=[self._wakes.agent], clock=self._clock)
        self._asked: list[tuple[str, str]] = []
        self._times: dict[str, float] = {}

    async def look(self) -> None:
        """Read beforehand who waits for what: that is not part of what is measured."""
        db: Any = await asyncpg.connect(self._url)
        now = self._clock.now_ms()
        until = now + parked.LEAD_MS + 2 * parked.LAST_WITHIN_MS
        self._asked = [(row[0], row[1]) for row in await db.fetch(ASKING)]
        self._times = {row[0]: row[1] for row in await db.fetch(DUE, now, until)}
        await db.close()

    def _asking(self) -> list[tuple[str, str]]:
        return self._asked

    def _due(self) -> dict[str, float]:
        return self._times


async def park(url: str, sessions: int) -> dict[str, float]:
    """Park them all; return how quickly."""
    clock = parked.SystemClock()
    times = parked.due_times(sessions, clock.now_ms())
    began = time.perf_counter()
    async with Runtime(url, agents=[parked.Wakes(clock).agent], clock=clock) as node:
        numbers = iter(range(sessions))

        async def parker() -> None:
            for number in numbers:
                due_at = times[number]
                text = f"{number} {due_at}" if due_at else str(number)
                await node.send("bench", text, session=str(number), idempotency_key="go")

        await asyncio.gather(*(parker() for _ in range(parked.PARKERS)))
        await node.idle()
    return {"parked_per_second": sessions / (time.perf_counter() - began)}


async def live(url: str, ahead_ms: int, born: float) -> dict[str, float]:
    """Live once; return what was measured."""
    life = Life(url, ahead_ms, born)
    await life.live(lambda: _rest(life))
    return life.figures


async def _rest(life: Life) -> None:
    await life.look()
    await life.rest_and_wake()


def run(sessions: int, command: str, tell: Callable[[str], None]) -> None:
    """Measure, and write the section."""
    began, described = time.monotonic(), machine.described()
    with PostgresServer.start() as server:
        url = server.fresh_database()
        tell(f"parking {sessions:,} sessions on PostgreSQL")
        parking = _in_process(url, "park", sessions=sessions)
        first = int(server.sql(FIRST, url))
        tell("restart, rest, wake")
        ahead_ms = first - int(time.time() * 1000) - parked.LEAD_MS - START_SECONDS * 1000
        rest = _in_process(url, "rest", ahead_ms=ahead_ms)
    many = f"{sessions:,} parked"
    rows = [
        Target(f"{many}: start to ready", [rest["ready_seconds"]], most=5, unit=" s"),
        Target("1,000 answered at once: p99", [rest["answered_p99_ms"]], 0, None, 1000, " ms"),
        Target("1,000 answered at once: p50", [rest["answered_p50_ms"]], 0, unit=" ms"),
        Target(
            "1,000 timers due within a second: p99", [rest["timer_p99_ms"]], 0, None, 1000, " ms"
        ),
        Target("1,000 timers due within a second: p50", [rest["timer_p50_ms"]], 0, unit=" ms"),
        Target(f"{many}: idle RSS of the node", [rest["idle_rss_mib"]], 0, unit=" MiB"),
        Target(f"{many}: CPU of the idle node, of a core", [rest["idle_cpu_fraction"]], 4),
        Target("sessions parked a second", [parking["parked_per_second"]], 0),
    ]
    report.write(
        "Parked sessions on PostgreSQL",
        [
            f"`{command}`, once, in {time.monotonic() - began:.0f} s",
            "",
            *described,
            (
                f"- {sessions:,} sessions of 5 events, one half waits for an answer, the other for "
                "a timer"
            ),
            "",
            *report.targets(rows),
        ],
    )


def _in_process(url: str, mode: str, **options: int) -> Figures:
    command = [sys.executable, "-m", "bench.parked_postgres", f"--mode={mode}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command += [f"--born={time.time()}"]
    environment = {**os.environ, "BENCH_STORE": url}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def main() -> None:
    """Do one part, and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["park", "rest"], required=True)
    parser.add_argument("--sessions", type=int, default=parked.SESSIONS)
    parser.add_argument("--ahead-ms", type=int, default=0)
    parser.add_argument("--born", type=float, default=time.time())
    options = parser.parse_args()
    url = os.environ["BENCH_STORE"]
    if options.mode == "park":
        figures = asyncio.run(park(url, options.sessions))
    else:
        figures = asyncio.run(live(url, options.ahead_ms, options.born))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
