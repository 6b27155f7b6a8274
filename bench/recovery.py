"""A thousand runs in flight, killed at half-way and started again.

Every call of a model or a tool is written to a ledger outside of the store at the moment it is
made. After the kill the store says which calls were complete; after the restart the ledger says
whether one of those was made again. The time is that from the start of the new process, its
imports included, until the last run is complete.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from bench import workload
from bench.measure import ROOT
from perdure import Agent, ModelReply, ModelRequest, Runtime, ToolRequest, tool
from perdure.core.codec import decode_event
from perdure.core.events import ModelReplied, ToolCallSucceeded

STORE, LEDGER = "perdure.db", "ledger"
LINE = "{life} {kind} {run:6d} {turn:2d}\n"
LINE_BYTES = len(LINE.format(life=1, kind="m", run=0, turn=0))
SECONDS_MAX = 120
LOOK_SECONDS = 0.01


def agent(ledger: Path, life: int) -> Agent:
    """Return the agent: ten steps, each call noted in the ledger first."""
    book = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(kind: str, run: int, turn: int) -> None:
        os.write(book, LINE.format(life=life, kind=kind, run=run, turn=turn).encode())

    async def play(request: ModelRequest) -> ModelReply:
        run = int(request.messages[0].content.rpartition(" ")[2])
        turn = len(request.messages) // 2
        note("m", run, turn)
        if turn == workload.STEPS:
            return ModelReply("done")
        call = ToolRequest(f"call_{turn}", "search", {"run": run, "turn": turn})
        return ModelReply(workload.said(turn), (call,), "tool_call")

    @tool(effect="idempotent")
    async def search(run: int, turn: int) -> dict[str, Any]:
        """Search."""
        note("t", run, turn)
        return workload.result(turn)

    return Agent("bench", model=play, tools=[search])


async def live(folder: Path, life: int, runs: int) -> None:
    """Live one life: send `runs` messages, then go on until killed."""
    store = f"sqlite:///{folder / STORE}"
    async with Runtime(store, agents=[agent(folder / LEDGER, life)]) as node:
        await asyncio.gather(
            *(
                node.send("bench", f"{workload.prompt(run)} {run}", session=str(run))
                for run in range(runs)
            )
        )
        await asyncio.sleep(SECONDS_MAX)


def completed(folder: Path) -> Counter[tuple[str, int]]:
    """Return how many model and tool calls of each run are complete by what the store says."""
    done: Counter[tuple[str, int]] = Counter()
    db = apsw.Connection(str(folder / STORE), flags=apsw.SQLITE_OPEN_READONLY)
    query = "SELECT key, body FROM events JOIN sessions ON sessions.id = session"
    for key, body in db.execute(query):
        event = decode_event(body)
        if isinstance(event, ModelReplied):
            done["m", int(key)] += 1
        elif isinstance(event, ToolCallSucceeded):
            done["t", int(key)] += 1
    db.close()
    return done


def ended(folder: Path) -> int:
    """Return how many runs are complete."""
    db = apsw.Connection(str(folder / STORE), flags=apsw.SQLITE_OPEN_READONLY)
    db.set_busy_timeout(1000)
    count = int(db.execute("SELECT count(*) FROM runs WHERE status = 'completed'").get)
    db.close()
    return count


def begin(folder: Path, life: int, runs: int) -> subprocess.Popen[bytes]:
    """Start a life."""
    command = [sys.executable, "-m", "bench.recovery", f"--folder={folder}"]
    return subprocess.Popen([*command, f"--life={life}", f"--runs={runs}"], cwd=ROOT)


def wait_for(process: subprocess.Popen[bytes], what: Callable[[], bool]) -> None:
    """Look until something is so. Exits if the process ends or takes too long."""
    until = time.monotonic() + SECONDS_MAX
    while not what():
        if process.poll() is not None or time.monotonic() > until:
            sys.exit(f"life {process.args!r} came to nothing")
        time.sleep(LOOK_SECONDS)


def kill_and_restart(folder: Path, runs: int) -> dict[str, Any]:
    """Measure."""
    ledger = folder / LEDGER
    half = runs * workload.CALLS // 2 * LINE_BYTES
    first = begin(folder, 1, runs)
    try:
        wait_for(first, lambda: ledger.exists() and ledger.stat().st_size >= half)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    already, before = ended(folder), completed(folder)
    began = time.perf_counter()
    second = begin(folder, 2, 0)
    try:
        wait_for(second, lambda: ended(folder) == runs)
        seconds = time.perf_counter() - began
    finally:
        second.kill()
        second.wait()
    again = 0
    for line in ledger.read_text(encoding="utf-8").splitlines():
        life, kind, run, turn = line.split()
        again += life == "2" and int(turn) < before[kind, int(run)]
    return {
        "runs": runs,
        "ended_before_the_kill": already,
        "calls_complete_before_the_kill": before.total(),
        "seconds": seconds,
        "completed_calls_made_again": again,
    }


def main() -> None:
    """Measure, or live a life."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--life", type=int)
    options = parser.parse_args()
    if options.life is not None:
        asyncio.run(live(options.folder, options.life, options.runs))
    else:
        print(json.dumps(kill_and_restart(options.folder, options.runs)))


if __name__ == "__main__":
    main()
