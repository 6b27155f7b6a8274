"""Both catalogs keep every promise of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.adapters.catalog.sqlite import SqliteCatalog
from perdure.ports.catalog import Catalog
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.catalogs import CatalogConformance, Lasting, OpenCatalog


class TestMemoryCatalog(CatalogConformance):
    """The one that tests use."""

    @pytest.fixture
    def open_catalog(self) -> OpenCatalog:
        """Each is empty."""

        @asynccontextmanager
        async def opened(clock: FakeClock) -> AsyncIterator[Catalog]:
            yield MemoryCatalog(clock.now_ms)

        return opened


class TestSqliteCatalog(CatalogConformance, Lasting):
    """The one that servers use."""

    @pytest.fixture
    def open_catalog(self, tmp_path: Path) -> OpenCatalog:
        """All are in one file."""

        @asynccontextmanager
        async def opened(clock: FakeClock) -> AsyncIterator[Catalog]:
            catalog = await SqliteCatalog.open(tmp_path / "catalog.db", clock.now_ms)
            yield catalog
            await catalog.close()

        return opened
