"""Real servers that are killed, frozen and cut off: what was acknowledged is there, once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from perdure.adapters.cluster.nats import NatsCluster
from perdure.adapters.nats import log
from perdure.adapters.nats.connection import Connection
from perdure.adapters.nats.place import Place
from perdure.adapters.stores.nats import NatsStore
from perdure.core.errors import Broken, Unavailable
from perdure.ports.cluster import NodeCard
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import (
    FAR,
    SESSION,
    claim,
    created,
    entry,
    outcomes,
    submit,
)
from perdure.testing.nodes.proxy import Proxy
from perdure.testing.servers.nats import NatsCluster as Servers
from perdure.testing.servers.nats import NatsServer
from tests.adapters.nats_load import Load
from tests.adapters.nats_server import (
    deafen_once_written,
    forget_broken_connections,
    fresh,
    fresh_name,
    leader_of,
    nats_server,
    three_servers,
)

__all__ = ["nats_server", "three_servers"]

T = TypeVar("T")


@pytest.fixture
def own_server(nats_server: NatsServer) -> Iterator[NatsServer]:
    """Return a server that may be killed."""
    with NatsServer.start() as server:
        yield server
    forget_broken_connections()


async def test_a_killed_server_has_lost_nothing_that_it_acknowledged(
    own_server: NatsServer,
) -> None:
    load = Load(f"{own_server.url}?shards=2", 50)
    async with load.running():
        for commits in (500, 700, 900):
            await load.progress(commits)
            own_server.kill()
            await asyncio.to_thread(own_server.start_again)
        await load.progress(500)
    await load.audit()
    assert load.refused == []


async def test_a_server_that_stands_still_for_a_while_is_waited_for(
    own_server: NatsServer,
) -> None:
    load = Load(f"{own_server.url}?shards=1", 10)
    async with load.running():
        await load.progress(100)
        own_server.freeze()
        await asyncio.sleep(1.5)
        own_server.thaw()
        await load.progress(100)
    await load.audit()
    assert load.refused == []


async def test_what_nobody_knew_of_is_known_to_the_next_claim(own_server: NatsServer) -> None:
    store = await NatsStore.open(f"{own_server.url}?shards=1&patience=1")
    owner = await created(store)
    own_server.freeze()
    assert [type(error) for error in await submit(store, owner.step(b"1"))] == [Unavailable]
    own_server.thaw()
    heir = await claim(store, nonce="again")
    assert [record.body for record in heir.loaded.tail] in ([], [b"1"])
    assert await submit(store, heir.step(b"next")) == [None]
    assert await outcomes(store, owner.step(b"2")) == ["Fenced"]
    bodies = [record.body for record in await store.read(SESSION, 0, 9)]
    assert bodies == [*(record.body for record in heir.loaded.tail), b"next"]
    await store.close()


async def test_a_killed_leader_of_three_is_succeeded(three_servers: Servers) -> None:
    name = fresh_name()
    load = Load(f"{three_servers.url}?name={name}&shards=1&replicas=3", 10, pause_seconds=0.01)
    async with load.running():
        assert load.store.durability == "replicated(2)"
        await load.progress(200)
        leader = await leader_of(three_servers, f"{name}_0")
        leader.kill()
        await load.progress_of_all()
        await asyncio.to_thread(leader.start_again)
        await load.progress(200)
    await load.audit()
    assert load.refused == []


async def test_a_cluster_without_a_majority_takes_nothing_and_goes_on_afterwards(
    three_servers: Servers,
) -> None:
    url = f"{three_servers.url}?name={fresh_name()}&shards=1&replicas=3&patience=1"
    load = Load(url, 5, pause_seconds=0.01)
    async with load.running():
        await load.progress(50)
        for server in three_servers.members[:2]:
            server.kill()
        await load.until(lambda: len(load.refused) >= len(load.sessions))
        told = load.count
        await load.until(lambda: len(load.refused) >= 2 * len(load.sessions))
        assert load.count == told
        for server in three_servers.members[:2]:
            await asyncio.to_thread(server.start_again)
        await load.progress_of_all()
    await load.audit()
    assert set(load.refused) == {"Unavailable"}


async def test_what_an_acknowledgement_is_worth_is_looked_up_with_every_renewal(
    three_servers: Servers,
) -> None:
    name = fresh_name()
    store = await NatsStore.open(f"{three_servers.url}?name={name}&shards=1&replicas=3")
    assert (await store.accept(entry("m1"))).durability == "replicated(2)"
    connection = await Connection.open(Place.parse(three_servers.url))
    found = await connection.api(f"STREAM.INFO.{name}_0")
    for replicas, worth in ((1, "os"), (3, "replicated(2)")):
        await connection.api(
            f"STREAM.UPDATE.{name}_0", **{**found["config"], "num_replicas": replicas}
        )
        async with asyncio.timeout(20):
            while store.durability != worth:
                assert await store.renew("node", 60_000)
        assert (await store.accept(entry(worth))).durability == worth
    await connection.close()
    await store.close()


class Cutter:
    """A place between clients and a server where connections are cut."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._open: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server
        self.port = 0

    @asynccontextmanager
    async def standing(self) -> AsyncIterator[Cutter]:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._listening.close()
            self.cut()

    def cut(self) -> None:
        """Cut every connection, with whatever is on its way."""
        for writer in self._open:
            writer.transport.abort()

    def say(self, words: bytes) -> None:
        """Tell every client something as if its server had said it."""
        for writer in self._clients:
            writer.write(words)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._open |= {writer, there[1]}
        self._clients.add(writer)
        await asyncio.gather(_carry(reader, there[1]), _carry(there[0], writer))
        self._open -= {writer, there[1]}
        self._clients.discard(writer)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def test_connections_that_are_cut_lose_nothing_and_write_nothing_twice(
    nats_server: NatsServer,
) -> None:
    url = fresh(nats_server, shards=2)
    chance = random.Random(5)
    async with Cutter(nats_server).standing() as cutter:
        load = Load(url.replace(str(nats_server.port), str(cutter.port)), 20)
        async with load.running():
            for _ in range(8):
                await load.progress(chance.randrange(20, 200))
                cutter.cut()
        load.url = url
        await load.audit()
        assert load.refused == []


