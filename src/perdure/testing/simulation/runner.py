"""Runs ranges of seeds, each twice, and adds up what they met.

The two runs of a seed must give the same digest of everything: the store, the ledger, what clients
were told, and what the runtime told. A seed in which a promise was broken, or whose digests differ,
fails, and one line says how to see it again.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from perdure.testing.mutation.patches import Patches
from perdure.testing.simulation.cast import Cast
from perdure.testing.simulation.oracles import judge
from perdure.testing.simulation.probes import PROBES
from perdure.testing.simulation.store import Waiting, perform_at_rest
from perdure.testing.simulation.world import World

COLLECT_EVERY_SEEDS = 100
SNAPSHOT_EVERY_EVENTS = 24
CHUNK_SEEDS = 250
FAILURES_KEPT_MAX = 20
US_PER_HOUR = 3_600_000_000


class Failure(msgspec.Struct, frozen=True):
    """A seed that failed, what was wrong, and the command that shows it."""

    seed: int
    what: str
    reproduce: str


class Summary(msgspec.Struct, frozen=True):
    """What a range of seeds came to. `effects` are counted by class, `coverage` by probe."""

    seeds: int = 0
    runs: int = 0
    virtual_hours: float = 0.0
    crashes: int = 0
    pauses: int = 0
    fences: int = 0
    drains: int = 0
    skews: int = 0
    events: int = 0
    effects: dict[str, int] = {}
    unknowns: int = 0
    determinism_mismatches: int = 0
    coverage: dict[str, int] = {}
    failed_seeds: int = 0
    failures: tuple[Failure, ...] = ()
    wall_seconds: float = 0.0

    @property
    def unreached(self) -> tuple[str, ...]:
        """Return the probes that no seed reached."""
        return tuple(name for name in PROBES if not self.coverage.get(name))

    @property
    def good(self) -> bool:
        """Say whether every seed kept every promise, twice in the same way."""
        return self.failed_seeds == 0 and self.determinism_mismatches == 0


class Result(msgspec.Struct, frozen=True):
    """One run of one seed."""

    digest: str
    violations: tuple[str, ...]
    probes: dict[str, int]
    counts: dict[str, int]
    effects: dict[str, int]
    virtual_us: int


_cast: Cast | None = None


def run_seed(seed: int, *, judged: bool = True) -> Result:
    """Live through a seed once; without `judged` the oracles at the end are left out."""
    world = live(seed)
    with world.loop.inside():
        if judged:
            judge(world)
        seen = digest(world)
    result = Result(
        digest=seen,
        violations=tuple(world.observer.violations),
        probes=dict(world.observer.probes),
        counts=dict(world.observer.counts),
        effects=dict(world.ledger.by_class),
        virtual_us=world.loop.now_us,
    )
    world.close()
    return result


def live(seed: int) -> World:
    """Return a world that has lived through its seed."""
    global _cast
    if _cast is None:
        _cast = Cast()
    world = World(seed, _cast)
    world.run()
    return world


def digest(world: World) -> str:
    """Return a digest of all that a world can be asked for afterwards."""
    store, seen = world.store, hashlib.sha256()
    for session in world.observer.traces:
        with suppress(Waiting):
            seen.update(repr(perform_at_rest(world.loop, store.load(session))).encode())
    lines = (world.rows(), world.ledger.entries, world.observer.told)
    seen.update(repr(lines).encode())
    seen.update(repr([one.line() for one in world.ledger.operations]).encode())
    seen.update(repr((world.loop.steps, world.loop.now_us)).encode())
    return seen.hexdigest()


@contextmanager
def _without_collector() -> Iterator[None]:
    """Collect cycles only between worlds: nothing in them may depend on when that happens."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def as_simulated() -> Iterator[None]:
    """Have a snapshot every few events, as the runs are short, and no log on standard error."""
    patches, log = Patches(), logging.getLogger("perdure.worker")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        patches.name(
            "perdure.core.limits", "SNAPSHOT_EVERY_EVENTS", lambda _: SNAPSHOT_EVERY_EVENTS
        )
        yield
    finally:
        patches.undo()
        log.setLevel(level)


