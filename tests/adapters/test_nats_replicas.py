"""Streams with replicas: who tells where one ends, what is believed to be gone, and which servers.

What a leader says is put into its mouth here: real ones say the odd things too seldom.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import chain, repeat
from typing import Any

import pytest

from perdure.adapters.nats import log as log_module
from perdure.adapters.nats.connection import Connection
from perdure.adapters.nats.log import ON_SUBJECT, Folded, Log, Outcome, Overtaken
from perdure.adapters.nats.place import Place
from perdure.adapters.nats.streams import REPLICAS_SINCE, ensure
from perdure.adapters.stores.nats import NatsStore
from perdure.adapters.stores.nats.contents import Contents
from perdure.core.errors import Broken, StoreRefused, Unavailable
from perdure.testing.servers.nats import NatsCluster as Servers
from perdure.testing.servers.nats import NatsServer
from tests.adapters.nats_server import (
    forget_broken_connections,
    fresh,
    fresh_name,
    leader_of,
    nats_server,
    three_servers,
)

__all__ = ["nats_server", "three_servers"]

Said = Callable[[dict[str, Any]], dict[str, Any]]
SECOND = 1_000_000_000
NOW, LONG_AGO = 1, 60 * SECOND


class Node:
    """A log on a stream, of which somebody may say what is not so."""

    def __init__(self, connection: Connection, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connection = connection
        self.log = log
        self.losses = 0
        self.asked = 0
        self._monkeypatch = monkeypatch

    def is_told(self, said: Iterator[Said]) -> None:
        """Have the next answers to where the stream ends be others."""
        ask = self.connection.api

        async def api(subject: str, *arguments: Any, **fields: Any) -> Any:
            found = await ask(subject, *arguments, **fields)
            if not subject.startswith("STREAM.INFO"):
                return found
            self.asked += 1
            return next(said)(found)

        self._monkeypatch.setattr(self.connection, "api", api)


Open = Callable[[str], Awaitable[Node]]


@pytest.fixture
async def open_node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Return what opens a node on the stream `S` of the servers and the name in a URL."""
    async with AsyncExitStack() as opened:

        async def open_one(url: str) -> Node:
            place = Place.parse(url)
            connection = await Connection.open(place)
            opened.push_async_callback(connection.close)
            name, copies = f"{place.name()}_S", place.number("replicas", 1, 1, 5)
            await ensure(connection, name, f"{place.name()}.S.>", "file", copies)

            def lose() -> None:
                node.losses += 1

            log = Log(connection, name, _fold, whole=False, patience=5, on_loss=lose)
            opened.push_async_callback(log.close)
            node = Node(connection, log, monkeypatch)
            await log.open()
            return node

        yield open_one
    forget_broken_connections()


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


def replica(last: int, leader: str, *active: int, here: str = "n1") -> Said:
    """Return what one of three replicas says: where the stream ends, who leads, whom it met."""

    def say(found: dict[str, Any]) -> dict[str, Any]:
        others = [name for name in ("n1", "n2", "n3") if name != here]
        met = zip(others, active or (0, 0), strict=True)
        return {
            **found,
            "config": {**found["config"], "num_replicas": 3},
            "state": {**found["state"], "last_seq": last},
            "cluster": {
                "leader": leader,
                "replicas": [{"name": name, "active": age} for name, age in met],
            },
        }

    return say


async def test_who_is_not_the_leader_is_asked_again(
    nats_server: NatsServer, open_node: Open
) -> None:
    node = await open_node(fresh(nats_server))
    for _ in range(3):
        await written(node, "a")
    without, follower = replica(3, ""), replica(3, "n2")
    node.is_told(chain((without, without, follower), repeat(replica(3, "n1", NOW, NOW))))
    await node.log.sync()
    assert node.asked == 4


