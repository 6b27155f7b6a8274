"""Kill real processes everywhere, again while they recover, and compare with the undisturbed run.

The work is that of `perdure.testing.clerk`. It is first done once undisturbed, which counts how
often each fault point of the product is reached and how many steps the event loop makes. Then a
process is killed by SIGKILL at every point, and at every step, of which an await makes at least
one; and pairs of these are killed one after the other, the second while it recovers. Models and
tools are called in the process, so a message that is sent is one of the points. After that another
process finishes the work, and the judge compares.

`python -m perdure.testing.crash` is the size of a gate. `--scenarios N` sets it, `--all-pairs`
kills at every point and then at every step of the recovery (hours), `--seed N` replays one chain of
up to five kills, `--at SITE:N,SITE:N` one scenario, and `--break MUTANT` must find the mutant.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from perdure.ports import faults
from perdure.testing.faults import STEP, Fault, parse
from perdure.testing.judge import EFFECTS, WRONG, ByEffect, Found
from perdure.testing.ledger import running_ledger
from perdure.testing.mutants import find
from perdure.testing.rig import Outcome, Rig

SCENARIOS = 1_500
JOBS = 2
KILLS_PER_SEED_MAX = 5
REACHED_LATER = 50
"""How many pairs end at the points that only a life that recovers can reach."""
AGAIN = "python -m perdure.testing.crash --at"
Scenario = tuple[Fault, ...]


class Crashes(NamedTuple):
    """The figures of a crash suite."""

    sites_known: int
    sites_reached: int
    steps: int
    scenarios: int
    deaths: int
    deaths_recovering: int
    wrong: dict[str, int]
    by_effect: dict[str, ByEffect]
    models_asked: int
    models_recorded: int
    bad: list[str]
    slowest_recovery_seconds: float
    seconds: float


def points(hits: dict[str, int]) -> list[Fault]:
    """Return every point and every step of the undisturbed run."""
    return [Fault(site, n) for site, count in hits.items() for n in range(1, count + 1)]


def suite(hits: dict[str, int], size: int, all_pairs: bool) -> Iterator[Scenario]:
    """Yield scenarios in an order drawn from a fixed seed: each point alone, then pairs."""
    chance = random.Random(0)
    alone = points(hits)
    chance.shuffle(alone)
    # Named points and steps in turn: the points are fewer, and show more.
    named = [point for point in alone if point.site != STEP]
    steps = [point for point in alone if point.site == STEP]
    alone = [one for pair in zip_longest(named, steps) for one in pair if one is not None]
    yield from ((point,) for point in alone[:size])
    if all_pairs:
        for point in alone:
            yield from ((point, Fault(STEP, n)) for n in range(1, hits[STEP] + 1))
    later = [Fault(site, 1) for site in faults.SITES if site not in hits] * len(alone)
    for n in range(size - len(alone)):
        second = later[n] if n < min(REACHED_LATER, len(later)) else chance.choice(alone)
        yield chance.choice(alone), second


def chain(hits: dict[str, int], seed: int) -> Scenario:
    """Return up to five kills that the seed chooses, one life after the other."""
    chance = random.Random(seed)
    kills = chance.randint(2, KILLS_PER_SEED_MAX)
    return tuple(chance.choice(points(hits)) for _ in range(kills))


def survey(
    size: int = SCENARIOS, mutant: str | None = None, all_pairs: bool = False, jobs: int = JOBS
) -> Crashes:
    """Run the suite, `jobs` scenarios at a time; with a mutant, until the first that is bad."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perdure-crash-") as work, running_ledger() as ledger:
        rig = _rig(Path(work), ledger, mutant)
        scenarios = [*suite(rig.hits, size, all_pairs)]
        shards = []
        for job in range(jobs):
            mine = Rig(Path(work) / f"job-{job}", Path(work) / "tree", ledger, mutant)
            mine.quiet = rig.quiet
            file = Path(work) / f"outcomes-{job}.jsonl"
            shards.append(Shard(mine, scenarios[job::jobs], file, stop=mutant is not None))
        outcomes = [one for shard in shards for one in shard.outcomes()]
    return summary(rig.hits, outcomes, time.monotonic() - began)


