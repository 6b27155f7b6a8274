"""Both catalogs keep every promise of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.ports.catalog import Catalog
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.catalogs import CatalogConformance, OpenCatalog


class TestMemoryCatalog(CatalogConformance):
    """The one that tests use."""

    @pytest.fixture
    def open_catalog(self) -> OpenCatalog:
        """Each is empty."""

        @asynccontextmanager
        async def opened(clock: FakeClock) -> AsyncIterator[Catalog]:
            yield MemoryCatalog(clock.now_ms)

        return opened
