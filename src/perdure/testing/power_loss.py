"""Loss of power at every I/O operation of a workload: whatever was acknowledged must be there.

After a loss the file must hold exactly what it held after some transaction: the last one that was
acknowledged, or the next. With less than `synchronous=FULL` the same judge must find losses.

One case by hand: `python -m perdure.testing.power_loss FULL 120 7` (level, operation, seed); all of
them: `python -m perdure.testing.power_loss`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import apsw

from perdure.testing.disk import Disk
from perdure.testing.disk_workload import judge, look, reference, run

LEVELS = ("FULL", "NORMAL", "OFF")
SEEDS = 12


class Case(NamedTuple):
    """A loss of power at one operation, what it left by one seed, and what is wrong with that."""

    level: str
    at: int
    seed: int
    verdict: str = ""
    why: str = ""

    def __str__(self) -> str:
        again = f"python -m perdure.testing.power_loss {self.level} {self.at} {self.seed}"
        return f"{again}: {self.verdict or 'all kept'} {self.why}".strip()


class PowerLoss(NamedTuple):
    """What came of many cases: `lost` and `corrupt` of `cases`, and those that are wrong."""

    level: str
    operations: int
    cases: int
    lost: int
    corrupt: int
    wrong: tuple[Case, ...]

    def __str__(self) -> str:
        return (
            f"{self.level}: power lost at {self.operations} operations, {self.cases} cases, "
            f"{self.lost} lost, {self.corrupt} corrupt"
        )


def survey(level: str = "FULL", seeds: int = SEEDS, *, part: int = 0, parts: int = 1) -> PowerLoss:
    """Lose the power at every operation, or at every `parts`-th; each with so many seeds."""
    points = range(1 + part, reference(level).operations + 2, parts)
    found = [case for at in points for case in cases(level, at, range(seeds))]
    verdicts = Counter(case.verdict for case in found)
    wrong = tuple(case for case in found if case.verdict)
    return PowerLoss(level, len(points), len(found), verdicts["lost"], verdicts["corrupt"], wrong)


def cases(level: str, at: int, seeds: range) -> Iterator[Case]:
    """Run until the power is lost at an operation; yield what each seed makes of it."""
    states = reference(level).states
    disk, acknowledged = Disk(dies_at=at), list[apsw.Connection]()
    run(disk, level, acknowledged.append)
    disk.die()
    for seed in seeds:
        held = look(disk.after_loss(f"{at}/{seed}"))
        yield Case(level, at, seed, *judge(held, states, len(acknowledged)))


def main() -> None:
    """Print one case, or the figures of all."""
    if len(sys.argv) == 4:
        level, at, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        print(next(cases(level, at, range(seed, seed + 1))))
        return
    for level in LEVELS:
        print(survey(level))


if __name__ == "__main__":
    main()