def summary(hits: dict[str, int], outcomes: Sequence[Outcome], seconds: float) -> Crashes:
    """Return the sums of outcomes."""
    sums = {name: sum(getattr(one.found, name) for one in outcomes) for name in WRONG}
    effects = {
        effect: _added(one.found.by_effect[effect] for one in outcomes) for effect in EFFECTS
    }
    return Crashes(
        sites_known=len(faults.SITES),
        sites_reached=len({site for one in outcomes for site in one.sites} & set(faults.SITES)),
        steps=hits[STEP],
        scenarios=len(outcomes),
        deaths=sum(len(one.sites) for one in outcomes),
        deaths_recovering=sum(max(0, len(one.sites) - 1) for one in outcomes),
        wrong=sums,
        by_effect=effects,
        models_asked=sum(one.found.models_asked for one in outcomes),
        models_recorded=sum(one.found.models_recorded for one in outcomes),
        bad=[
            f"{AGAIN} {one.name}: {'; '.join(one.found.violations())}"
            for one in outcomes
            if not one.found.good
        ],
        slowest_recovery_seconds=max(one.recovery_seconds for one in outcomes),
        seconds=seconds,
    )


def _added(counts: Iterable[ByEffect]) -> ByEffect:
    return ByEffect(*(sum(column) for column in zip(*counts, strict=True)))


def _rig(work: Path, ledger: Path, mutant: str | None) -> Rig:
    root = work / "tree"
    root.mkdir()
    for number in range(3):
        (root / f"page-{number}.txt").write_text("a line\n" * (10 + number))
    rig = Rig(work / "rig", root, ledger, mutant)
    rig.count()
    return rig


class Shard:
    """A forked process that runs its share of the scenarios and writes the outcomes to a file."""

    def __init__(self, rig: Rig, share: Sequence[Scenario], outcomes: Path, stop: bool) -> None:
        self._outcomes = outcomes
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                with outcomes.open("w") as file:
                    for scenario in share:
                        outcome = rig.scenario(scenario)
                        file.write(json.dumps(_flat(outcome)) + "\n")
                        if stop and not outcome.found.good:
                            break
                code = 0
            except Exception:  # noqa: BLE001  nobody else would see it
                traceback.print_exc()
            finally:
                os._exit(code)

    def outcomes(self) -> list[Outcome]:
        """Wait for the end. Raises `SystemExit` if the shard itself failed."""
        _, status = os.waitpid(self._pid, 0)
        if status != 0:
            raise SystemExit("a part of the crash rig failed")
        return [_outcome(json.loads(line)) for line in self._outcomes.read_text().splitlines()]


def _flat(outcome: Outcome) -> dict[str, Any]:
    return {**outcome._asdict(), "found": outcome.found._asdict()}


def _outcome(flat: dict[str, Any]) -> Outcome:
    effects = {name: ByEffect(*counts) for name, counts in flat["found"]["by_effect"].items()}
    found = Found(**{**flat["found"], "by_effect": effects})
    planned = tuple(Fault(*fault) for fault in flat["faults"])
    return Outcome(**{**flat, "faults": planned, "sites": tuple(flat["sites"]), "found": found})


def replay(plan: str | None, seed: int | None, mutant: str | None) -> Crashes:
    """Run one scenario, that of a plan or that of a seed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perdure-crash-") as work, running_ledger() as ledger:
        rig = _rig(Path(work), ledger, mutant)
        scenario = parse(plan) if plan is not None else chain(rig.hits, seed or 0)
        outcome = rig.scenario(scenario)
    sys.stdout.write(f"{outcome.name}\n")
    return summary(rig.hits, [outcome], time.monotonic() - began)


def main() -> int:
    """Run the suite or one scenario; the exit code is 0 only if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, default=SCENARIOS)
    parser.add_argument("--all-pairs", action="store_true")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--at")
    parser.add_argument("--break", dest="mutant", metavar="MUTANT")
    options = parser.parse_args()
    if options.mutant is not None:
        mutant = find(options.mutant)
        sys.stdout.write(f"broken on purpose: {mutant.name}. {mutant.what}\n")
    if options.seed is not None or options.at is not None:
        found = replay(options.at, options.seed, options.mutant)
    else:
        found = survey(options.scenarios, options.mutant, options.all_pairs, options.jobs)
    sys.stdout.writelines(f"BAD {line}\n" for line in found.bad)
    sys.stdout.write(
        f"{found.scenarios} scenarios, {found.deaths} deaths, {found.deaths_recovering} while "
        f"recovering, {found.sites_reached} of {found.sites_known} fault points, "
        f"{found.steps} steps, {found.seconds:.0f} s, {len(found.bad)} bad\n"
    )
    return 1 if found.bad else 0


if __name__ == "__main__":
    sys.exit(main())
