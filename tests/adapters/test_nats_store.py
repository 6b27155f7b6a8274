"""What only a store in JetStream does: several nodes, the server's clock, and its streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from perdure.adapters.nats import connection
from perdure.adapters.nats.connection import Connection
from perdure.adapters.nats.log import Log
from perdure.adapters.nats.place import Place
from perdure.adapters.nats.streams import durability
from perdure.adapters.stores.nats import NatsStore, control
from perdure.core.errors import Broken, Fenced, InvalidInput, StoreRefused, Unavailable
from perdure.core.runs import RunRow
from perdure.ports.session_store import Claimed, NotClaimed, RunQuery
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import (
    FAR,
    SESSION,
    Claimant,
    claim,
    created,
    entry,
    outcomes,
    run_row,
    submit,
)
from perdure.testing.servers.nats import NatsServer
from tests.adapters.nats_server import fresh, fresh_name, nats_server

__all__ = ["nats_server"]

Node = Callable[[], Awaitable[NatsStore]]
LEASE_MS = 400


@pytest.fixture
async def node(nats_server: NatsServer) -> AsyncIterator[Node]:
    """Return what opens one more node of one store, by the server's clock."""
    url = fresh(nats_server, shards=2)
    async with AsyncExitStack() as opened:

        async def open_node() -> NatsStore:
            store = await NatsStore.open(url)
            opened.push_async_callback(store.close)
            return store

        yield open_node


async def test_what_one_node_was_told_all_nodes_know(node: Node) -> None:
    one, other = await node(), await node()
    assert one.identity == other.identity
    await one.accept(entry("m1"), run_row("m1"))
    assert (await other.accept(entry("m1"))).duplicate
    assert (await other.due(FAR, 10))[0] == [SESSION]
    await one.renew("one", 60_000)
    owner = await claim(one, owner="one")
    assert await other.claim(SESSION, "other", "o") == NotClaimed("held", "one")
    assert await submit(one, owner.step(b"1", consumed=("m1",))) == [None]
    assert [record.body for record in await other.read(SESSION, 0, 9)] == [b"1"]
    assert await one.unread("one", 9) == []
    await other.accept(entry("m2"))
    assert await one.unread("one", 9) == [SESSION]
    assert [row.id for row in await other.list(RunQuery(tenant="tenant"))] == ["m1"]


async def test_a_claim_of_an_earlier_term_is_void_for_nodes_that_come_later(node: Node) -> None:
    """The stream keeps two renewals of an owner: the one that began his term may be gone."""
    one = await node()
    await one.accept(entry("m1"))
    await one.renew("one", 0)
    owner = await claim(one, owner="one")
    assert not await one.renew("one", 60_000)
    assert [await one.renew("one", 60_000) for _ in range(3)] == [True, True, True]
    other = await node()
    for store in (one, other):
        assert (await store.due(FAR, 10))[0] == [SESSION]
        assert await outcomes(store, owner.step(b"late")) == ["Fenced"]
    assert isinstance(await other.claim(SESSION, "other", "o"), Claimed)


