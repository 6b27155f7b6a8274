"""A guard against regressions: perdure against the floor, in one run, as ratios.

Nothing here is a time. CPU time per call is compared between processes that run one after the
other: a busy machine slows both. Commits and bytes are counted. `make bench` measures the rest.
"""

from __future__ import annotations

from typing import Final

from bench.measure import Figures, measure

PAIRS: Final = 3
MANY: Final = ("--concurrency", "100", "--runs", "400")
ONE: Final = ("--concurrency", "1", "--runs", "20")

CPU_RATIO_MAX: Final = 10.0
"""Measured: 6 to 9, idle or loaded; the least of three pairs counts, as noise only ever adds."""

BYTES_RATIO_MAX: Final = 1.25
"""Measured: 1.19."""

COMMITS_PER_CALL_MAX: Final = 1.4
"""At concurrency 1, where nothing can share a commit. Measured: 1.2: besides the 20 calls of a run
its message, its claim, its end and its release are written."""

SHARED_COMMITS_PER_CALL_MAX: Final = 0.2
"""At concurrency 100, where a commit is shared. Measured: 0.01 to 0.02."""


def test_a_call_costs_a_bounded_multiple_of_the_floors() -> None:
    """In CPU time and in stored bytes; and a hundred clients share their commits."""
    pairs: list[tuple[Figures, Figures]] = [
        (measure("bench.floor", MANY), measure("bench.runtime", MANY)) for _ in range(PAIRS)
    ]
    cpu = [ours["cpu_us_per_call"] / floor["cpu_us_per_call"] for floor, ours in pairs]
    assert min(cpu) < CPU_RATIO_MAX, cpu
    stored = [ours["bytes_per_call"] / floor["bytes_per_call"] for floor, ours in pairs]
    assert max(stored) < BYTES_RATIO_MAX, stored
    assert max(ours["commits_per_call"] for _, ours in pairs) < SHARED_COMMITS_PER_CALL_MAX


def test_a_single_client_makes_one_commit_for_each_call() -> None:
    alone = measure("bench.runtime", ONE)
    assert 1 <= alone["commits_per_call"] < COMMITS_PER_CALL_MAX
