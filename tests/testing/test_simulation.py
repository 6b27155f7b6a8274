"""Whole worlds by seed: promises are kept, twice alike; rare things happen; mutants are caught."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import msgspec
import pytest
from msgspec.structs import replace

from perdure.testing.mutants import MUTANTS, broken
from perdure.testing.simulation import simulate
from perdure.testing.simulation.probes import PROBES
from perdure.testing.simulation.runner import (
    as_simulated,
    decode_summary,
    run_seed,
    run_seeds,
)

SMOKE = (1, 300)
REACHING = (1, 1_500)
"""Seeds in which every rare situation is met at least once."""

SEEDS_NEEDED = {
    "no_fence": 300,
    "claim_ignores_lease": 30,
    "lost_claim_goes_on": 30,
    "lease_by_node_clock": 60,
    "ack_before_commit": 3,
    "receipt_before_commit": 3,
    "dispatch_before_durable": 10,
    "snapshot_ahead": 60,
    "key_includes_attempt": 10,
    "key_not_stable": 10,
    "once_sent_again": 80,
    "unknown_dropped": 80,
    "begun_calls_forgotten": 80,
    "duplicate_result_accepted": 10,
    "idempotency_key_ignored": 30,
    "split_tool_pair": 60,
    "letters_marked_before_sent": 30,
    "child_begun_anew": 60,
    "children_left_alone": 300,
}
"""Mutant -> within how many seeds, from 1 on, the simulation catches it."""

ELSEWHERE = {
    **{
        name: mutant.rig
        for name, mutant in MUTANTS.items()
        if mutant.rig in ("governance", "budget")
    },
    "version_not_checked": "store",
    "result_in_two_commits": "crash",
    "inbox_apart": "crash",
    "late_outcome_accepted": "core",
    "load_before_claim": "leader",
    "ttl_on_token": "leader",
    "renewal_from_thread": "matrix",
    "notify_as_truth": "matrix",
}
"""Mutants that cannot show here, and the rig that catches them."""


def test_promises_are_kept_and_every_seed_is_the_same_twice() -> None:
    summary = run_seeds(*SMOKE)
    assert summary.failures == ()
    assert summary.good
    assert summary.runs == 2 * summary.seeds == 600
    assert min(summary.crashes, summary.pauses, summary.fences, summary.unknowns) > 0
    assert set(summary.effects) == {"read", "idempotent", "once"}


def test_every_rare_situation_is_reached() -> None:
    reached: set[str] = set()
    with as_simulated():
        for seed in range(REACHING[0], REACHING[1] + 1):
            reached |= {name for name, count in run_seed(seed).probes.items() if count}
            if len(reached) == len(PROBES):
                break
    assert set(PROBES) - reached == set()


@pytest.mark.parametrize("mutant", SEEDS_NEEDED)
def test_the_simulation_catches(mutant: str) -> None:
    with broken(mutant), as_simulated():
        caught = any(run_seed(seed).violations for seed in range(1, SEEDS_NEEDED[mutant] + 1))
    assert caught


def test_every_mutant_has_a_rig() -> None:
    assert set(SEEDS_NEEDED) | set(ELSEWHERE) == set(MUTANTS)
    assert {name: MUTANTS[name].rig for name in ELSEWHERE} == ELSEWHERE


def test_the_one_line_of_a_failing_seed_reproduces_it() -> None:
    with broken("key_includes_attempt"):
        failure = run_seeds(1, 10, mutant="key_includes_attempt").failures[0]
    command = shlex.split(failure.reproduce)
    assert command[:3] == ["python", "-m", "perdure.testing.simulation"]
    finished = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 1
    assert f"BROKEN {failure.what}" in finished.stdout


def test_neither_the_process_nor_its_hash_seed_matters() -> None:
    program = (
        "from perdure.testing.simulation.runner import run_seed\n"
        "print(*(run_seed(seed).digest for seed in range(1, 31)))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(digests) == 1


def test_processes_share_the_work_and_add_up() -> None:
    alone = simulate(1, 60)
    shared = simulate(1, 60, processes=2, chunk_seeds=20)
    assert replace(alone, wall_seconds=0, virtual_hours=0) == replace(
        shared, wall_seconds=0, virtual_hours=0
    )
    assert abs(alone.virtual_hours - shared.virtual_hours) < 1e-6
    assert decode_summary(msgspec.json.encode(shared)) == shared
