"""A disk that fails once or from then on, at every I/O operation of a workload, in every way.

After a failed write or sync nobody may be told that something was kept, nothing more may be written
(a sync that failed may have dropped what it should have kept, and the next one then succeeds), and
the next process must find everything that was acknowledged. Each case is looked at three times:
opened anew on the same disk, opened after a loss of power, and opened anew, written, and then
opened after a loss of power, which shows whether what was found had been on the disk at all.

One case by hand: `python -m perdure.testing.disk_faults 120 full once`; all of them:
`python -m perdure.testing.disk_faults`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal, NamedTuple

import apsw

from perdure.testing.disk import Content, Disk, Operation, Phase
from perdure.testing.disk_workload import judge, look, reference, run

Error = Literal["io", "full", "short", "dropped"]
"""EIO; ENOSPC; ENOSPC after half of the bytes; EIO of a sync that takes dirty pages for clean."""

Lasting = Literal["once", "for good"]

ERRORS: Mapping[Operation, tuple[Error, ...]] = {
    "create": ("io", "full"),
    "read": ("io",),
    "write": ("io", "full", "short"),
    "truncate": ("io",),
    "sync": ("io", "dropped"),
    "unlink": ("io",),
}
GROWING = frozenset({"create", "write"})
"""What a full disk refuses."""

SEEDS = 1


class Fault(NamedTuple):
    """The operation that fails, counted from one; how; and whether later ones do, too."""

    at: int
    error: Error
    lasting: Lasting

    def __str__(self) -> str:
        return f"python -m perdure.testing.disk_faults {self.at} {self.error} '{self.lasting}'"


class FaultyDisk(Disk):
    """A disk with one fault; `asked` are the operations, and `mended` ends a lasting fault."""

    def __init__(self, fault: Fault | None = None) -> None:
        super().__init__()
        self.fault = fault
        self.asked: list[tuple[Phase, Operation]] = []
        self.changed_after = 0
        self.mended = False

    @property
    def struck(self) -> bool:
        """Whether the fault was met."""
        return self.fault is not None and len(self.asked) >= self.fault.at

    def operate(self, what: Operation) -> None:
        """Count an operation. Raises what the fault says, as SQLite says it."""
        super().operate(what)
        self.asked.append((self.phase, what))
        fault = self.fault
        if self.mended or fault is None or len(self.asked) < fault.at:
            return
        if len(self.asked) == fault.at:
            raise _error(fault)
        self.changed_after += what != "read"
        if fault.lasting == "for good" and _refuses(fault.error, what):
            raise _error(fault)

    def write(self, content: Content, offset: int, data: bytes) -> None:
        """Write all, nothing, or half."""
        try:
            super().write(content, offset, data)
        except apsw.FullError:
            if self.fault is not None and self.fault.error == "short":
                content.write(offset, data[: len(data) // 2])
            raise

    def sync(self, content: Content) -> None:
        """Make safe what was written, or leave it as it is, or never again."""
        try:
            super().sync(content)
        except apsw.IOError:
            if self.fault is not None and self.fault.error == "dropped":
                content.forget()
            raise


def _refuses(error: Error, what: Operation) -> bool:
    return what in GROWING if error in ("full", "short") else what != "read"


def _error(fault: Fault) -> apsw.Error:
    if fault.error in ("full", "short"):
        return apsw.FullError("database or disk is full")
    return apsw.IOError("disk I/O error")


class Case(NamedTuple):
    """A fault and what is wrong with what came of it; `why` is empty if nothing is."""

    fault: Fault
    phase: Phase
    operation: Operation
    failed: bool
    why: str = ""

    def __str__(self) -> str:
        return f"{self.fault}: {self.operation} ({self.phase}): {self.why or 'all is well'}"


class DiskFaults(NamedTuple):
    """What came of many faults.

    `faults` were met at `operations` operations; `failures` of them failed the store, the others
    were met where nothing was lost by them (an unlink, a checkpoint at the end). `cases` counts how
    often a disk was opened again; `wrong` are the faults after which something was.
    """

    operations: int
    faults: int
    failures: int
    cases: int
    kinds: Mapping[str, int]
    wrong: tuple[Case, ...]

    def __str__(self) -> str:
        return (
            f"{self.faults} disk faults at {self.operations} operations, {self.failures} failed "
            f"the store, opened again {self.cases} times, {len(self.wrong)} wrong"
        )


def survey(seeds: int = SEEDS, *, part: int = 0, parts: int = 1) -> DiskFaults:
    """Meet every error at every operation, or at every `parts`-th, once and for good."""
    planned = list(faults())[part::parts]
    found = [case(fault, seeds) for fault in planned]
    return DiskFaults(
        operations=len({fault.at for fault in planned}),
        faults=len(found),
        failures=sum(one.failed for one in found),
        cases=len(found) * (1 + 2 * seeds),
        kinds=Counter(f"{one.operation} {one.fault.error}" for one in found),
        wrong=tuple(one for one in found if one.why),
    )


def faults() -> Iterator[Fault]:
    """Yield every fault of the workload."""
    for at, (_, what) in enumerate(quiet(), 1):
        for error in ERRORS[what]:
            yield Fault(at, error, "once")
            if what not in ("read", "unlink"):
                yield Fault(at, error, "for good")


@cache
def quiet() -> tuple[tuple[Phase, Operation], ...]:
    """Return the operations of the undisturbed workload, in order, and what they were part of."""
    disk = FaultyDisk()
    assert run(disk, "FULL", lambda db: None).failure is None
    return tuple(disk.asked)


def case(fault: Fault, seeds: int = SEEDS) -> Case:
    """Run until the fault fails the store, or to the end; look at what is left."""
    disk, told = FaultyDisk(fault), list[bool]()
    ended = run(disk, "FULL", lambda db: told.append(disk.struck))
    assert disk.struck, f"{fault} was not met"
    phase, what = quiet()[fault.at - 1]
    changed, disk.mended = disk.changed_after, True
    why = ""
    if phase == "work":
        if ended.failure is None:
            why = "nobody was told of the fault"
        elif any(told):
            why = "something was acknowledged after the fault"
        elif changed:
            why = f"the store went on writing: {changed} operations after the fault"
    if ended.failure is not None and "disk" not in ended.failure:
        why = why or f"it does not say what happened: {ended.failure}"
    why = why or _left(disk, len(told), seeds)
    return Case(fault, phase, what, ended.failure is not None, why)


def _left(disk: FaultyDisk, acknowledged: int, seeds: int) -> str:
    """Look at what a disk holds, in each of the three ways; say what is wrong, if something is."""
    states = reference("FULL").states
    for seed in range(seeds):
        verdict, why = judge(look(disk.after_loss(f"{disk.fault}/{seed}")), states, acknowledged)
        if verdict:
            return f"{verdict} after a loss of power: {why}"
    anew = look(disk)
    verdict, why = judge(anew, states, acknowledged)
    if verdict:
        return f"{verdict} when opened anew: {why}"
    for seed in range(seeds):
        held = look(disk.after_loss(f"{disk.fault}/{seed}"))
        if held.wrong or held.contents != anew.later:
            return f"not kept after it was opened anew and the power lost: {held.wrong}"
    return ""


def main() -> None:
    """Print one case, or the figures of all."""
    if len(sys.argv) == 4:
        at, error, lasting = sys.argv[1:]
        print(case(Fault(int(at), error, lasting)))  # type: ignore[arg-type]
        return
    found = survey()
    print(found)
    for kind, count in sorted(found.kinds.items()):
        print(f"  {count:5} {kind}")
    for one in found.wrong[:20]:
        print(one)


if __name__ == "__main__":
    main()
