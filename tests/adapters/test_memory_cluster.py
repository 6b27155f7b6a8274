"""The cluster of one process keeps every promise of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.adapters.cluster.memory import Hub, MemoryCluster
from perdure.ports.cluster import Cluster
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.clusters import ClusterConformance, OpenCluster


class TestMemoryCluster(ClusterConformance):
    """Places at one hub."""

    @pytest.fixture
    def open_cluster(self, clock: FakeClock) -> OpenCluster:
        hub = Hub(clock.now_ms)

        @asynccontextmanager
        async def place(clock: FakeClock) -> AsyncIterator[Cluster]:
            cluster = MemoryCluster(hub)
            yield cluster
            await cluster.leave()

        return place
