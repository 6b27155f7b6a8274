"""The cluster in a database keeps every promise of the port, and comes back to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from perdure.adapters.cluster.postgres import PostgresCluster
from perdure.ports.cluster import Cluster, NodeCard
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.clusters import ClusterConformance, OpenCluster, Place
from perdure.testing.servers.postgres import PostgresServer

EMPTY = "DELETE FROM perdure.members; DELETE FROM perdure.messages"
CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    """A database for all tests of this file."""
    return postgres.fresh_database()


@pytest.fixture
async def url(database: str) -> str:
    """The same, with nobody in it."""
    cluster = await PostgresCluster.open(database)
    await cluster.leave()
    connection = await asyncpg.connect(database)
    await connection.execute(EMPTY)
    await connection.close()
    return database


class TestPostgresCluster(ClusterConformance):
    """Places in one database."""

    @pytest.fixture
    def open_cluster(self, url: str) -> OpenCluster:
        @asynccontextmanager
        async def place(clock: FakeClock) -> AsyncIterator[Cluster]:
            cluster = await PostgresCluster.open(url, clock)
            yield cluster
            await cluster.leave()

        return place


async def test_it_comes_back_after_every_connection_was_cut(
    url: str, postgres: PostgresServer
) -> None:
    places = []
    for name in "ab":
        place = Place(await PostgresCluster.open(url), NodeCard(id=name))
        await place.cluster.join(place.card, 60_000, place.hear)
        places.append(place)
    first, second = places
    first.cluster.send("b", b"before")
    await second.hears(b"before")
    await asyncio.to_thread(postgres.sql, CUT, url)
    first.cluster.send("b", b"after")
    await second.hears(b"before", b"after")
    assert await first.nodes() == ["a", "b"]
    for place in places:
        await place.cluster.leave()
