"""The store in JetStream keeps every promise of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.adapters.stores.nats import NatsStore
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.stores import OpenStore, StoreConformance
from perdure.testing.servers.nats import NatsServer
from tests.adapters.nats_server import fresh, nats_server

__all__ = ["nats_server"]


class TestNatsStore(StoreConformance):
    """One shard, on a server of its own."""

    @pytest.fixture
    def open_store(self, nats_server: NatsServer) -> OpenStore:
        @asynccontextmanager
        async def nats(clock: FakeClock) -> AsyncIterator[SessionStore]:
            store = await NatsStore.open(fresh(nats_server), clock)
            yield store
            await store.close()

        return nats
