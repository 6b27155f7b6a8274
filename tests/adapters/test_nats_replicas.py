"""Streams with replicas: which servers keep them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from perdure.adapters.nats.connection import Connection
from perdure.adapters.nats.log import ON_SUBJECT, Folded, Log, Outcome, Overtaken
from perdure.adapters.nats.place import Place
from perdure.adapters.nats.streams import REPLICAS_SINCE, ensure
from perdure.adapters.stores.nats import NatsStore
from perdure.core.errors import StoreRefused, Unavailable
from perdure.testing.servers.nats import NatsCluster as Servers
from tests.adapters.nats_server import fresh_name, leader_of, nats_server, three_servers

__all__ = ["nats_server", "three_servers"]


class Node:
    """A log on a stream."""

    def __init__(self, connection: Connection, log: Log) -> None:
        self.connection = connection
        self.log = log


Open = Callable[[str], Awaitable[Node]]


@pytest.fixture
async def open_node() -> AsyncIterator[Open]:
    """Return what opens a node on the stream `S` of the servers and the name in a URL."""
    async with AsyncExitStack() as opened:

        async def open_one(url: str) -> Node:
            place = Place.parse(url)
            connection = await Connection.open(place)
            opened.push_async_callback(connection.close)
            name, copies = f"{place.name()}_S", place.number("replicas", 1, 1, 5)
            await ensure(connection, name, f"{place.name()}.S.>", "file", copies)
            log = Log(connection, name, _fold, whole=False, patience=5)
            opened.push_async_callback(log.close)
            await log.open()
            return Node(connection, log)

        yield open_one


def _fold(message: Folded) -> None:
    """What is said does not matter here."""


async def written(node: Node, subject: str, guard: int | None = None) -> Outcome:
    """Return what became of a message."""
    name = node.log.stream.removesuffix("_S")
    guarded = {} if guard is None else {"guard": ON_SUBJECT, "last": guard}
    try:
        return await node.log.write(f"{name}.S.{subject}", b"{}", **guarded)  # type: ignore[arg-type]
    except (Overtaken, Unavailable) as outcome:
        return outcome


async def test_replicas_are_the_same_after_rivals_and_a_restart(
    three_servers: Servers, open_node: Open
) -> None:
    """A server that replays what was refused must refuse it again: those of 2.9 do not."""
    url = f"{three_servers.url}?name={fresh_name()}&replicas=3"
    nodes = [await open_node(url) for _ in range(3)]
    stream = nodes[0].log.stream

    async def write(some: str) -> None:
        for number in range(4):
            await asyncio.gather(*(written(node, f"{some}{number}", 0) for node in nodes))
            await written(nodes[0], "unguarded")

    await write("before")
    leader = await leader_of(three_servers, stream)
    server = next(one for one in three_servers.members if one is not leader)
    server.kill()
    await write("without")
    await asyncio.to_thread(server.start_again)
    await write("with")
    await nodes[0].log.sync()
    for _ in range(100):
        if {one.last_of(stream) for one in three_servers.members} == {nodes[0].log.folded}:
            break
        await asyncio.sleep(0.1)
    assert {one.last_of(stream) for one in three_servers.members} == {24}
    assert [node.log.failure for node in nodes] == [None] * 3


async def test_replicas_are_refused_on_servers_that_do_not_keep_them_the_same(
    three_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh_name()
    url = f"{three_servers.url}?name={name}&shards=1"
    await (await NatsStore.open(f"{url}&replicas=3")).close()
    before = (REPLICAS_SINCE[0], REPLICAS_SINCE[1] - 1, 99)
    monkeypatch.setattr(Connection, "server_version", before)
    for again in (url, f"{url}&replicas=3"):
        with pytest.raises(StoreRefused, match=r"nats-server 2\.10\.99"):
            await NatsStore.open(again)
    with pytest.raises(StoreRefused):
        await NatsStore.open(f"{three_servers.url}?name={fresh_name()}&replicas=3")
    alone = await NatsStore.open(f"{three_servers.url}?name={fresh_name()}&shards=1")
    assert alone.durability == "os"
    await alone.close()
