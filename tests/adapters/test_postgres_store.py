"""PostgresStore keeps every promise of the port, and agrees with the oracle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from perdure.adapters.stores.postgres import PostgresStore, requests
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.machine import StoreMachine, walk
from perdure.testing.conformance.stores import OpenStore, StoreConformance
from perdure.testing.servers.postgres import PostgresServer

SMALL_INBOX = 3
COMPARED_EVERY = 3
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
    """Whatever is done, and until every kind of answer has been given."""
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

    walk(PostgresMachine, walks=5, steps=80, rounds_max=30)
