"""Every driver keeps every promise of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteStore
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.stores import OpenStore, StoreConformance


class TestMemoryStore(StoreConformance):
    """The store that simulations run on."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        @asynccontextmanager
        async def memory(clock: FakeClock) -> AsyncIterator[SessionStore]:
            yield MemoryStore(clock)

        return memory


class TestSqliteStore(StoreConformance):
    """The store of one process."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        @asynccontextmanager
        async def sqlite(clock: FakeClock) -> AsyncIterator[SessionStore]:
            store = await SqliteStore.open(tmp_path / "store.db", clock, synchronous="NORMAL")
            yield store
            await store.close()

        return sqlite
