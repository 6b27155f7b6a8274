"""The proof: every rig at its full size, and the page that says what came of it.

`make proof` runs all of it and writes docs/proof.md and the figures in README.md. `--gate` runs the
crash rig, the simulation and several nodes at the size of a gate, and writes nothing; what else the
proof counts, the tests run anyway. The exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteStore
from perdure.ports.session_store import SessionStore
from perdure.testing import budgets, crash, disk_faults, power_loss
from perdure.testing.clock import FakeClock
from perdure.testing.convict import convict
from perdure.testing.findings import Proof, Stores
from perdure.testing.governance import play
from perdure.testing.mutants import MUTANTS
from perdure.testing.nodes import evidence
from perdure.testing.proof_page import figures, marked, page
from perdure.testing.simulation import simulate

SEEDS = 20_000
STORIES = 10_000
CONTROL = {"seeds": 4, "parts": 3}
"""Of the controls, which must show losses, every third operation is enough."""


def gather(say: bool = True) -> Proof:
    """Run every rig at its full size; takes minutes on two cores."""
    began = time.monotonic()

    def telling(what: str) -> None:
        if say:
            sys.stdout.write(f"{time.monotonic() - began:6.0f} s  {what}\n")
            sys.stdout.flush()

    telling("killing processes at every await, and again while they recover")
    # The rig that forks comes first: nothing may have started a thread before.
    crashes = crash.survey()
    telling("breaking the engine on purpose")
    mutants = tuple(convict(name) for name in MUTANTS)
    telling("cutting the power at every I/O operation")
    power = (
        power_loss.survey("FULL"),
        power_loss.survey("NORMAL", **CONTROL),
        power_loss.survey("OFF", **CONTROL),
    )
    telling("failing the disk at every I/O operation")
    disk = disk_faults.survey()
    telling("asking every store to keep every promise")
    stores = asyncio.run(_ask_stores())
    telling("simulating")
    simulation = simulate(1, SEEDS, processes=crash.JOBS)
    telling("playing rules, people and doubt")
    governance = play(STORIES)
    telling("playing runs that have to pay")
    paid = budgets.play(STORIES)
    telling("troubling several nodes on every store")
    nodes = asyncio.run(evidence.prove())
    telling("done")
    seconds = time.monotonic() - began
    return Proof(
        crashes, power, disk, stores, simulation, governance, paid, mutants, nodes, seconds
    )


async def _ask_stores() -> Stores:
    from perdure.testing.conformance.check import broken_promises, promises

    opened = {"memory": _memory, "SQLite": _sqlite}
    broken = [
        f"{name}: {promise}"
        for name, open_store in opened.items()
        for promise in await broken_promises(open_store)
    ]
    return Stores(len(promises()), tuple(opened), tuple(broken))


@asynccontextmanager
async def _memory(clock: FakeClock) -> AsyncIterator[SessionStore]:
    yield MemoryStore(clock)


@asynccontextmanager
async def _sqlite(clock: FakeClock) -> AsyncIterator[SessionStore]:
    with tempfile.TemporaryDirectory(prefix="perdure-store-") as folder:
        store = await SqliteStore.open(Path(folder) / "store.db", clock)
        try:
            yield store
        finally:
            await store.close()


def write(proof: Proof, root: Path) -> None:
    """Write docs/proof.md, and the figures into README.md."""
    (root / "docs" / "proof.md").write_text(page(proof), encoding="utf-8")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.replace(marked(text), figures(proof)), encoding="utf-8")


def gate() -> list[str]:
    """Run the crash rig, the simulation and several nodes; return what was wrong."""
    crashes = crash.survey()
    sys.stdout.write(
        f"{crashes.scenarios} crash scenarios, {crashes.deaths} deaths, {len(crashes.bad)} bad, "
        f"{crashes.seconds:.0f} s\n"
    )
    simulation = simulate(1, SEEDS, processes=crash.JOBS)
    sys.stdout.write(
        f"{simulation.seeds} simulated seeds, {simulation.failed_seeds} failed, "
        f"{simulation.determinism_mismatches} digests differ, {simulation.wall_seconds:.0f} s\n"
    )
    began = time.monotonic()
    nodes = asyncio.run(evidence.gate())
    sys.stdout.write(f"several nodes, {len(nodes)} wrong, {time.monotonic() - began:.0f} s\n")
    return [*crashes.bad, *nodes, *(failure.reproduce for failure in simulation.failures)]


def main() -> int:
    """Run the proof or the gate; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--root", type=Path, default=Path())
    options = parser.parse_args()
    if options.gate:
        wrong = gate()
    else:
        proof = gather()
        wrong = proof.wrong()
        if not wrong:
            write(proof, options.root)
    sys.stdout.writelines(f"WRONG  {line}\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
