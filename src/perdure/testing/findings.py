"""What all rigs found, as values."""

from __future__ import annotations

from typing import NamedTuple

from perdure.testing.budgets import Found as Paid
from perdure.testing.convict import Verdict
from perdure.testing.crash import Crashes
from perdure.testing.disk_faults import DiskFaults
from perdure.testing.governance import Found
from perdure.testing.nodes.evidence import Evidence
from perdure.testing.power_loss import PowerLoss
from perdure.testing.simulation import Summary


class Stores(NamedTuple):
    """What the suite of the store port found: promises, and who breaks which."""

    promises: int
    stores: tuple[str, ...]
    broken: tuple[str, ...]


class Proof(NamedTuple):
    """What all rigs found."""

    crashes: Crashes
    power: tuple[PowerLoss, ...]
    disk: DiskFaults
    stores: Stores
    simulation: Summary
    governance: Found
    budgets: Paid
    mutants: tuple[Verdict, ...]
    nodes: Evidence
    seconds: float

    def wrong(self) -> list[str]:
        """Return everything that is wrong, each with the command that shows it again."""
        full, normal, off = self.power
        return [
            *self.crashes.bad,
            *map(str, full.wrong),
            *(f"{one.level} loses nothing: its judge is blind" for one in (normal, off)
              if not one.lost),
            *map(str, self.disk.wrong),
            *self.stores.broken,
            *(failure.reproduce for failure in self.simulation.failures),
            *(["the simulation failed"] if not self.simulation.good else []),
            *self.governance.wrong,
            *self.budgets.wrong,
            *self.nodes.wrong(),
            *(f"{one.mutant} got away from the {one.rig} rig" for one in self.mutants
              if not one.caught),
        ]  # fmt: skip
