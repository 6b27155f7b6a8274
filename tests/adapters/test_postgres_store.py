"""PostgresStore keeps every promise of the port, and agrees with the oracle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from perdure.adapters.stores.postgres import PostgresStore, requests
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.machine import EVERYTHING, StoreMachine
from perdure.testing.conformance.stores import OpenStore, StoreConformance
from perdure.testing.servers.postgres import PostgresServer

SMALL_INBOX = 3
ROUNDS_MAX = 30
COMPARED_EVERY = 3
ROUND = settings(
    max_examples=5,
    stateful_step_count=80,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
EMPTY = """
DELETE FROM perdure.sessions;
DELETE FROM perdure.events;
DELETE FROM perdure.inbox;
DELETE FROM perdure.snapshots;
DELETE FROM perdure.runs;
DELETE FROM perdure.blobs;
DELETE FROM perdure.nodes;
UPDATE perdure.store SET incarnation = 0
"""


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> str:
    """A database for all tests of this file: each empties it, and none turns the power off."""
    return f"{postgres.fresh_database()}?synchronous_commit=off"


@asynccontextmanager
async def emptied(url: str, clock: FakeClock) -> AsyncIterator[SessionStore]:
    """Open the store of a database, without what was there."""
    store = await PostgresStore.open(url, clock)
    connection = await asyncpg.connect(url)
    await connection.execute(EMPTY)
    await connection.close()
    try:
        yield store
    finally:
        await store.close()


class TestPostgresStore(StoreConformance):
    """Every promise of the port."""

    @pytest.fixture
    def open_store(self, url: str) -> OpenStore:
        return lambda clock: emptied(url, clock)


def test_it_agrees_with_the_oracle_and_everything_is_reached(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round after round until every kind of answer has been given."""
    monkeypatch.setattr(requests, "INBOX_ENTRIES_MAX", SMALL_INBOX)

    class PostgresMachine(StoreMachine):
        open_store = staticmethod(lambda clock: emptied(url, clock))
        inbox_entries_max = SMALL_INBOX
        turn = 0

        async def compare(self) -> None:
            """Read the whole store now and then: it takes a dozen questions to a server."""
            self.turn += 1
            if self.turn % COMPARED_EVERY == 0:
                await super().compare()

    for number in range(ROUNDS_MAX):
        run_state_machine_as_test(seed(number)(PostgresMachine), settings=ROUND)
        if PostgresMachine.reached.keys() >= EVERYTHING:
            break
    assert EVERYTHING - PostgresMachine.reached.keys() == set()