@pytest.mark.parametrize("older", [False, True])
async def test_a_node_that_was_deaf_voids_nothing_of_those_who_live(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """It did not hear how a lease was prolonged, and the stream does not have it any more.

    An older version did not say after which renewal its own came.
    """
    if older:
        whole = control.encode
        monkeypatch.setattr(
            control, "encode", lambda change: json.dumps(json.loads(whole(change))[:5]).encode()
        )
    url, clock = fresh(nats_server), FakeClock()
    async with AsyncExitStack() as opened:
        one, other = [await NatsStore.open(url, clock) for _ in range(2)]
        for store in (one, other):
            opened.push_async_callback(store.close)
        await one.accept(entry("m1"))
        await one.renew("one", 3_000)
        owner = await claim(one, owner="one")
        await other.due(FAR, 10)
        deafen(other._control.log)
        for _ in range(6):
            clock.advance(1_000)
            assert await one.renew("one", 3_000)
        other._control.log._hear_again()
        assert (await other.due(FAR, 10))[0] == []
        assert await other.claim(SESSION, "other", "o") == NotClaimed("held", "one")
        for store in (one, other):
            assert await outcomes(store, owner.step(b"event")) == ["written"]
        deafen(other._control.log)
        clock.advance(3_000)
        assert not await one.renew("one", 3_000)
        assert [await one.renew("one", 3_000) for _ in range(3)] == [True, True, True]
        other._control.log._hear_again()
        assert (await other.due(FAR, 10))[0] == [SESSION]
        assert await outcomes(other, owner.step(b"late")) == ["Fenced"]


async def test_a_distrust_is_known_to_every_claim_and_load_after_it(node: Node) -> None:
    """Also of a session that nobody owns, by a node that has not heard of it yet."""
    one, other = await node(), await node()
    await one.accept(entry("m1"))
    known = 0
    for read in (lambda: other.load(SESSION), lambda: claim(other)):
        deafen(other._control.log)
        await one.distrust()
        reading = asyncio.ensure_future(read())
        async with asyncio.timeout(10):
            while not other._control.log._sought and not reading.done():
                await one.load(SESSION)
        other._control.log._hear_again()
        found = await reading
        loaded = found.loaded if isinstance(found, Claimant) else found
        assert loaded is not None
        assert (loaded.suspect or 0) > known
        known = loaded.suspect or 0


def deafen(log: Log) -> None:
    """Have a log pass over all that it hears, until it listens anew."""
    log._round += 1


async def test_a_lease_ends_by_the_servers_clock_and_not_before(node: Node) -> None:
    one, other = await node(), await node()
    loop = asyncio.get_running_loop()
    await one.renew("one", LEASE_MS)
    renewed_at = loop.time()
    await one.accept(entry("m1"))
    owner = await claim(one, owner="one")
    while isinstance(found := await other.claim(SESSION, "other", "o"), NotClaimed):
        assert found == NotClaimed("held", "one")
    assert loop.time() - renewed_at > LEASE_MS / 1000 - 0.1
    assert await outcomes(one, owner.step(b"late")) == ["Fenced"]
    assert not await one.renew("one", LEASE_MS)
    assert await outcomes(other, Claimant(found).step(b"heir")) == ["written"]
    with pytest.raises(Fenced):
        await one.release(SESSION, owner.token)


async def test_a_renewal_in_time_is_seen_by_whoever_wants_to_take_over(node: Node) -> None:
    one, other = await node(), await node()
    await one.renew("one", LEASE_MS)
    owner = await created(one, owner="one")
    for _ in range(6):
        await asyncio.sleep(LEASE_MS / 2_000)
        assert await one.renew("one", LEASE_MS)
        assert await other.claim(SESSION, "other", "o") == NotClaimed("held", "one")
    assert await outcomes(one, owner.step(b"event")) == ["written"]


async def test_of_many_nodes_that_claim_at_once_one_wins(node: Node) -> None:
    nodes = [await node() for _ in range(4)]
    for n, store in enumerate(nodes):
        await store.renew(f"n{n}", 60_000)
    for attempt in range(10):
        session = SESSION._replace(key=str(attempt))
        await nodes[0].accept(entry("m1", session=session))
        found = await asyncio.gather(
            *(store.claim(session, f"n{n}", f"n{n}") for n, store in enumerate(nodes))
        )
        (winner,) = (one for one in found if isinstance(one, Claimed))
        losers = {one for one in found if isinstance(one, NotClaimed)}
        assert losers == {NotClaimed("held", winner.token.nonce)}


async def test_an_owner_and_its_heir_never_both_write(node: Node) -> None:
    one, other = await node(), await node()
    await one.accept(entry("m1"))
    for n in range(20):
        old = await claim(one, owner="one", nonce=f"old{n}")
        heir, told = await asyncio.gather(
            claim(other, owner="other", nonce=f"new{n}"),
            outcomes(one, *(old.step(b"old") for _ in range(5))),
        )
        assert told == sorted(told, reverse=True)
        assert heir.version == old.loaded.version + told.count("written")
        await other.release(SESSION, heir.token)


async def test_a_stolen_session_takes_nothing_from_the_others_of_its_batch(node: Node) -> None:
    one, other = await node(), await node()
    sessions = [SESSION._replace(key=str(n)) for n in range(20)]
    for session in sessions:
        await one.accept(entry("m1", session=session))
    for attempt in range(10):
        owners = [await claim(one, session, "one", f"o{attempt}") for session in sessions]
        heir, *told = await asyncio.gather(
            claim(other, sessions[attempt], "other", f"h{attempt}"),
            *(outcomes(one, owner.step(b"event")) for owner in owners),
        )
        mine = told.pop(attempt)
        assert told == [["written"]] * (len(sessions) - 1)
        assert (heir.version, mine) in (
            (owners[attempt].loaded.version, ["Fenced"]),
            (owners[attempt].version, ["written"]),
        )
        for owner in owners:
            here, there = await one.load(owner.session), await other.load(owner.session)
            assert here == there


async def test_a_commit_of_a_thousand_runs_is_one_message(node: Node) -> None:
    one, other = await node(), await node()
    names = [f"{n:036d}" for n in range(900)]
    await asyncio.gather(*(one.accept(entry(name), run_row(name)) for name in names))
    owner = await claim(one)
    rows = tuple(
        RunRow(id=name, session=SESSION, status="cancelled", created_at=1) for name in names
    )
    refusals = tuple((name, b"why") for name in names)
    step = owner.step(b"all", consumed=tuple(names), rows=rows, refusals=refusals)
    assert await submit(one, step) == [None]
    found = await other.list(RunQuery(tenant="tenant", status="cancelled", limit=1_000))
    assert len(found) == len(names)
    settled = await other.settled(SESSION, names[-1])
    assert settled is not None
    assert settled.refusal == b"why"
    assert (await node()).facts()["sessions"] == 1


async def test_steps_that_wait_go_into_one_message(node: Node) -> None:
    store = await node()
    owner = await created(store)
    before = await messages(store)
    assert await submit(store, *(owner.step(b"%d" % n) for n in range(60))) == [None] * 60
    assert await messages(store) - before <= 2


async def messages(store: NatsStore) -> int:
    """Return how many messages all shards have."""
    return sum(shard.log.folded for shard in store._shards)


async def test_a_closed_store_says_so(node: Node) -> None:
    store = await node()
    owner = await created(store)
    await store.close()
    await store.close()
    with pytest.raises(Broken):
        await store.load(SESSION)
    assert await outcomes(store, owner.step(b"event")) == ["Broken"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"storage": "memory"}, "memory"), ({"storage": "file"}, "os")],
)
async def test_the_durability_is_what_the_streams_are_set_to(
    nats_server: NatsServer, settings: dict[str, str], expected: str
) -> None:
    url = fresh(nats_server, **settings)
    for asked in (url, url.replace("=file", "=memory")):
        store = await NatsStore.open(asked)
        assert store.durability == expected
        await store.close()


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [((1, 1), "os"), ((3, 3), "replicated(2)"), ((5, 5), "replicated(3)"), ((3, 1), "os")],
)
def test_a_message_is_acknowledged_when_most_replicas_have_it(
    replicas: tuple[int, ...], expected: str
) -> None:
    assert durability([{"num_replicas": n, "storage": "file"} for n in replicas]) == expected


