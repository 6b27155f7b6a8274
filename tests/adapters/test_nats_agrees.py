"""The store in JetStream answers as the oracle does, whatever the sequence of operations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from perdure.adapters.stores.nats import NatsStore, store
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.machine import StoreMachine, walk
from perdure.testing.servers.nats import NatsServer
from tests.adapters.nats_server import fresh, nats_server

__all__ = ["nats_server"]

SMALL_INBOX = 3


@asynccontextmanager
async def opened(clock: FakeClock) -> AsyncIterator[SessionStore]:
    """Open an empty store of two shards."""
    NatsMachine.url = fresh(NatsMachine.server, shards=2)
    yield await NatsStore.open(NatsMachine.url, clock)


class NatsMachine(StoreMachine):
    """Nodes that come and go: what one of them wrote another one goes on with."""

    server: ClassVar[NatsServer]
    url: ClassVar[str]
    open_store = staticmethod(opened)
    inbox_entries_max = SMALL_INBOX

    @rule(crowd=st.integers(0, 3))
    def go_on_elsewhere(self, crowd: int) -> None:
        """Another node knows everything; claims are as they were."""
        if not crowd:
            self.wait(self.open_again())

    async def open_again(self) -> None:
        """Open the store anew, and close the one before."""
        assert isinstance(self.store, NatsStore)
        await self.store.close()
        self.store = await NatsStore.open(self.url, self.clock)

    def teardown(self) -> None:
        """Close the store."""
        if hasattr(self, "store"):
            assert isinstance(self.store, NatsStore)
            self.wait(self.store.close())
        super().teardown()


def test_the_store_agrees_with_the_oracle_and_everything_is_reached(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done, and until every kind of answer has been given."""
    monkeypatch.setattr(store, "INBOX_ENTRIES_MAX", SMALL_INBOX)
    NatsMachine.server = nats_server
    walk(NatsMachine, rounds_max=6)
