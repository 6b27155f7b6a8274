"""The catalog in Redis keeps every promise of the port, also when its connection breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.adapters.catalog.redis import RedisCatalog
from perdure.adapters.stores.redis import RedisStore
from perdure.core.errors import Broken, Unavailable
from perdure.ports.catalog import Catalog
from perdure.ports.entries import Agent, Delivery
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.catalogs import CatalogConformance, Lasting, OpenCatalog
from perdure.testing.conformance.claimant import entry
from tests.adapters.redis_servers import shared, started


class TestRedisCatalog(CatalogConformance, Lasting):
    """The one for servers that have a Redis and nothing else."""

    @pytest.fixture
    def open_catalog(self) -> OpenCatalog:
        """All are under one prefix."""
        url = shared().fresh_url()

        @asynccontextmanager
        async def opened(clock: FakeClock) -> AsyncIterator[Catalog]:
            catalog = await RedisCatalog.open(url, clock)
            yield catalog
            await catalog.close()

        return opened


def delivery(number: int) -> Delivery:
    """Return an entry that has no name by which a second one would be noticed."""
    return Delivery(endpoint_id=1, message_id=f"msg_{number}", event="run.completed", body="{}")


async def test_an_entry_is_made_once_however_often_the_connection_breaks() -> None:
    with started() as server:
        catalog = await RedisCatalog.open(server.url, patience_seconds=20)
        for first in range(0, 60, 3):
            making = asyncio.gather(
                *(catalog.create("t", delivery(number)) for number in range(first, first + 3))
            )
            await asyncio.to_thread(server.hang_up)
            await making
        kept = await catalog.list("t", Delivery)
        assert sorted(one.message_id for one in kept) == sorted(f"msg_{n}" for n in range(60))
        await catalog.close()


async def test_a_long_list_comes_in_pages_and_whole() -> None:
    catalog = await RedisCatalog.open(shared().fresh_url())
    kept = await asyncio.gather(*(catalog.create("t", delivery(n)) for n in range(1_201)))
    ids = sorted(one.id for one in kept)
    assert [one.id for one in await catalog.list("t", Delivery)] == ids
    assert [one.id for one in await catalog.list("t", Delivery, newest_first=True)] == ids[::-1]
    assert [one.id for one in await catalog.list("t", Delivery, limit=1_100)] == ids[:1_100]
    await catalog.close()


async def test_a_catalog_and_a_store_share_a_prefix() -> None:
    url = shared().fresh_url()
    catalog, store = await RedisCatalog.open(url), await RedisStore.open(url)
    assert catalog.facts()["prefix"] == store.facts()["prefix"]
    assert not (await store.accept(entry("m1"))).duplicate
    assert (await catalog.create("t", Agent(name="a", system_prompt="p"))).updated_at > 10**12
    await catalog.close()
    await store.close()


async def test_a_catalog_of_a_server_that_is_gone_or_empty_says_so() -> None:
    with started() as server:
        catalog = await RedisCatalog.open(server.url, patience_seconds=0.3)
        server.kill()
        with pytest.raises(Unavailable, match="Connect"):
            await catalog.find("t", Agent, "a")
        server.start_again()
        with pytest.raises(Broken, match="emptied"):
            await catalog.create("t", Agent(name="a", system_prompt="p"))
        await catalog.close()
