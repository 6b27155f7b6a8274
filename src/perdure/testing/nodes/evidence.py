"""What the rigs of many nodes found: frozen leaders, the matrix, takeovers, and who was found out.

`prove()` is the full size, for docs/proof.md; `gate()` is what a change has to survive.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Self

from perdure.testing.ledger import running_ledger
from perdure.testing.nodes import leader, matrix, takeover
from perdure.testing.nodes.backends import BACKENDS, Backend, backend
from perdure.testing.nodes.contest import Contested, play_contest
from perdure.testing.nodes.frozen import Frozen
from perdure.testing.nodes.nursery import Nursery
from perdure.testing.nodes.scene import Cell
from perdure.testing.nodes.takeover import Takeover
from perdure.testing.nodes.troubles import ALL, SHARED
from perdure.testing.servers import ServerMissing
from perdure.testing.witness import Store

STOPS = 40
GATE_ROUNDS = 200
GATE_TROUBLES = ("kill", "freeze", "lost answers")
HUNTED = (
    "no_fence",
    "version_not_checked",
    "load_before_claim",
    "lost_claim_goes_on",
    "claim_ignores_lease",
    "lease_by_node_clock",
    "ttl_on_token",
)
"""Mutants of drivers, which the rounds of the frozen leader find."""
HUNTED_IN = {"renewal_from_thread": "stall", "notify_as_truth": "kill"}
"""Mutants of nodes, and the trouble that finds them."""
ONLY = {"ttl_on_token": "redis"}


class Hunt(NamedTuple):
    """A mutant on a store: what found it after how long; `evidence` is empty if it got away."""

    mutant: str
    store: str
    evidence: str
    rounds: int
    seconds: float


class Evidence(NamedTuple):
    """What all rigs of many nodes found; `missing` is what could not run here, and why."""

    frozen: tuple[Frozen, ...]
    contested: tuple[Contested, ...]
    cells: tuple[Cell, ...]
    takeovers: tuple[Takeover, ...]
    hunts: tuple[Hunt, ...]
    missing: tuple[str, ...]
    seconds: float

    def wrong(self) -> list[str]:
        """Return everything that is wrong."""
        return [
            *(line for one in self.frozen for line in one.wrong),
            *(line for one in self.contested for line in one.wrong),
            *(f"{matrix.AGAIN} --store '{cell.store}' --trouble '{cell.trouble}': {line}"
              for cell in self.cells for line in cell.violations),
            *(line for one in self.takeovers for line in one.wrong),
            *(f"{one.mutant} got away on {one.store}" for one in self.hunts if not one.evidence),
        ]  # fmt: skip


async def prove() -> Evidence:
    """Run every rig at its full size on every store that can run here."""
    began = time.monotonic()
    frozen = [await leader.play_frozen_in_memory()]
    contested: list[Contested] = []
    cells: list[Cell] = []
    takeovers: list[Takeover] = []
    hunts: list[Hunt] = []
    missing: list[str] = []
    async with _Bench() as bench:
        for name in BACKENDS:
            try:
                async with backend(name) as shared:
                    _say(f"{name}: leaders that are paused")
                    if name in (*SHARED, "sqlite"):
                        frozen.append(await leader.play_frozen(shared))
                    if name in SHARED:
                        contested.append(await play_contest(shared, STOPS))
                        hunts += [
                            await bench.hunt(shared, mutant)
                            for mutant in (*HUNTED, *HUNTED_IN)
                            if ONLY.get(mutant, name) == name
                        ]
                        _say(f"{name}: takeovers")
                        takeovers.append(
                            await takeover.measure(shared, bench.ledger, bench.nursery)
                        )
                    cells += await bench.cells(shared, [*ALL])
            except ServerMissing as error:
                missing.append(f"{name}: {error}")
    return Evidence(
        frozen=tuple(frozen),
        contested=tuple(contested),
        cells=tuple(cells),
        takeovers=tuple(takeovers),
        hunts=tuple(hunts),
        missing=(*missing, *bench.missing),
        seconds=time.monotonic() - began,
    )


async def gate() -> list[str]:
    """Run a part of it, under two minutes; return what was wrong."""
    wrong: list[str] = []
    async with _Bench() as bench:
        for name in SHARED:
            try:
                async with backend(name) as shared:
                    frozen = await leader.play_frozen(shared, GATE_ROUNDS)
                    _say(leader.line_of(frozen))
                    cells = await bench.cells(shared, GATE_TROUBLES)
            except ServerMissing as error:
                _say(f"NOT RUN  {name}: {error}")
                continue
            wrong += frozen.wrong
            wrong += [f"{c.store} {c.trouble}: {line}" for c in cells for line in c.violations]
    return wrong


class _Bench:
    """What cells share: the ledger, the nursery, and the undisturbed run."""

    ledger: Path
    nursery: Nursery
    quiet: Store

    def __init__(self) -> None:
        self.missing: list[str] = []

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self.ledger = self._stack.enter_context(running_ledger())
        self.nursery = await self._stack.enter_async_context(Nursery())
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-quiet-"))
        self.quiet = await matrix.undisturbed(Path(folder), self.ledger, self.nursery)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def cells(self, shared: Backend, troubles: Sequence[str]) -> list[Cell]:
        """Run the cells of a store."""
        found = []
        for trouble in (ALL[name] for name in troubles):
            if shared.name in trouble.stores:
                cell = await matrix.run_cell(shared, trouble, self.ledger, self.nursery, self.quiet)
                _say(matrix.line_of(cell))
                found.append(cell)
        return found

    async def hunt(self, shared: Backend, mutant: str) -> Hunt:
        """Set the rig upon a mutant that has to find it."""
        if mutant in HUNTED:
            rounds = leader.ROUNDS_TO_CATCH_MAX
            found = await leader.play_frozen(shared, rounds, mutant=mutant)
            evidence = found.wrong[0] if found.wrong else ""
            return Hunt(mutant, shared.name, evidence, found.first_wrong, found.seconds)
        trouble = ALL[HUNTED_IN[mutant]]
        cell = await matrix.run_cell(
            shared, trouble, self.ledger, self.nursery, self.quiet, mutant=mutant
        )
        return Hunt(mutant, shared.name, "; ".join(cell.violations), 0, cell.seconds)


async def hunt(mutant: str) -> Hunt:
    """Hunt a mutant on the first store that can run here. Raises `ServerMissing`."""
    async with _Bench() as bench:
        for name in SHARED:
            if ONLY.get(mutant, name) == name:
                with suppress(ServerMissing):
                    async with backend(name) as shared:
                        return await bench.hunt(shared, mutant)
    raise ServerMissing("PostgreSQL, Redis or NATS is needed to find it")


def _say(what: str) -> None:
    sys.stdout.write(f"        {what}\n")
    sys.stdout.flush()
