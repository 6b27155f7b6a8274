"""The catalog in JetStream keeps every promise of the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from perdure.adapters.catalog.nats import NatsCatalog
from perdure.core.errors import InvalidInput, Unavailable
from perdure.ports.catalog import Catalog
from perdure.ports.entries import Agent
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.catalogs import CatalogConformance, Lasting, OpenCatalog
from perdure.testing.nodes.proxy import Proxy
from perdure.testing.servers.nats import NatsServer
from tests.adapters.nats_server import deafen_once_written, fresh_name, nats_server

__all__ = ["nats_server"]


class TestNatsCatalog(CatalogConformance, Lasting):
    """One stream in memory."""

    @pytest.fixture
    def open_catalog(self, nats_server: NatsServer) -> OpenCatalog:
        url = f"{nats_server.url}?name={fresh_name()}&storage=memory"

        @asynccontextmanager
        async def nats(clock: FakeClock) -> AsyncIterator[Catalog]:
            catalog = await NatsCatalog.open(url, clock)
            yield catalog
            await catalog.close()

        return nats

    async def test_nodes_that_write_at_the_same_time_give_nothing_twice(
        self, open_catalog: OpenCatalog, clock: FakeClock
    ) -> None:
        async with open_catalog(clock) as one, open_catalog(clock) as other:
            names = [f"a{n % 10}" for n in range(30)]
            made = await asyncio.gather(
                *(
                    catalog.create("t", Agent(name=name, system_prompt=""))
                    for name in names
                    for catalog in (one, other)
                ),
                return_exceptions=True,
            )
            kept = [entry for entry in made if isinstance(entry, Agent)]
            assert sorted(entry.name for entry in kept) == sorted(set(names))
            assert len({entry.id for entry in kept}) == 10
            numbers = await asyncio.gather(
                one.numbers("t", "run", names), other.numbers("t", "run", names[::-1])
            )
            assert numbers[0] == numbers[1][::-1]
            assert await one.list("t", Agent) == await other.list("t", Agent)

    async def test_who_was_first_is_never_told_that_he_came_too_late(
        self, nats_server: NatsServer, clock: FakeClock
    ) -> None:
        """His answer is lost, and the stream keeps only what came after him."""
        url = f"{nats_server.url}?name={fresh_name()}&storage=memory"
        async with Proxy("127.0.0.1", nats_server.port) as proxy:
            one = await NatsCatalog.open(url.replace(str(nats_server.port), str(proxy.port)), clock)
            other = await NatsCatalog.open(url, clock)
            first = await one.create("t", Agent(name="a", system_prompt="first"))
            deafen_once_written(one._log, proxy)
            updating = asyncio.ensure_future(one.update("t", replace(first, system_prompt="one")))
            async with asyncio.timeout(10):
                while (known := await other.get("t", Agent, first.id)) == first:
                    pass
            assert known is not None
            last = await other.update("t", replace(known, system_prompt="other"))
            proxy.sever()
            proxy.heal()
            with pytest.raises(Unavailable, match="not known"):
                await updating
            assert await one.get("t", Agent, first.id) == last
            await one.close()
            await other.close()

    async def test_what_the_server_cannot_take_is_refused(self, catalog: Catalog) -> None:
        noise = bytes(range(256)).hex() * 10_000
        kept = await catalog.create("t", Agent(name="large", system_prompt=noise))
        assert await catalog.get("t", Agent, kept.id) == kept
        with pytest.raises(InvalidInput, match="too large for the NATS server"):
            await catalog.create("t", Agent(name="n" * 100_000, system_prompt=""))
