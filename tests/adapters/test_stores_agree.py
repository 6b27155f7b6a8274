"""Every driver answers as the oracle does, whatever the sequence of operations."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from perdure.adapters.stores import memory
from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteStore, operations
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.machine import EVERYTHING, StoreMachine

SMALL_INBOX = 3
ROUNDS_MAX = 12
ROUND = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@asynccontextmanager
async def memory_store(clock: FakeClock) -> AsyncIterator[SessionStore]:
    yield MemoryStore(clock)


@asynccontextmanager
async def sqlite_store(clock: FakeClock) -> AsyncIterator[SessionStore]:
    with tempfile.TemporaryDirectory() as folder:
        store = await SqliteStore.open(Path(folder) / "store.db", clock, synchronous="NORMAL")
        try:
            yield store
        finally:
            await store.close()


class MemoryMachine(StoreMachine):
    """The store that simulations run on."""

    open_store = staticmethod(memory_store)
    inbox_entries_max = SMALL_INBOX


class SqliteMachine(StoreMachine):
    """The store of one process, which is now and then another process."""

    open_store = staticmethod(sqlite_store)
    inbox_entries_max = SMALL_INBOX

    @rule(crowd=st.integers(0, 3))
    def start_anew(self, crowd: int) -> None:
        """What was acknowledged is there; earlier claims are void, and count."""
        if crowd:
            return
        self.wait(self.open_again())
        self.oracle.void_claims()
        self.note("store", "opened again")

    async def open_again(self) -> None:
        """Close the file and open it."""
        assert isinstance(self.store, SqliteStore)
        path = self.store.facts()["path"]
        await self.store.close()
        self.store = await SqliteStore.open(path, self.clock, synchronous="NORMAL")
        self.opened.push_async_callback(self.store.close)


@pytest.mark.parametrize("machine", [MemoryMachine, SqliteMachine])
def test_a_store_agrees_with_the_oracle_and_everything_is_reached(
    machine: type[StoreMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round after round until every kind of answer has been given.

    Every round has a seed of its own, so that this is the same walk everywhere: left to itself,
    Hypothesis repeats one round for ever wherever the environment says `CI`.
    """
    monkeypatch.setattr(memory, "INBOX_ENTRIES_MAX", SMALL_INBOX)
    monkeypatch.setattr(operations, "INBOX_ENTRIES_MAX", SMALL_INBOX)
    for number in range(ROUNDS_MAX):
        run_state_machine_as_test(seed(number)(machine), settings=ROUND)
        if machine.reached.keys() >= EVERYTHING:
            break
    assert EVERYTHING - machine.reached.keys() == set()
