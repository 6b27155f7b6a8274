"""The store in Redis keeps every promise of the port, and answers as the oracle does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from perdure.adapters.stores.redis import RedisStore, store
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.machine import EVERYTHING, StoreMachine
from perdure.testing.conformance.stores import OpenStore, StoreConformance
from tests.adapters.redis_servers import shared
from tests.adapters.test_stores_agree import ROUND, ROUNDS_MAX, SMALL_INBOX


@asynccontextmanager
async def redis_store(clock: FakeClock) -> AsyncIterator[SessionStore]:
    opened = await RedisStore.open(shared().fresh_url(), clock)
    try:
        yield opened
    finally:
        await opened.close()


class TestRedisStore(StoreConformance):
    """The store that nodes share without a database."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        return redis_store


class RedisMachine(StoreMachine):
    """The store of several nodes: what one writes another goes on with."""

    open_store = staticmethod(redis_store)
    inbox_entries_max = SMALL_INBOX

    @rule(crowd=st.integers(0, 3))
    def go_on_elsewhere(self, crowd: int) -> None:
        """Claims outlive the process that made them."""
        if crowd == 0:
            self.wait(self.open_again())
            self.note("store", "opened again")

    async def open_again(self) -> None:
        """Open the same store a second time, and use that one."""
        assert isinstance(self.store, RedisStore)
        url = f"{shared().url}?prefix={self.store.facts()['prefix']}"
        self.store = await RedisStore.open(url, self.clock)
        self.opened.push_async_callback(self.store.close)


def test_it_agrees_with_the_oracle_and_everything_is_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Round after round until every kind of answer has been given."""
    monkeypatch.setattr(store, "INBOX_ENTRIES_MAX", SMALL_INBOX)
    for number in range(ROUNDS_MAX):
        run_state_machine_as_test(seed(number)(RedisMachine), settings=ROUND)
        if RedisMachine.reached.keys() >= EVERYTHING:
            break
    assert EVERYTHING - RedisMachine.reached.keys() == set()