def run_seeds(first: int, last: int, *, mutant: str | None = None) -> Summary:
    """Run the seeds from `first` to `last` here, each twice."""
    began = time.monotonic()
    total: dict[str, Counter[str]] = {
        "probes": Counter(),
        "counts": Counter(),
        "effects": Counter(),
    }
    failures: list[Failure] = []
    failed = mismatches = virtual_us = 0
    with as_simulated(), _without_collector():
        for seed in range(first, last + 1):
            one = run_seed(seed)
            again = run_seed(seed, judged=False)
            same = one.digest == again.digest
            mismatches += not same
            if one.violations or not same:
                failed += bool(one.violations)
                what = one.violations[0] if one.violations else "two runs had different digests"
                failures.append(Failure(seed, what, reproduction(seed, mutant)))
            virtual_us += one.virtual_us + again.virtual_us
            for name, counter in total.items():
                counter.update(getattr(one, name))
            if seed % COLLECT_EVERY_SEEDS == 0:
                gc.collect()
    counts = total["counts"]
    seeds = last - first + 1
    return Summary(
        seeds=seeds,
        runs=2 * seeds,
        virtual_hours=virtual_us / US_PER_HOUR,
        **{name: counts[name] for name in _COUNTED},
        effects=dict(total["effects"]),
        determinism_mismatches=mismatches,
        coverage={name: total["probes"][name] for name in PROBES},
        failed_seeds=failed,
        failures=tuple(failures[:FAILURES_KEPT_MAX]),
        wall_seconds=time.monotonic() - began,
    )


_COUNTED = ("crashes", "pauses", "fences", "drains", "skews", "events", "unknowns")


def reproduction(seed: int, mutant: str | None = None) -> str:
    """Return the command that replays a seed, and prints what happens in it."""
    broken = f" --break {mutant}" if mutant else ""
    return f"python -m perdure.testing.simulation --seed {seed}{broken}"


def simulate(
    first: int,
    last: int,
    *,
    processes: int = 1,
    mutant: str | None = None,
    chunk_seeds: int = CHUNK_SEEDS,
) -> Summary:
    """Run seeds, each twice, in one or more processes; with `mutant` on a broken engine."""
    began = time.monotonic()
    chunks = [
        (at, min(at + chunk_seeds - 1, last), mutant) for at in range(first, last + 1, chunk_seeds)
    ]
    if processes == 1:
        parts: Iterable[Summary] = [_chunk(chunk) for chunk in chunks]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = [decode_summary(part) for part in pool.imap(_chunk_as_json, chunks)]
    return _sum(list(parts), time.monotonic() - began)


def decode_summary(body: bytes) -> Summary:
    """Return the summary in the JSON that `--json` writes."""
    return msgspec.json.decode(body, type=Summary)


def _chunk(chunk: tuple[int, int, str | None]) -> Summary:
    first, last, mutant = chunk
    if mutant is None:
        return run_seeds(first, last)
    from perdure.testing.mutants import broken

    with broken(mutant):
        return run_seeds(first, last, mutant=mutant)


def _chunk_as_json(chunk: tuple[int, int, str | None]) -> bytes:
    return msgspec.json.encode(_chunk(chunk))


def _sum(parts: Sequence[Summary], wall_seconds: float) -> Summary:
    added: dict[str, Any] = {}
    for name in Summary.__struct_fields__:
        values = [getattr(part, name) for part in parts]
        if name in ("effects", "coverage"):
            counter: Counter[str] = Counter()
            for value in values:
                counter.update(value)
            added[name] = dict(counter)
        elif name == "failures":
            flat = [failure for value in values for failure in value]
            added[name] = tuple(flat[:FAILURES_KEPT_MAX])
        else:
            added[name] = sum(values)
    return Summary(**{**added, "wall_seconds": wall_seconds})
