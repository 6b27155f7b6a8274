"""Nodes that know each other through NATS keep every promise of the port, and come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.adapters.cluster.nats import NatsCluster
from perdure.ports.cluster import Cluster
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.clusters import ClusterConformance, OpenCluster
from perdure.testing.servers.nats import NatsServer
from tests.adapters.nats_server import fresh_name, nats_server

__all__ = ["nats_server"]


class TestNatsCluster(ClusterConformance):
    """Places under one name."""

    @pytest.fixture
    def open_cluster(self, nats_server: NatsServer) -> OpenCluster:
        url = f"{nats_server.url}?name={fresh_name()}"

        @asynccontextmanager
        async def place(clock: FakeClock) -> AsyncIterator[Cluster]:
            cluster = NatsCluster(url, clock)
            yield cluster
            await cluster.leave()

        return place