async def test_the_number_of_shards_never_changes(nats_server: NatsServer) -> None:
    url = fresh(nats_server, shards=3)
    await (await NatsStore.open(url)).close()
    with pytest.raises(InvalidInput, match="the store .* has 3"):
        await NatsStore.open(url.replace("shards=3", "shards=4"))
    again = await NatsStore.open(url.replace("&shards=3", ""))
    assert again.facts()["shards"] == 3
    await again.close()


@pytest.mark.parametrize("shard", [0, 1])
async def test_a_stream_that_may_forget_is_refused(nats_server: NatsServer, shard: int) -> None:
    name = fresh_name()
    stream, url = f"{name}_{shard}", fresh(nats_server, name=name, shards=2)
    direct = await Connection.open(Place.parse(nats_server.url))
    await direct.api(
        f"STREAM.CREATE.{stream}", name=stream, subjects=[f"{name}.{shard}.>"], max_msgs=10
    )
    await direct.close()
    with pytest.raises(StoreRefused, match=f"{stream} has max_msgs 10"):
        await NatsStore.open(url)


async def test_a_server_that_takes_only_small_messages_is_refused(
    nats_server: NatsServer,
) -> None:
    said = pytest.raises(StoreRefused, match="set max_payload to 1048576 or more")
    with NatsServer.start("max_payload: 4096") as small, said:
        await NatsStore.open(small.url)


async def test_where_nobody_answers_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS_MAX", 0.3)
    with pytest.raises(Unavailable, match="cannot be reached") as refused:
        await NatsStore.open("nats://me:secret@127.0.0.1:9")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h", "begins with nats://"),
        ("nats://", "names hosts"),
        ("nats://h:x", "names hosts"),
        ("nats://h?color=red", "'color' is no setting"),
        ("nats://h?shards=0", "a number from 1 to 256"),
        ("nats://h?replicas=x", "a number from 1 to 5"),
        ("nats://h?storage=tape", "expected file or memory"),
        ("nats://h?name=a.b", "letters, digits"),
    ],
)
async def test_a_url_that_says_something_wrong_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        await NatsStore.open(url)


def test_a_place_is_shown_without_its_password() -> None:
    place = Place.parse("nats://me:secret@a,b:5/?name=x")
    assert place.servers == ["nats://me:secret@a:4222", "nats://me:secret@b:5"]
    assert place.shown == "nats://a:4222,b:5"
