"""Mutants: the engine, broken in one place on purpose. A rig that catches none proves nothing.

    with broken("no_fence"):
        ...                      # in this process, until the block is left

    break_engine("no_fence")     # in this process, for good: a child that is to be killed anyway

`PERDURE_BREAK=no_fence` breaks the processes that the rigs start. `rig` says which rig must catch a
mutant: `crash` kills real processes, `store` is the conformance suite of stores, `simulation` the
deterministic simulation, `leader` pauses the holders of sessions, `matrix` runs several nodes into
trouble, `governance` plays rules, people and doubt, `budget` runs that have to pay, `core` asks the
rules directly.
`perdure.testing.convict` runs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

from perdure.core.errors import InvalidInput
from perdure.testing.mutation import budgets, engine, family, governance, nodes, stores
from perdure.testing.mutation.patches import Patches

BREAK_VARIABLE = "PERDURE_BREAK"
Rig = Literal["crash", "store", "core", "governance", "budget", "simulation", "leader", "matrix"]


class Mutant(NamedTuple):
    """One way to be wrong: what is broken in a sentence, and the rig that has to find it."""

    name: str
    what: str
    rig: Rig
    breaks: Callable[[Patches], None]


def _mutants() -> Iterator[Mutant]:
    by_rig: tuple[tuple[Rig, tuple[Callable[[Patches], None], ...]], ...] = (
        (
            "store",
            (
                stores.no_fence,
                stores.version_not_checked,
                stores.claim_ignores_lease,
                stores.lost_claim_goes_on,
                stores.lease_by_node_clock,
            ),
        ),
        (
            "crash",
            (
                stores.ack_before_commit,
                stores.receipt_before_commit,
                stores.result_in_two_commits,
                stores.inbox_apart,
                stores.snapshot_ahead,
                engine.dispatch_before_durable,
                engine.key_includes_attempt,
                engine.key_not_stable,
                engine.once_sent_again,
                engine.unknown_dropped,
                engine.begun_calls_forgotten,
                engine.duplicate_result_accepted,
                engine.idempotency_key_ignored,
            ),
        ),
        ("simulation", (engine.split_tool_pair, *family.MUTANTS)),
        ("leader", (stores.load_before_claim, nodes.ttl_on_token)),
        ("matrix", (nodes.renewal_from_thread, nodes.notify_as_truth)),
        ("core", (engine.late_outcome_accepted,)),
        ("governance", governance.MUTANTS),
        ("budget", budgets.MUTANTS),
    )
    for rig, functions in by_rig:
        for breaks in functions:
            what = " ".join((breaks.__doc__ or "").split())
            yield Mutant(breaks.__name__, what, rig, breaks)


MUTANTS: Mapping[str, Mutant] = {mutant.name: mutant for mutant in _mutants()}


@contextmanager
def broken(name: str) -> Iterator[Mutant]:
    """Break the engine in this process until the block is left. Raises `InvalidInput`."""
    mutant, patches = find(name), Patches()
    try:
        mutant.breaks(patches)
        yield mutant
    finally:
        patches.undo()


def break_engine(name: str) -> Mutant:
    """Break the engine in this process for good. Raises `InvalidInput`."""
    mutant = find(name)
    mutant.breaks(Patches())
    return mutant


def break_from_environment(environment: Mapping[str, str] = os.environ) -> Mutant | None:
    """Break the engine as the process that started this one wants it, if it does."""
    name = environment.get(BREAK_VARIABLE)
    return break_engine(name) if name else None


def find(name: str) -> Mutant:
    """Return a mutant. Raises `InvalidInput` for one that nobody knows."""
    mutant = MUTANTS.get(name)
    if mutant is None:
        raise InvalidInput(f"{name!r} is no mutant; they are: {', '.join(MUTANTS)}")
    return mutant
