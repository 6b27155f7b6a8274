"""Every driver answers as the oracle does, whatever the sequence of operations."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from perdure.adapters.stores import memory
from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteStore, operations
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.machine import StoreMachine, walk

SMALL_INBOX = 3


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
    """Whatever is done, and until every kind of answer has been given."""
    monkeypatch.setattr(memory, "INBOX_ENTRIES_MAX", SMALL_INBOX)
    monkeypatch.setattr(operations, "INBOX_ENTRIES_MAX", SMALL_INBOX)
    walk(machine)