async def test_a_leader_that_nobody_follows_is_not_believed(
    nats_server: NatsServer, open_node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off, and the others go on under another one."""
    monkeypatch.setattr(log_module, "MEETINGS_SECONDS_MAX", 0.0)
    node = await open_node(fresh(nats_server))
    monkeypatch.setattr(node.log, "_patience", 0.5)
    for _ in range(3):
        await written(node, "a")
    node.is_told(repeat(replica(2, "n1", LONG_AGO, LONG_AGO)))
    with pytest.raises(Unavailable, match="no leader that most replicas follow"):
        await node.log.sync()
    node.is_told(repeat(replica(2, "n1", 0, 0)))
    with pytest.raises(Unavailable, match="no leader that most replicas follow"):
        await node.log.sync()
    assert (node.log.failure, node.losses) == (None, 0)


async def test_a_leader_that_meets_another_one_is_not_believed(
    nats_server: NatsServer, open_node: Open
) -> None:
    node = await open_node(fresh(nats_server))
    for _ in range(3):
        await written(node, "a")
    node.is_told(
        chain(
            (replica(2, "n1", LONG_AGO, LONG_AGO), replica(2, "n1", NOW, LONG_AGO)),
            repeat(replica(3, "n2", NOW, NOW, here="n2")),
        )
    )
    await node.log.sync()
    assert (node.log.failure, node.losses) == (None, 0)


async def test_what_a_leader_lacks_that_is_followed_is_gone(
    nats_server: NatsServer, open_node: Open
) -> None:
    node = await open_node(fresh(nats_server))
    for _ in range(3):
        await written(node, "a")
    node.is_told(repeat(replica(2, "n1", NOW, LONG_AGO)))
    with pytest.raises(Broken, match="messages after 2 are gone"):
        await node.log.sync()
    assert node.losses == 1


async def test_what_a_server_lacks_that_is_alone_is_gone(
    nats_server: NatsServer, open_node: Open
) -> None:
    node = await open_node(fresh(nats_server))
    for _ in range(3):
        await written(node, "a")

    def say(found: dict[str, Any]) -> dict[str, Any]:
        alone = {name: value for name, value in found.items() if name != "cluster"}
        return {**alone, "state": {**found["state"], "last_seq": 2}}

    node.is_told(repeat(say))
    with pytest.raises(Broken, match="messages after 2 are gone"):
        await node.log.sync()
    assert (node.asked, node.losses) == (1, 1)


async def test_a_number_that_another_message_had_shows_that_it_is_gone(
    nats_server: NatsServer, open_node: Open
) -> None:
    node = await open_node(fresh(nats_server))
    for _ in range(3):
        await written(node, "a")
    await node.log.sync()
    settings = (await node.connection.api(f"STREAM.INFO.{node.log.stream}"))["config"]
    await node.connection.api(f"STREAM.DELETE.{node.log.stream}")
    await node.connection.api(f"STREAM.CREATE.{node.log.stream}", **settings)
    assert isinstance(await written(node, "a"), Broken)
    assert node.losses == 1


async def test_of_rivals_one_is_stored_and_the_others_know_it(
    three_servers: Servers, open_node: Open
) -> None:
    """Servers refuse the second in another way while the first is under way."""
    url = f"{three_servers.url}?name={fresh_name()}&replicas=3"
    nodes = [await open_node(url) for _ in range(3)]
    for number in range(20):
        outcomes = await asyncio.gather(*(written(node, f"r{number}", 0) for node in nodes))
        assert sorted(type(one) is Overtaken for one in outcomes) == [False, True, True], outcomes


async def test_who_keeps_what_another_keeps_just_now_waits_for_it(
    three_servers: Servers, open_node: Open
) -> None:
    url = f"{three_servers.url}?name={fresh_name()}&replicas=3"
    nodes = [await open_node(url) for _ in range(3)]
    stream = nodes[0].log.stream
    prefix = stream.replace("_", ".")
    keepers = [Contents(node.connection, stream, prefix, 10) for node in nodes]
    for number in range(20):
        content = bytes([number])
        await asyncio.gather(*(one.keep(f"blob {number}", content) for one in keepers))
        assert await keepers[0].find(f"blob {number}") == content


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
