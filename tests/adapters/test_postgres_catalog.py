"""PostgresCatalog keeps every promise of the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from msgspec.structs import replace

from perdure.adapters.catalog.postgres import PostgresCatalog
from perdure.core.errors import InvalidInput
from perdure.ports.catalog import Catalog, NameTaken
from perdure.ports.entries import Agent
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.catalogs import CatalogConformance, Lasting, OpenCatalog
from perdure.testing.servers.postgres import PostgresServer

EMPTY = "DELETE FROM perdure.entries; DELETE FROM perdure.numbers; DELETE FROM perdure.counters"


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    """A database for all tests of this file."""
    return postgres.fresh_database()


@pytest.fixture
async def url(database: str) -> str:
    """The same, emptied."""
    catalog = await PostgresCatalog.open(database, FakeClock().now_ms)
    await catalog.close()
    connection = await asyncpg.connect(database)
    await connection.execute(EMPTY)
    await connection.close()
    return database


class TestPostgresCatalog(CatalogConformance, Lasting):
    """The one that many nodes share."""

    @pytest.fixture
    def open_catalog(self, url: str) -> OpenCatalog:
        @asynccontextmanager
        async def opened(clock: FakeClock) -> AsyncIterator[Catalog]:
            catalog = await PostgresCatalog.open(url, clock.now_ms)
            yield catalog
            await catalog.close()

        return opened


async def test_two_nodes_share_names_revisions_and_numbers(url: str) -> None:
    clock = FakeClock()
    here, there = [await PostgresCatalog.open(url, clock.now_ms) for _ in range(2)]
    kept = await here.create("t", Agent(name="bot", system_prompt=""))
    assert await there.find("t", Agent, "bot") == kept
    changed = await there.update("t", replace(kept, purpose="new"))
    assert await here.get("t", Agent, kept.id) == changed
    with pytest.raises(NameTaken):
        await there.create("t", Agent(name="bot", system_prompt=""))
    ids = [str(n) for n in range(50)]
    one, other = await asyncio.gather(
        here.numbers("t", "run", ids), there.numbers("t", "run", ids[::-1])
    )
    assert one == other[::-1]
    for catalog in (here, there):
        await catalog.close()


async def test_a_name_that_postgres_cannot_hold_is_refused(url: str) -> None:
    catalog = await PostgresCatalog.open(url, FakeClock().now_ms)
    with pytest.raises(InvalidInput):
        await catalog.create("t", Agent(name="a\0b", system_prompt=""))
    with pytest.raises(InvalidInput):
        await catalog.numbers("t", "run", ["a\0b"])
    assert await catalog.find("t", Agent, "a\0b") is None
    await catalog.close()
