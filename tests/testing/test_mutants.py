"""Every mutant is caught by the rig that its entry names, and the rig is quiet without it.

`pytest -k M` finds the test that catches mutant M; that of a crash is in test_survival.py, that of
the simulation with the simulation's tests.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import pytest

from perdure.adapters.redis.script import Script
from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteStore
from perdure.core import approvals, reserving, session, spending
from perdure.core.errors import InvalidInput
from perdure.core.history import History
from perdure.ports.session_store import SessionStore
from perdure.runtime.dispatcher import Dispatcher
from perdure.runtime.heartbeat import Heartbeat
from perdure.runtime.post import Post
from perdure.runtime.recovery import Recovery
from perdure.runtime.tenancy import Tenancy
from perdure.testing import budgets, governance
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.check import broken_promises, promises
from perdure.testing.conformance.opening import OpenStore
from perdure.testing.convict import convict
from perdure.testing.mutants import MUTANTS, Rig, broken
from perdure.testing.mutation.patches import Patches
from perdure.testing.mutation.stores import STORES
from perdure.worker import LocalWorker
from tests.core import test_session
from tests.runtime.test_known_defects import (
    test_k10_no_cut_splits_a_call_from_its_result as k10,
)

STORIES = 300


def of(rig: str) -> list[str]:
    """Return the mutants that a rig must catch."""
    return [name for name, mutant in MUTANTS.items() if mutant.rig == rig]


@asynccontextmanager
async def memory(clock: FakeClock) -> AsyncIterator[SessionStore]:
    """Open the store that simulations run on."""
    yield MemoryStore(clock)


@asynccontextmanager
async def sqlite(clock: FakeClock) -> AsyncIterator[SessionStore]:
    """Open the store of one process."""
    with tempfile.TemporaryDirectory() as folder:
        store = await SqliteStore.open(Path(folder) / "store.db", clock, synchronous="NORMAL")
        try:
            yield store
        finally:
            await store.close()


@pytest.mark.parametrize("open_store", [memory, sqlite])
@pytest.mark.parametrize("mutant", of("store"))
async def test_the_suite_of_stores_catches(mutant: str, open_store: OpenStore) -> None:
    with broken(mutant):
        assert await broken_promises(open_store) != []


@pytest.mark.parametrize("mutant", of("governance"))
def test_stories_of_rules_and_people_catch(mutant: str) -> None:
    assert convict(mutant).caught


def test_stories_of_rules_and_people_are_lawful_without_a_mutant() -> None:
    found = governance.play(STORIES)
    assert found.wrong == ()
    assert found.approvals > STORIES


@pytest.mark.parametrize("mutant", of("budget"))
def test_stories_of_runs_that_pay_catch(mutant: str) -> None:
    assert convict(mutant).caught


def test_stories_of_runs_that_pay_keep_their_budgets_without_a_mutant() -> None:
    found = budgets.play(STORIES)
    assert found.wrong == ()
    assert found.counts["budget_exceeded"] > STORIES


@pytest.mark.parametrize("mutant", of("core"))
def test_the_rules_catch(mutant: str) -> None:
    assert convict(mutant).caught


def test_every_mutant_has_a_rig_that_can_be_set_upon_it() -> None:
    assert {mutant.rig for mutant in MUTANTS.values()} == set(get_args(Rig))
    assert len(MUTANTS) >= 14


def test_the_tests_of_effects_catch_late_outcome_accepted() -> None:
    with broken("late_outcome_accepted"), pytest.raises(AssertionError):
        test_session.TestEffects().test_a_late_result_changes_nothing()


@pytest.mark.parametrize("strategy", ["window", "compact"])
def test_k10_catches_split_tool_pair(strategy: str) -> None:
    with broken("split_tool_pair"), pytest.raises(AssertionError):
        k10(strategy, 3)


async def test_the_suite_of_stores_is_quiet_without_a_mutant() -> None:
    assert len(promises()) > 50
    assert await broken_promises(memory) == []


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_was_broken_is_whole_again(mutant: str) -> None:
    parts = (LocalWorker, Dispatcher, Heartbeat, History, Post, Recovery, Script, Tenancy)
    parts = (*parts, session, approvals, reserving, spending, sys.modules["perdure.core.evolve"])
    holders = (*STORES, *parts)
    before = [dict(vars(holder)) for holder in holders]
    with broken(mutant) as found:
        assert found.what.endswith(".")
        assert [dict(vars(holder)) for holder in holders] != before
    assert [dict(vars(holder)) for holder in holders] == before


def test_a_mutant_of_what_does_not_exist_any_more_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="mend the mutant"):
        Patches().method(MemoryStore, "comit", lambda original: original)
    with pytest.raises(InvalidInput, match="mend the mutant"):
        Patches().name("perdure.core.session", "decides", lambda original: original)


def test_an_unknown_mutant_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidInput, match="they are: no_fence"), broken("nothing"):
        pass
