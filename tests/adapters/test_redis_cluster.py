"""Nodes that know each other through a Redis keep every promise of the port, and find back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.adapters.cluster.redis import RedisCluster
from perdure.core.errors import Unavailable
from perdure.ports.cluster import MESSAGE_BYTES_MAX, Cluster, NodeCard
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.clusters import LIFETIME_MS, ClusterConformance, OpenCluster, Place
from tests.adapters.redis_servers import shared, started


@asynccontextmanager
async def place(url: str, clock: FakeClock | None = None) -> AsyncIterator[RedisCluster]:
    cluster = RedisCluster(url, clock)
    try:
        yield cluster
    finally:
        await cluster.leave()


@asynccontextmanager
async def joined(url: str, name: str) -> AsyncIterator[Place]:
    async with place(url) as cluster:
        joining = Place(cluster, NodeCard(id=name))
        await cluster.join(joining.card, LIFETIME_MS, joining.hear)
        yield joining


class TestRedisCluster(ClusterConformance):
    """The bus and presence of a cluster that has a Redis."""

    @pytest.fixture
    def open_cluster(self) -> OpenCluster:
        url = shared().fresh_url()

        @asynccontextmanager
        async def opened(clock: FakeClock) -> AsyncIterator[Cluster]:
            async with place(url, clock) as cluster:
                yield cluster

        return opened


async def test_the_largest_message_arrives_among_others() -> None:
    url = shared().fresh_url()
    async with joined(url, "a") as first, joined(url, "b") as second:
        largest = bytes(MESSAGE_BYTES_MAX)
        first.cluster.send("b", largest + b"!")
        first.cluster.send(None, largest)
        first.cluster.send("b", b"small")
        await second.hears(largest, b"small")


async def test_a_message_that_one_node_fetched_leaves_nothing_behind() -> None:
    with started() as server:
        async with joined(server.url, "a") as first, joined(server.url, "b") as second:
            first.cluster.send("b", bytes(1 << 20))
            await second.hears(bytes(1 << 20))
            assert b"message" not in server.ask("EVAL", "return redis.call('KEYS','*')[1]", "0")


async def test_without_a_clock_the_servers_time_says_who_is_there() -> None:
    url = shared().fresh_url()
    async with joined(url, "a") as first, place(url) as brief:
        await brief.join(NodeCard(id="b"), 50, lambda message: None)
        await asyncio.sleep(0.06)
        assert await first.nodes() == ["a"]


async def test_two_prefixes_are_two_clusters() -> None:
    async with (
        joined(shared().fresh_url(), "a") as first,
        joined(shared().fresh_url(), "b") as second,
    ):
        first.cluster.send("b", b"lost")
        second.cluster.send("b", b"found")
        await second.hears(b"found")
        assert await first.nodes() == ["a"]


async def test_a_node_finds_back_when_the_server_was_gone() -> None:
    with started() as server:
        async with joined(server.url, "a") as first, joined(server.url, "b") as second:
            await asyncio.to_thread(server.kill)
            first.cluster.send("b", b"lost perhaps")
            await asyncio.to_thread(server.start_again)
            for number in itertools.count():
                first.cluster.send("b", b"%d" % number)
                await asyncio.sleep(0.05)
                if second.heard:
                    break
                assert number < 200
            await first.cluster.announce(first.card)
            await second.cluster.announce(second.card)
            assert await first.nodes() == ["a", "b"]


async def test_a_cluster_that_is_not_there_cannot_be_joined() -> None:
    with started() as server:
        url = server.url
    async with place(url) as cluster:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await cluster.join(NodeCard(id="a"), LIFETIME_MS, lambda message: None)
