"""`perdure demo kill-me`: processes that invite `kill -9`, and a watch that goes on comparing.

The supervisor starts a ledger and an agent. Whatever of the agent's is killed is started again, and
every errand that has ended is judged: its log, the ledger, and the store as it was at each death.
It stays green as long as all of it agrees.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import click

from perdure.cli.output import plain
from perdure.core import events as e
from perdure.core.errors import PerdureError
from perdure.testing.errands import AGENT, LEDGER_VARIABLE, WORLD_VARIABLE
from perdure.testing.judge import answer_in, judge
from perdure.testing.ledger import Ledger, start_ledger
from perdure.testing.mutants import BREAK_VARIABLE, find
from perdure.testing.witness import RUNS_MAX, Kill, Line, Seen, Store, look

TICK_SECONDS = 0.25
STATUS_SECONDS = 5.0
LINGER_SECONDS = 20.0
"""An errand that has not ended this long after the last death is stuck."""
NEWEST_RUNS = 40
KILL_EVERY_SECONDS = 1.5
"""How often a broken engine is killed if nobody says otherwise."""
NO_VERDICT = 2
ENDINGS = (e.RunCompleted, e.RunFailed, e.RunCancelled)


class Watch:
    """Compares what the ledger says with what the logs say, errand by errand."""

    def __init__(self, world: Path, store: Path) -> None:
        self.ended: dict[str, tuple[int, bytes]] = {}
        self.effects: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.doubts = 0
        self.kills = 0
        self.pids: set[int] = set()
        self._world = world
        self._store = store
        self._offset = 0
        self._lines: dict[str, list[Line]] = defaultdict(list)
        self._kills: dict[str, list[Kill]] = defaultdict(list)

    def hear(self) -> list[Line]:
        """Read what the ledger has written since."""
        if not self._world.exists():
            return []
        with self._world.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        # What was ruled out is of no session, and is no effect.
        lines = [line for line in map(json.loads, whole.splitlines()) if "session" in line]
        for line in lines:
            self._lines[line["session"]].append(line)
        return lines

    async def note_death(self, pid: int) -> None:
        """Remember what was durable when a process died."""
        self.kills += 1
        self.hear()
        for name, seen in (await look(self._store, NEWEST_RUNS)).items():
            heard = len(self._lines[name])
            self._kills[name].append(Kill(pid, "kill -9", {name: seen}, heard))

    async def compare(self, runs: int = NEWEST_RUNS) -> int:
        """Judge every errand that has ended since; return the first number that has not."""
        store = await look(self._store, runs)
        self.hear()
        for name, seen in store.items():
            if name not in self.ended and seen.records and isinstance(seen.events[-1], ENDINGS):
                self._judge(name, seen)
        number = 1
        while f"default/{AGENT}/e{number}" in self.ended:
            number += 1
        return number

    async def compare_all(self) -> None:
        """Read every errand that was judged once more: nothing of it may have changed."""
        store = await look(self._store)
        for name, standing in self.ended.items():
            if name not in store or _standing(store[name]) != standing:
                self.wrong.append(f"{name}: its log was changed after its end")

    def _judge(self, name: str, seen: Seen) -> None:
        lines, kills = self._lines.pop(name, []), self._kills.pop(name, [])
        alone: Store = {name: seen}
        found = judge(lines, kills, alone, alone)
        self.wrong += [f"{name}: {text}" for text in found.violations()]
        if answer_in(seen) != "done":
            self.wrong.append(f"{name}: it did not end with its answer")
        for counts in found.by_effect.values():
            self.effects["sent"] += counts.sent
            self.effects["took effect"] += counts.took_effect
            self.doubts += counts.unknown
        self.ended[name] = _standing(seen)


def _standing(seen: Seen) -> tuple[int, bytes]:
    return len(seen.records), seen.records[-1].hash


class Supervisor:
    """Starts the processes, starts again what was killed, and shows what the watch finds."""

    def __init__(
        self, work: Path, mutant: str | None, every_s: float | None, seed: int, rounds: int | None
    ) -> None:
        self._address = Path(tempfile.mkdtemp(prefix="ledger-")) / "s"
        self._work = work
        self._store = work / "errands.db"
        self._world = work / "ledger.jsonl"
        self._watch = Watch(self._world, self._store)
        self._mutant = mutant
        self._every_s = every_s
        self._chance = random.Random(seed)
        self._rounds = rounds
        self._began = time.monotonic()
        self._agent: subprocess.Popen[bytes] | None = None
        self._tools: list[int] = []
        self._progressed = self._began

    async def run(self) -> int:
        """Go on until enough errands have ended, something is wrong, or Ctrl-C."""
        ledger = start_ledger(self._address)
        self._say(f"supervisor {os.getpid()}, ledger {ledger.pid}; store {self._store}")
        self._say("kill -9 the agent or a tool, as often as you like; Ctrl-C ends")
        try:
            return await self._supervise(ledger)
        finally:
            self._stop()
            assert ledger.stdin is not None
            ledger.stdin.close()
            ledger.wait()
            self._address.unlink(missing_ok=True)
            self._address.parent.rmdir()

    async def _supervise(self, ledger: subprocess.Popen[bytes]) -> int:
        first, shown = await self._watch.compare(RUNS_MAX), 0.0
        next_kill = time.monotonic() + (self._every_s or 0)
        while True:
            if ledger.poll() is not None:
                self._say("the ledger was killed: there is no witness any more, and no verdict")
                return NO_VERDICT
            if self._agent is None or self._agent.poll() is not None:
                await self._start_again(first)
            await asyncio.sleep(TICK_SECONDS)
            self._note_tools()
            before = len(self._watch.ended)
            first = await self._watch.compare()
            if len(self._watch.ended) > before:
                self._progressed = time.monotonic()
            self._look_for_stuck(first)
            if self._watch.wrong:
                return self._end(1)
            if self._rounds is not None and len(self._watch.ended) >= self._rounds:
                await self._watch.compare_all()
                return self._end(1 if self._watch.wrong else 0)
            now = time.monotonic()
            if self._every_s is not None and now >= next_kill:
                next_kill = now + self._every_s
                self._kill_somebody()
            if now - shown >= STATUS_SECONDS:
                shown = now
                self._say(self.status())

    def status(self) -> str:
        """Return the verdict so far, in a line."""
        watch = self._watch
        colour = "RED  " if watch.wrong else "green"
        return (
            f"{colour}  {len(watch.ended)} errands, {watch.kills} kills, "
            f"{watch.effects['took effect']} effects of {watch.effects['sent']} calls, "
            f"{watch.doubts} doubts shown, {len(watch.wrong)} wrong"
        )

    def _end(self, code: int) -> int:
        for text in self._watch.wrong:
            self._say(f"FAIL   {text}")
        self._say(self.status())
        return code

    async def _start_again(self, first: int) -> None:
        """Start the agent; if one has died, remember first what was durable then."""
        was, died = "", self._agent
        if died is not None:
            self._settle()
            await self._watch.note_death(died.pid)
            self._progressed = time.monotonic()
            how = died.returncode
            told = signal.Signals(-how).name if how < 0 else f"exit code {how}"
            was = f"agent {died.pid} ended by {told}; "
        self._agent = self._start_agent(first)
        self._say(f"{was}agent {self._agent.pid} started")

    def _start_agent(self, first: int) -> subprocess.Popen[bytes]:
        store = f"--store=sqlite:///{self._store}"
        environment = {
            **os.environ,
            LEDGER_VARIABLE: str(self._address),
            WORLD_VARIABLE: str(self._world),
            BREAK_VARIABLE: self._mutant or "",
        }
        with (self._work / "agent.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "perdure.testing.errands", store, f"--first={first}"],
                stdin=subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def _note_tools(self) -> None:
        """Show the processes of isolated tools: they can be killed alone."""
        agent = self._agent.pid if self._agent is not None else 0
        for line in self._watch.hear():
            if line["what"] == "tool" and line["tool"] == "weigh":
                self._tools.append(line["pid"])
                if line["pid"] != agent:
                    self._say(f"tool weigh runs in process {line['pid']} for {line['session']}")

    def _look_for_stuck(self, first: int) -> None:
        if time.monotonic() - self._progressed > LINGER_SECONDS:
            seconds = int(LINGER_SECONDS)
            self._watch.wrong.append(f"e{first}: nothing has ended for {seconds} s: it is stuck")

    def _kill_somebody(self) -> None:
        """Kill the agent, or now and then a tool's process alone."""
        assert self._agent is not None
        victims = [self._agent.pid, self._agent.pid, *self._tools[-1:]]
        victim = self._chance.choice(victims)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self._agent.pid, signal.SIGKILL)
            victim = self._agent.pid
        self._tools.clear()
        self._say(f"kill -9 {victim}, at random")

    def _settle(self) -> None:
        ledger = Ledger(self._address, self._world)
        ledger.settle()
        ledger.close()

    def _stop(self) -> None:
        if self._agent is not None and self._agent.poll() is None:
            self._agent.kill()
            self._agent.wait()

    def _say(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._began:7.1f} s  {text}")
        sys.stdout.flush()


@click.command()
@click.option("--kill-every-seconds", "every_s", type=click.FloatRange(min=0.1))
@click.option("--seed", type=int, default=0)
@click.option("--rounds", type=click.IntRange(min=1))
@click.option("--break", "mutant")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path))
def main(
    every_s: float | None, seed: int, rounds: int | None, mutant: str | None, directory: Path | None
) -> None:
    """Run the demonstration until it is ended."""
    try:
        if mutant is not None:
            click.echo(f"broken on purpose: {find(mutant).what}")
            every_s = every_s or KILL_EVERY_SECONDS
        with tempfile.TemporaryDirectory(prefix="perdure-kill-me-") as temporary:
            work = directory or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            supervisor = Supervisor(work.resolve(), mutant, every_s, seed, rounds)
            try:
                code = asyncio.run(supervisor.run())
            except KeyboardInterrupt:
                click.echo(supervisor.status())
                code = 0
        sys.exit(code)
    except PerdureError as error:
        click.echo(f"perdure: {plain(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
