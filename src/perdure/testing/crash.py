"""Kill real processes at every fault point of a short run, and compare with the undisturbed run.

The run is that of `perdure.testing.durability`. Every point is first counted in an undisturbed
process; then, for each, a process is forked that sends itself SIGKILL there, and others follow
until one finishes. With `--twice` the second life is killed as well, while it recovers.

`python -m perdure.testing.crash [--report FILE] [--seed N] [--twice]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from perdure.bootstrap import Runtime, sqlite_version
from perdure.core.errors import Quarantined
from perdure.ports import faults
from perdure.runtime.handles import RecordedEvent
from perdure.testing.durability import survey
from perdure.testing.faults import Fault, FaultPlan
from perdure.testing.witness import SESSION, Found, Kill, judge, read_ledger, read_log

RECOVERY_SITES = (
    "recovery.scanned",
    "claim.after",
    "commit.submitted",
    "store.before_commit",
    "store.after_commit",
)
KILLS_PER_SEED_MAX = 5
SURVIVED = 0
SET_ASIDE = 3


class Outcome(NamedTuple):
    """One scenario: the faults that were met, what became of the work, and how long it took."""

    faults: tuple[Fault, ...]
    met: int
    found: Found
    seconds: float


class Rig:
    """Forks lives of the agent over stores in a directory of its own."""

    def __init__(self, work: Path, root: Path) -> None:
        self._work = work
        self._root = root
        self._number = 0
        self.quiet: list[RecordedEvent] = []
        self.points: list[Fault] = []

    def count(self) -> None:
        """Run undisturbed once: the reference, and the list of all points."""
        counted = self._work / "counted.json"
        store, out = self._fresh()
        if self._life(store, out, (), counted) != SURVIVED:
            raise SystemExit("the undisturbed run failed")
        self.quiet = asyncio.run(read_log(store))[0]
        hits: dict[str, int] = json.loads(counted.read_text())
        self.points = [Fault(site, n) for site in hits for n in range(1, hits[site] + 1)]

    def scenario(self, planned: Sequence[Fault]) -> Outcome:
        """Run one life for each fault, killed there, and then one to the end."""
        began = time.monotonic()
        store, out = self._fresh()
        kills: list[Kill] = []
        for fault in planned:
            pid = self._life(store, out, (fault,))
            if pid == SURVIVED:
                break
            kills.append(Kill(pid, fault.site, *asyncio.run(read_log(store))))
        if self._life(store, out, ()) != SURVIVED:
            raise SystemExit(f"the last life after {', '.join(map(str, planned))} failed")
        log, records = asyncio.run(read_log(store))
        found = judge(out, kills, self.quiet, log, records)
        self.effects = Counter(
            line["tool"] for line in read_ledger(out) if line["what"] == "effect"
        )
        shutil.rmtree(out)
        return Outcome(tuple(planned), len(kills), found, time.monotonic() - began)

    def _fresh(self) -> tuple[Path, Path]:
        self._number += 1
        return self._work / f"{self._number}.db", self._work / f"out-{self._number}"

    def _life(
        self, store: Path, out: Path, planned: Sequence[Fault], counted: Path | None = None
    ) -> int:
        """Fork a life; return its process id if it was killed, 0 if it came to its end."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                plan = FaultPlan(tuple(planned)).install()
                asyncio.run(survey(f"sqlite:///{store}", self._root, out, None))
                if counted is not None:
                    counted.write_text(json.dumps(plan.hits))
                code = SURVIVED
            except Quarantined:
                code = SET_ASIDE
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            return pid
        if os.WEXITSTATUS(status) == SET_ASIDE:
            asyncio.run(_release_by_hand(store))
            return self._life(store, out, planned)
        if os.WEXITSTATUS(status) != SURVIVED:
            raise SystemExit(f"a life failed by itself ({', '.join(map(str, planned))})")
        return SURVIVED