async def test_what_a_server_says_is_wrong_ends_no_connection_for_good(
    nats_server: NatsServer,
) -> None:
    url = fresh(nats_server, shards=2)
    async with Cutter(nats_server).standing() as cutter:
        through = url.replace(str(nats_server.port), str(cutter.port))
        load = Load(through, 20)
        async with load.running():
            for _ in range(3):
                await load.progress(50)
                cutter.say(b"-ERR 'maximum connections exceeded'\r\n")
            await load.progress_of_all()
        load.url = url
        await load.audit()
        assert load.refused == []


async def test_nodes_find_each_other_again_when_a_server_said_that_something_is_wrong(
    nats_server: NatsServer,
) -> None:
    url, clock, came = fresh(nats_server), FakeClock(), asyncio.Event()
    heard: list[bytes] = []
    async with Cutter(nats_server).standing() as cutter:
        one = NatsCluster(url.replace(str(nats_server.port), str(cutter.port)), clock)
        other = NatsCluster(url, clock)
        await one.join(NodeCard(id="one"), 60_000, lambda message: came.set())
        await other.join(NodeCard(id="other"), 60_000, heard.append)
        cutter.say(b"-ERR 'maximum connections exceeded'\r\n")
        async with asyncio.timeout(10):
            while not came.is_set():
                other.send("one", b"hello again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(came.wait(), 0.05)
        assert [card.id for card in await one.nodes()] == ["one", "other"]
        await one.announce(NodeCard(id="one"))
        await one.leave()
        await other.leave()


async def test_a_renewal_and_a_distrust_are_repeated_when_nobody_knows_of_them(
    nats_server: NatsServer,
) -> None:
    """The answer is lost, and the stream keeps only what came after them."""
    url, clock = fresh(nats_server), FakeClock()
    async with Proxy("127.0.0.1", nats_server.port) as proxy:
        through = url.replace(str(nats_server.port), str(proxy.port))
        one, other = await NatsStore.open(through, clock), await NatsStore.open(url, clock)

        async def unheard(doing: Coroutine[Any, Any, T], meanwhile: Callable[[], Any]) -> T:
            """Do something of which nothing is heard until all else was done twice."""
            deafen_once_written(one._control.log, proxy)
            done, before = asyncio.ensure_future(doing), other._control.log.folded
            async with asyncio.timeout(10):
                while other._control.log.folded == before:
                    await other.due(FAR, 1)
            for _ in range(2):
                await meanwhile()
            proxy.sever()
            proxy.heal()
            return await done

        await created(one)
        await unheard(one.distrust(), other.distrust)
        assert await one.renew("one", 3_000)
        assert await unheard(one.renew("one", 3_000), lambda: other.renew("one", 3_000))
        clock.advance(3_000)
        assert not await unheard(one.renew("one", 3_000), lambda: other.renew("one", 3_000))
        assert await one.renew("one", 3_000)
        one_has, other_has = await one.load(SESSION), await other.load(SESSION)
        assert one_has == other_has
        await one.close()
        await other.close()


async def test_what_is_sent_again_and_again_is_written_once(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "RESEND_SECONDS", 0.0)
    monkeypatch.setattr(log, "SWEEP_SECONDS", 0.0005)
    monkeypatch.setattr(log, "IDLE_SECONDS", 0.0005)
    load = Load(fresh(nats_server), 20)
    async with load.running():
        await load.progress(1_000)
    await load.audit()
    assert load.refused == []


async def test_a_store_that_lost_what_was_there_is_suspect(own_server: NatsServer) -> None:
    url = f"{own_server.url}?shards=1"
    store = await NatsStore.open(url)
    owner = await created(store)
    kept = own_server.folder.with_name(own_server.folder.name + "-kept")
    own_server.kill()
    shutil.copytree(own_server.folder / "data", kept)
    await asyncio.to_thread(own_server.start_again)
    assert await submit(store, owner.step(b"gone")) == [None]
    own_server.kill()
    shutil.rmtree(own_server.folder / "data")
    kept.rename(own_server.folder / "data")
    await asyncio.to_thread(own_server.start_again)
    with pytest.raises(Broken, match="are gone"):
        await store.load(SESSION)
    assert [type(error) for error in await submit(store, owner.step(b"next"))] == [Broken]
    await store.close()
    again = await NatsStore.open(url)
    loaded = await again.load(SESSION)
    assert loaded is not None
    assert (loaded.version, loaded.suspect is None) == (0, False)
    await again.close()


async def test_nodes_find_each_other_again_when_the_server_was_away(
    own_server: NatsServer,
) -> None:
    clock = FakeClock()
    heard: list[bytes] = []
    came = asyncio.Event()

    def hear(message: bytes) -> None:
        heard.append(message)
        came.set()

    one, other = NatsCluster(own_server.url, clock), NatsCluster(own_server.url, clock)
    await one.join(NodeCard(id="one"), 60_000, hear)
    await other.join(NodeCard(id="other"), 60_000, heard.append)
    own_server.kill()
    with pytest.raises(Unavailable):
        await one.announce(NodeCard(id="one"))
    one.send("other", b"lost")
    await asyncio.to_thread(own_server.start_again)
    async with asyncio.timeout(10):
        while not came.is_set():
            other.send("one", b"hello again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(came.wait(), 0.05)
    assert set(heard) == {b"hello again"}
    assert [card.id for card in await one.nodes()] == ["one", "other"]
    await one.leave()
    await other.leave()
