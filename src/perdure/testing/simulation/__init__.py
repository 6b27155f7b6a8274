"""Deterministic simulation: the real runtime in worlds of virtual time, faults and chance by seed.

summary = simulate(1, 400)             # each seed twice; summary.good, summary.coverage, ...
python -m perdure.testing.simulation --seeds 1-400
"""

from __future__ import annotations

from perdure.testing.simulation.runner import Failure, Summary, simulate

__all__ = ["Failure", "Summary", "simulate"]
