"""Lives by fork: a process that has imported everything forks lives, and sees them die.

Nothing of the engine runs in the process that forks; it may have no threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from perdure.bootstrap import Runtime
from perdure.core.errors import Quarantined
from perdure.testing.clerk import life
from perdure.testing.durability import WORLD_FILE, World
from perdure.testing.faults import Fault, FaultPlan
from perdure.testing.judge import Found, judge
from perdure.testing.ledger import Ledger, read_ledger
from perdure.testing.mutants import break_engine
from perdure.testing.mutation.patches import Patches
from perdure.testing.witness import SESSION, Kill, Store, look

LIFE_SECONDS_MAX = 20
BROKEN_LIFE_SECONDS_MAX = 4
"""A mutant may hang: nobody has to wait for it long."""
SNAPSHOT_EVERY_EVENTS = 7
"""So often that the short logs of the rig have snapshots and tails."""
RELEASES_MAX = 3

Ending = Literal["killed", "ended", "set aside", "failed", "stuck"]
_CODES: dict[int, Ending] = {0: "ended", 3: "set aside"}
_SET_ASIDE = 3


class Life(NamedTuple):
    """A process that is no more, and how it ended."""

    pid: int
    ending: Ending


class Outcome(NamedTuple):
    """One scenario: what was planned, where lives were ended, what came of it, and how long."""

    faults: tuple[Fault, ...]
    sites: tuple[str, ...]
    found: Found
    seconds: float
    recovery_seconds: float

    @property
    def name(self) -> str:
        """Return the faults as they are written."""
        return ",".join(f"{fault.site}:{fault.hit}" for fault in self.faults)


class Rig:
    """Runs scenarios in a folder of its own; `mutant` breaks every life that is to be judged."""

    def __init__(self, work: Path, root: Path, ledger: Path, mutant: str | None = None) -> None:
        work.mkdir(exist_ok=True)
        self._work = work
        self._root = root
        self._ledger = ledger
        self._mutant = mutant
        self._number = 0
        self.quiet: Store = {}
        self.hits: dict[str, int] = {}

    def count(self) -> None:
        """Run undisturbed once, unbroken: the reference, and how often each site is reached.

        Raises `SystemExit` if that fails.
        """
        store, out = self._fresh()
        counted = out.with_suffix(".json")
        if self._live(store, out, (), None, counted).ending != "ended":
            raise SystemExit("the undisturbed run failed")
        self.quiet = asyncio.run(look(store))
        self.hits = json.loads(counted.read_text())

    def scenario(self, planned: Sequence[Fault]) -> Outcome:
        """Run one life for each fault, killed there, and then one to the end; judge them all."""
        began = time.monotonic()
        store, out = self._fresh()
        kills: list[Kill] = []
        for fault in planned:
            life = self._living(store, out, (fault,))
            if life.ending != "killed":
                break
            kills.append(self._seen(store, out, life.pid, fault.site))
        recovery = time.monotonic()
        self._living(store, out, ())
        ended = time.monotonic()
        last = self._seen(store, out, 0, "")
        found = judge(read_ledger(out / WORLD_FILE), kills, self.quiet, last.store)
        shutil.rmtree(out)
        for file in self._work.glob(f"{store.name}*"):
            file.unlink()
        sites = tuple(kill.site for kill in kills)
        return Outcome(tuple(planned), sites, found, ended - began, ended - recovery)

    def _seen(self, store: Path, out: Path, pid: int, site: str) -> Kill:
        ledger = Ledger(self._ledger, out / WORLD_FILE)
        ledger.settle()
        ledger.close()
        return Kill(pid, site, asyncio.run(look(store)), len(read_ledger(out / WORLD_FILE)))

    def _fresh(self) -> tuple[Path, Path]:
        self._number += 1
        out = self._work / f"out-{self._number}"
        out.mkdir()
        return self._work / f"{self._number}.db", out

    def _living(self, store: Path, out: Path, planned: Sequence[Fault]) -> Life:
        """Run a life; a session that was set aside after too many deaths is released by hand."""
        life = self._live(store, out, planned, self._mutant)
        for _ in range(RELEASES_MAX):
            if life.ending != "set aside":
                break
            asyncio.run(_release_by_hand(store))
            life = self._live(store, out, planned, self._mutant)
        return life

    def _live(
        self,
        store: Path,
        out: Path,
        planned: Sequence[Fault],
        mutant: str | None,
        counted: Path | None = None,
    ) -> Life:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = self._be_alive(store, out, planned, mutant, counted)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            return Life(pid, _CODES.get(os.WEXITSTATUS(status), "failed"))
        return Life(pid, "stuck" if os.WTERMSIG(status) == signal.SIGALRM else "killed")

    def _be_alive(
        self,
        store: Path,
        out: Path,
        planned: Sequence[Fault],
        mutant: str | None,
        counted: Path | None,
    ) -> int:
        """Do the work in this process, as broken as is wanted; return the exit code."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIFE_SECONDS_MAX if mutant is None else BROKEN_LIFE_SECONDS_MAX)
        Patches().name(
            "perdure.core.limits", "SNAPSHOT_EVERY_EVENTS", lambda _: SNAPSHOT_EVERY_EVENTS
        )
        if mutant is not None:
            break_engine(mutant)
            # What a broken engine complains of is the judge's to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        plan = FaultPlan(tuple(planned)).install().count_steps()
        code = 0
        try:
            asyncio.run(life(f"sqlite:///{store}", World(self._root, out, self._ledger)))
        except* Quarantined:
            code = _SET_ASIDE
        if counted is not None:
            counted.write_text(json.dumps(plan.hits))
        return code


async def _release_by_hand(store: Path) -> None:
    """Release what was set aside because its host died so often without progress."""
    async with Runtime(f"sqlite:///{store}", recover=False) as node:
        for name in ("surveyor/survey", "clerk/desk"):
            agent, key = name.split("/")
            loaded = await node._store.load(SESSION._replace(agent=agent, key=key))
            if loaded is not None and loaded.quarantine is not None:
                await node.release(agent, key)