def every_point(rig: Rig, twice: bool) -> list[Outcome]:
    """Kill at every point once, or there and again during the recovery."""
    outcomes = []
    for number, point in enumerate(rig.points):
        second = Fault(RECOVERY_SITES[number % len(RECOVERY_SITES)], 1)
        outcomes.append(rig.scenario((point, second) if twice else (point,)))
    return outcomes


def one_seed(rig: Rig, seed: int) -> Outcome:
    """Kill at up to five points that the seed chooses, one life after the other."""
    chance = random.Random(seed)
    kills = chance.randint(1, KILLS_PER_SEED_MAX)
    return rig.scenario(tuple(chance.choice(rig.points) for _ in range(kills)))


def report(outcomes: Sequence[Outcome], rig: Rig) -> str:
    """Return the page that says what was tried and what came of it."""
    good = sum(outcome.found.good and outcome.found.same_answer for outcome in outcomes)
    hit = {fault.site for outcome in outcomes for fault in outcome.faults[: outcome.met]}
    total = len(faults.SITES)
    sums = {name: sum(getattr(o.found, name) for o in outcomes) for name in COUNTED}
    lines = [
        "# Proof",
        "",
        "Written by `make proof`; do not edit. A real process over SQLite is killed with SIGKILL",
        "at every fault point of a short run with one tool of each effect class, and again while",
        "it recovers; another process finishes. Then the log, the ledger of the far ends and the",
        "undisturbed run are held against each other.",
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| fault points reached / known | {len(hit & set(faults.SITES))} / {total} |",
        f"| scenarios | {len(outcomes)} |",
        f"| process deaths | {sum(outcome.met for outcome in outcomes)} |",
        f"| of which while recovering | {sum(max(0, o.met - 1) for o in outcomes)} |",
        *(f"| {name.replace('_', ' ')} | {count} |" for name, count in sums.items()),
        f"| runs completed with the undisturbed answer | {good} |",
        f"| slowest scenario, seconds | {max(o.seconds for o in outcomes):.2f} |",
        "",
        _machine(),
        "",
    ]
    missing = sorted(set(faults.SITES) - hit)
    if missing:
        lines += [f"Not reached by this run: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def _machine() -> str:
    versions = f"Python {platform.python_version()}, SQLite {sqlite_version()}"
    return f"{versions}, {platform.system()} on {os.cpu_count()} cores."


COUNTED = ("re_executed_calls", "duplicate_effects", "missing_effects", "lost_events")


def main() -> int:
    """Run the suite or one seed; the exit code is 0 only if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perdure-crash-") as work:
        root = Path(work) / "tree"
        _plant(root)
        rig = Rig(Path(work), root)
        rig.count()
        if options.seed is not None:
            outcomes = [one_seed(rig, options.seed)]
        else:
            outcomes = every_point(rig, options.twice)
            if options.report:
                outcomes += every_point(rig, twice=True)
    bad = [o for o in outcomes if not (o.found.good and o.found.same_answer)]
    for outcome in bad if options.seed is None else outcomes:
        where = ", ".join(map(str, outcome.faults))
        sys.stdout.write(f"{'BAD ' if outcome in bad else 'ok  '}{where}: {outcome.found}\n")
    deaths = sum(outcome.met for outcome in outcomes)
    sys.stdout.write(f"{len(outcomes)} scenarios, {deaths} deaths, {len(bad)} bad\n")
    if options.report and not bad:
        options.report.write_text(report(outcomes, rig))
    return 1 if bad else 0


async def _release_by_hand(store: Path) -> None:
    """Release the session: it was set aside because its host died so often without progress."""
    async with Runtime(f"sqlite:///{store}") as node:
        await node.release(SESSION.agent, SESSION.key)


def _plant(root: Path) -> None:
    """Make the directory that is surveyed: always the same."""
    root.mkdir()
    for number in range(3):
        (root / f"page-{number}.txt").write_text("a line\n" * (10 + number))


if __name__ == "__main__":
    sys.exit(main())
