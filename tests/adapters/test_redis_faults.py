"""What becomes of a store when its Redis dies, freezes, is emptied, is full, or is another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any, Self

import pytest

from perdure.adapters.stores.redis import RedisStore
from perdure.core.errors import Broken, Conflict, StoreError, StoreRefused, Unavailable
from perdure.core.ids import SessionId
from perdure.ports.session_store import InboxEntry, NotClaimed
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import (
    SESSION,
    Claimant,
    claim,
    created,
    entry,
    outcomes,
    submit,
)
from perdure.testing.nodes.proxy import Proxy
from perdure.testing.servers.redis import RedisServer
from tests.adapters.redis_servers import started

SYNCED = {"appendonly": "yes", "appendfsync": "always"}
PATIENCE_SECONDS = 0.6
COMES_BACK_SECONDS_MAX = 5.0
MET_SECONDS_MAX = 20.0


@pytest.fixture
def synced() -> Iterator[RedisServer]:
    """A server of one's own that syncs every write."""
    with started(**SYNCED) as server:
        yield server


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(url, **{"patience_seconds": PATIENCE_SECONDS, **options})
    try:
        yield store
    finally:
        await store.close()


class Detour:
    """A way to the server on which what is held arrives later, also when its sender has gone."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._to = port
        self._held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]] = []
        self._holding: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()

    def hold(self) -> None:
        """Hold what comes on the connections that are there now."""
        self._holding = set(self._open)

    async def let_go(self) -> bytes:
        """Let what was held arrive, and return what the server says to it."""
        said = []
        for reader, writer, data in self._held:
            writer.write(data)
            said.append(await asyncio.wait_for(reader.read(1 << 16), MET_SECONDS_MAX))
        return b"".join(said)

    async def _pass(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection("127.0.0.1", self._to)
        self._open |= {server, back}
        answering = asyncio.ensure_future(self._answer(answers, server, back))
        while data := await client.read(1 << 16):
            if server in self._holding:
                answering.cancel()
                self._held.append((answers, server, data))
            else:
                server.write(data)
        if server not in self._holding:
            server.close()

    async def _answer(
        self,
        answers: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        while data := await answers.read(1 << 16):
            back.write(data)
        back.close()


class Worker:
    """An owner that commits one step after the other, and notes what was acknowledged."""

    def __init__(self, store: RedisStore, claimant: Claimant) -> None:
        self.claimant = claimant
        self.acknowledged = claimant.version
        self.error: StoreError | None = None
        self.stopping = False
        self.idle = asyncio.Event()
        self._store = store

    def go_on(self, error: StoreError | None = None) -> None:
        """Commit the next step."""
        if error is not None or self.stopping:
            self.error = error
            self.idle.set()
            return
        step = self.claimant.step(b"x" * 100, b"y" * 100)
        self._store.commit(step, lambda error: self.acknowledge(step.expected + 2, error))

    def acknowledge(self, version: int, error: StoreError | None) -> None:
        """Note that a step is written, and go on."""
        if error is None:
            self.acknowledged = version
        self.go_on(error)


async def busy(store: RedisStore, count: int) -> list[Worker]:
    """Have so many sessions written to."""
    sessions = [SESSION._replace(key=str(n)) for n in range(count)]
    await store.renew("node", 600_000)
    claimants = await asyncio.gather(*(one_more(store, session) for session in sessions))
    workers = [Worker(store, claimant) for claimant in claimants]
    for worker in workers:
        worker.go_on()
    return workers


async def one_more(store: RedisStore, session: SessionId) -> Claimant:
    """Make a session, if there is none, and claim it."""
    await store.accept(entry("first", session=session))
    return await claim(store, session)


async def stop(workers: list[Worker]) -> None:
    """Have workers come to rest."""
    for worker in workers:
        worker.stopping = True
    await asyncio.gather(*(worker.idle.wait() for worker in workers))


async def some_batches(store: RedisStore, count: int = 5) -> None:
    """Wait until so many more batches were written."""
    until = int(store.facts()["batches"] or 0) + count
    await met(lambda: int(store.facts()["batches"] or 0) >= until)


async def met(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + MET_SECONDS_MAX
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def versions(store: RedisStore, workers: list[Worker]) -> list[int]:
    """Return what the store has of the workers' sessions."""
    found = await asyncio.gather(*(store.load(worker.claimant.session) for worker in workers))
    return [0 if one is None else one.version for one in found]


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("settings", "query", "durability"),
    [
        ({}, "", "memory"),
        ({"appendonly": "yes", "appendfsync": "no"}, "", "os"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "", "os"),
        (SYNCED, "", "fsynced"),
        ({**SYNCED, "no-appendfsync-on-rewrite": "yes"}, "", "os"),
        (SYNCED, "?replicas=1", "replicated(2)"),
    ],
)
async def test_durability_is_what_the_settings_give(
    settings: dict[str, str], query: str, durability: str
) -> None:
    with started(**settings) as server, server.replica():
        async with opened(server.url + query, patience_seconds=20) as store:
            assert (await store.accept(entry("m1"))).durability == store.durability == durability


@pytest.mark.parametrize(
    ("settings", "query", "said"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, "", "maxmemory-policy is allkeys-lru"),
        ({"maxmemory-policy": "volatile-ttl"}, "", "set it to noeviction"),
        ({"appendonly": "no"}, "?wait_aof=1", "wait"),
    ],
)
async def test_a_server_that_cannot_be_trusted_is_refused(
    settings: dict[str, str], query: str, said: str
) -> None:
    with started(**settings) as server:
        with pytest.raises(StoreRefused, match=said):
            await RedisStore.open(server.url + query)
        assert server.ask("DBSIZE") == b":0\r\n"


async def test_a_server_can_be_asked_to_sync_whatever_its_settings() -> None:
    with started(appendonly="yes", appendfsync="everysec") as server:
        url = f"{server.url}?wait_aof=1"
        if server.version < (7, 2):
            with pytest.raises(StoreRefused, match="WAITAOF, which came with 7.2"):
                await RedisStore.open(url)
            return
        async with opened(url) as store:
            owner = await created(store)
            assert store.durability == "fsynced"
            assert await submit(store, owner.step(b"event")) == [None]


async def test_a_password_is_in_no_error() -> None:
    with started(requirepass="hunter2", **SYNCED) as server:
        async with opened(server.url) as store:
            assert "hunter2" not in str(store.facts())
            server.kill()
            with pytest.raises(Unavailable) as lost:
                await store.accept(entry("m1"))
        with pytest.raises(Unavailable) as absent:
            await RedisStore.open(server.url)
        server.start_again()
        with pytest.raises(Unavailable) as wrong:
            await RedisStore.open(server.url.replace("hunter2", "hunter3"))
    for error in (lost, absent, wrong):
        assert "hunter" not in str(error.value)
        assert f"127.0.0.1:{server.port}" in str(error.value)


async def test_a_replica_is_not_opened() -> None:
    refused = pytest.raises(Unavailable, match="only a primary is written to")
    with started() as server, server.replica() as replica, refused:
        await RedisStore.open(replica.url, patience_seconds=0.1)


# --------------------------------------------------------------------------- what dies and comes


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed_under_load(
    synced: RedisServer,
) -> None:
    async with opened(synced.url, patience_seconds=20) as store:
        workers = await busy(store, 50)
        for _ in range(3):
            await some_batches(store)
            await asyncio.to_thread(synced.kill)
            at_death = [worker.acknowledged for worker in workers]
            await asyncio.to_thread(synced.start_again)
            found = await versions(store, workers)
            assert all(now >= then for now, then in zip(found, at_death, strict=True))
        await some_batches(store)
        await stop(workers)
        assert [worker.error for worker in workers] == [None] * 50
        assert await versions(store, workers) == [worker.acknowledged for worker in workers]
        loaded = await store.load(workers[0].claimant.session)
        assert loaded is not None
        assert loaded.suspect is None


async def test_steps_are_written_once_however_often_the_connection_breaks() -> None:
    with started() as server:
        async with opened(server.url, patience_seconds=20) as store:
            workers = await busy(store, 50)
            for _ in range(20):
                await some_batches(store, 2)
                await asyncio.to_thread(server.hang_up)
            await stop(workers)
            assert [worker.error for worker in workers] == [None] * 50
            assert await versions(store, workers) == [worker.acknowledged for worker in workers]
            assert int(store.facts()["connections"] or 0) > 20


async def test_a_server_that_is_gone_is_unavailable_and_is_found_again(
    synced: RedisServer,
) -> None:
    async with opened(synced.url) as store:
        owner = await created(store)
        synced.kill()
        assert await outcomes(store, owner.step(b"lost")) == ["Unavailable"]
        with pytest.raises(Unavailable, match="Connect"):
            await store.load(SESSION)
        synced.start_again()
        began = time.monotonic()
        assert await store.load(SESSION) is not None
        assert time.monotonic() - began < COMES_BACK_SECONDS_MAX
        heir = await claim(store, nonce="again")
        assert await outcomes(store, heir.step(b"event")) == ["written"]


async def test_what_was_not_answered_in_time_is_not_done_after_what_came_later(
    synced: RedisServer,
) -> None:
    async with opened(synced.url) as store:
        await store.accept(entry("m1"))
        synced.freeze()
        with pytest.raises(Unavailable, match="no answer within"):
            await store.release(SESSION, None, quarantine="much later")
        synced.thaw()
        await store.release(SESSION, None)
        assert not isinstance(await store.claim(SESSION, "node", "n"), NotClaimed)


async def test_a_batch_that_arrives_after_later_ones_is_not_executed() -> None:
    """The network had it all the time: it comes on a connection that was given up long ago."""
    with started() as server:
        async with (
            Detour(server.port) as detour,
            opened(f"redis://127.0.0.1:{detour.port}/0") as store,
        ):
            await store.accept(entry("m1"))
            detour.hold()
            with pytest.raises(Unavailable, match="no answer within"):
                await store.release(SESSION, None, quarantine="much later")
            await store.release(SESSION, None)
            said = await detour.let_go()
            assert b"PERDURELATE" in said
            assert not isinstance(await store.claim(SESSION, "node", "n"), NotClaimed)


async def test_a_lease_that_ran_out_while_the_server_was_frozen_is_over(
    synced: RedisServer,
) -> None:
    async with opened(synced.url) as store:
        await store.accept(entry("m1"))
        assert await store.renew("node", 500)
        owner = await claim(store)
        synced.freeze()
        assert await outcomes(store, owner.step(b"into the ice")) == ["Unavailable"]
        synced.thaw()
        assert not await store.renew("node", 500)
        assert await outcomes(store, owner.step(b"too late")) == ["Fenced"]


async def test_a_store_waits_for_a_script_of_somebody_else_to_end() -> None:
    with started(lua_time_limit="50") as server:
        async with opened(server.url, patience_seconds=20) as store:
            await store.accept(entry("m1"))
            loop = asyncio.get_running_loop()
            endless = loop.run_in_executor(None, server.ask, "EVAL", "while true do end", "0")
            await met(lambda: b"BUSY" in server.ask("PING"))
            accepted = asyncio.ensure_future(store.accept(entry("m2")))
            await asyncio.sleep(0.1)
            assert not accepted.done()
            await asyncio.to_thread(server.ask, "SCRIPT", "KILL")
            assert not (await accepted).duplicate
            await endless


async def test_a_store_waits_for_a_server_to_load_its_file(synced: RedisServer) -> None:
    async with opened(synced.url, patience_seconds=20) as store:
        await asyncio.gather(*(one_more(store, SESSION._replace(key=str(n))) for n in range(9)))
        synced.ask("BGREWRITEAOF")
        await met(lambda: b"aof_rewrite_in_progress:0" in synced.ask("INFO", "persistence"))
        synced.kill()
        starting = asyncio.ensure_future(
            asyncio.to_thread(synced.start_again, key_load_delay="20000")
        )
        accepting = asyncio.ensure_future(store.accept(entry("m2")))
        seen = set[bytes]()
        while not starting.done():
            with suppress(OSError):
                seen.add((await asyncio.to_thread(synced.ask, "PING")).split()[0])
        assert b"-LOADING" in seen
        assert not (await accepting).duplicate
        await starting


async def test_a_server_that_lost_its_settings_is_not_written_to(synced: RedisServer) -> None:
    async with opened(synced.url) as store:
        owner = await created(store)
        synced.configure("appendfsync", "no")
        synced.hang_up()
        (error,) = await submit(store, owner.step(b"event"))
        assert "gives os now, and gave fsynced when it was opened" in str(error)
        synced.configure("appendfsync", "always")
        assert not (await store.accept(entry("m2"))).duplicate


async def test_what_a_server_gives_is_looked_up_with_every_renewal(synced: RedisServer) -> None:
    async with opened(synced.url) as store:
        owner = await created(store)
        assert await store.renew("node", 60_000)
        synced.configure("appendfsync", "no")
        with pytest.raises(Unavailable, match="gives os now, and gave fsynced when it was opened"):
            await store.renew("node", 60_000)
        assert await outcomes(store, owner.step(b"event")) == ["Unavailable"]
        synced.configure("appendfsync", "always")
        assert await store.renew("node", 60_000)
        heir = await claim(store, nonce="again")
        assert await outcomes(store, heir.step(b"event")) == ["written"]


# ------------------------------------------------------------------------- what is full or empty


async def test_a_full_memory_refuses_and_leaves_nothing_half_written() -> None:
    with started() as server:
        async with opened(server.url) as store:
            owner = await created(store)
            step = owner.step(b"x" * 1_000, b"y", wake_at=5, blobs=(("address", b"content"),))
            before = await store.load(SESSION), await store.due(1 << 50, 9)
            server.configure("maxmemory", "1")
            (error,) = await submit(store, step)
            assert type(error) is Unavailable
            assert "its memory is full" in str(error)
            assert "did nothing" in str(error)
            with pytest.raises(Unavailable, match="memory is full"):
                await store.accept(entry("m2"))
            assert (await store.load(SESSION), await store.due(1 << 50, 9)) == before
            assert await store.blob("address") is None
            server.configure("maxmemory", "0")
            assert await outcomes(store, step) == ["written"]
            assert await store.blob("address") == b"content"


async def test_a_server_that_was_emptied_is_not_begun_anew(synced: RedisServer) -> None:
    async with opened(synced.url) as store:
        owner = await created(store)
        synced.ask("FLUSHALL")
        (error,) = await submit(store, owner.step(b"event"))
        assert type(error) is Broken
        assert "it was emptied" in str(error)
        for asked in (store.load(SESSION), store.accept(entry("m2")), store.renew("node", 1)):
            with pytest.raises(Broken, match="emptied"):
                await asked
    assert synced.ask("DBSIZE") == b":0\r\n"


async def test_a_server_that_came_back_empty_is_not_begun_anew() -> None:
    with started() as server:
        async with opened(server.url, patience_seconds=20) as store:
            await created(store)
            server.kill()
            server.start_again(empty=True)
            with pytest.raises(Broken, match="another took its place"):
                await store.load(SESSION)
            with pytest.raises(Broken):
                await store.accept(entry("m2"))


# ------------------------------------------------------------------------ what is another server


async def test_sessions_are_suspect_after_a_failover_to_a_replica_that_was_behind() -> None:
    with started(**SYNCED) as primary, primary.replica(**SYNCED) as replica:
        async with opened(primary.url, patience_seconds=20) as store:
            owner = await created(store)
            assert await submit(store, owner.step(b"one")) == [None]
            await replicated(primary, replica)
            replica.promote()
            assert await submit(store, owner.step(b"two"), owner.step(b"three")) == [None] * 2
            primary.kill()
            replica.take_place_of(primary)
            (error,) = await submit(store, owner.step(b"four"))
            assert isinstance(error, Conflict)
            loaded = await store.load(SESSION)
            assert loaded is not None
            assert (loaded.version, loaded.suspect is None) == (1, False)
            heir = await claim(store, nonce="heir")
            assert heir.loaded.suspect == loaded.suspect
            assert await submit(store, heir.step(b"another two")) == [None]
            loaded = await store.load(SESSION)
            assert loaded is not None
            assert loaded.suspect is None


async def test_a_loss_that_nothing_but_the_writer_can_know_of_makes_sessions_suspect() -> None:
    """The disk of a server without replicas is put back to an earlier state."""
    with started(**SYNCED) as server:
        async with opened(server.url, patience_seconds=20) as store:
            await created(store)
            earlier = server.disk()
            await created(store, SESSION._replace(key="later"))
            server.kill()
            server.start_again(disk=earlier)
            await store.renew("node", 1)
            loaded = await store.load(SESSION)
            assert loaded is not None
            assert loaded.suspect is not None


async def test_after_a_loss_no_session_is_left_with_an_owner_who_does_not_know() -> None:
    """The server knows a claim that its owner gave up since: nobody else could have it."""
    with started(**SYNCED) as server:
        async with opened(server.url, patience_seconds=20) as store:
            assert await store.renew("node", 60_000)
            await store.accept(entry("m1"))
            owner = await claim(store)
            earlier = server.disk()
            await store.release(SESSION, owner.token)
            await asyncio.gather(*(one_more(store, SESSION._replace(key=str(n))) for n in range(9)))
            server.kill()
            server.start_again(disk=earlier)
            answers = [await store.renew("node", 60_000) for _ in range(3)]
            assert (answers.count(False), answers[-1]) == (1, True)
            assert (await store.due(1 << 50, 10))[0] == [SESSION]


async def test_a_loss_is_told_until_it_is_heard() -> None:
    """The answer that said so is lost, and the batch after it finds nothing missing."""
    with started() as server:
        async with (
            Proxy("127.0.0.1", server.port) as proxy,
            opened(f"redis://127.0.0.1:{proxy.port}/0") as store,
        ):
            await created(store)
            await of_all_lanes(store, "told")
            server.ask("EVAL", COPY_MARKS, "0", "", "kept ")
            await of_all_lanes(store, "lost")
            server.ask("EVAL", COPY_MARKS, "0", "kept ", "")
            proxy.answers.hold()
            assert {type(told) for told in await of_all_lanes(store, "unheard")} == {Unavailable}
            proxy.heal()
            answers = [await store.renew("node", 60_000) for _ in range(4)]
            assert (answers.count(False), answers[-1]) == (1, True)
            loaded = await store.load(SESSION)
            assert loaded is not None
            assert loaded.suspect is not None


COPY_MARKS = """
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '{perdure}:writer:*')) do
  redis.call('COPY', key, ARGV[2] .. string.sub(key, #ARGV[1] + 1), 'REPLACE')
end
"""


async def of_all_lanes(store: RedisStore, name: str) -> list[Any]:
    """Have something accepted on each line, and return what was told."""
    keys = (SESSION._replace(key=str(n)) for n in range(1_000))
    sessions = {store._lane(session): session for session in keys}.values()
    accepted = (store.accept(entry(name, session=session)) for session in sessions)
    return await asyncio.gather(*accepted, return_exceptions=True)


async def test_a_store_that_was_set_back_to_before_a_distrust_is_distrusted_once() -> None:
    """Its writers were told of an incarnation that the server does not know of."""
    with started(**SYNCED) as server:
        async with opened(server.url, clock=FakeClock()) as store:
            await created(store)
            earlier = server.disk()
            for _ in range(2):
                await store.distrust()
            await of_all_lanes(store, "told")
            server.kill()
            server.start_again(disk=earlier)
            owner = await claim(store, nonce="again")
            assert owner.loaded.suspect is not None
            assert await submit(store, owner.step(b"event")) == [None]
            await of_all_lanes(store, "later")
            loaded = await store.load(SESSION)
            assert loaded is not None
            assert loaded.suspect is None


async def test_a_loss_is_noticed_once_and_not_again_by_all_who_took_part() -> None:
    with started(**SYNCED) as server:
        async with opened(server.url) as first, opened(server.url) as second:
            await asyncio.gather(*(one_more(first, SESSION._replace(key=str(n))) for n in range(9)))
            earlier = server.disk()
            others = [SESSION._replace(key=str(n)) for n in range(10, 30)]
            for store in (first, second):
                await asyncio.gather(*(one_more(store, session) for session in others))
            server.kill()
            server.start_again(disk=earlier)
            owner = await claim(first, SESSION._replace(key="1"))
            assert owner.loaded.suspect is not None
            assert await submit(first, owner.step(b"event")) == [None]
            for store in (second, first):
                await asyncio.gather(*(one_more(store, session) for session in others))
            loaded = await first.load(owner.session)
            assert loaded is not None
            assert loaded.suspect is None


@pytest.mark.parametrize(
    ("settings", "followed", "suspect"),
    [
        (SYNCED, False, False),
        (SYNCED, True, True),
        ({"appendonly": "yes", "appendfsync": "everysec"}, False, True),
    ],
)
async def test_whether_a_restart_makes_sessions_suspect(
    settings: dict[str, str], followed: bool, suspect: bool
) -> None:
    """A server that syncs has everything, if it cannot be a replica in the place of another."""
    with started(**settings) as server:
        async with opened(server.url) as store:
            with server.replica() if followed else nullcontext():
                await created(store)
        server.kill()
        server.start_again()
        assert await is_suspect(server) == suspect


async def test_a_replica_that_was_promoted_makes_sessions_suspect_to_those_who_come_anew() -> None:
    with started(**SYNCED) as primary:
        async with opened(primary.url) as store:
            await created(store)
        with primary.replica(**SYNCED) as replica:
            primary.kill()
            replica.promote()
            assert await is_suspect(replica)


async def is_suspect(server: RedisServer) -> bool:
    """Say whether the session is suspect to one who opens the store now and writes to it."""
    async with opened(server.url) as store:
        await store.renew("another node", 1)
        loaded = await store.load(SESSION)
        assert loaded is not None
        return loaded.suspect is not None


async def test_what_too_few_replicas_have_is_not_reported_as_written() -> None:
    with started() as server, server.replica() as replica:
        async with opened(f"{server.url}?replicas=1", patience_seconds=1.5) as store:
            owner = await created(store)
            replica.freeze()
            (error,) = await submit(store, owner.step(b"event"))
            assert type(error) is Unavailable
            assert "0 of 1 replicas have the write" in str(error)
            with pytest.raises(Unavailable, match="0 of 1 replicas"):
                await store.accept(InboxEntry("m2", SESSION, b"{}", 1))
            replica.thaw()
            heir = await claim(store, nonce="again")
            assert heir.loaded.version == 1
            assert await outcomes(store, heir.step(b"event")) == ["written"]


async def test_a_repeat_waits_for_replicas_as_the_first_time() -> None:
    """The connection that wrote is gone; the one that asks again has to wait for the same."""
    with started() as server, server.replica() as replica:
        async with opened(f"{server.url}?replicas=1", patience_seconds=3) as store:
            owner = await created(store)
            replica.freeze()
            committed = asyncio.ensure_future(submit(store, owner.step(b"event")))
            await asyncio.sleep(0.2)
            for _ in range(3):
                await asyncio.to_thread(server.hang_up)
                await asyncio.sleep(0.2)
            assert not committed.done()
            replica.thaw()
            assert await committed == [None]


async def replicated(primary: RedisServer, replica: RedisServer) -> None:
    """Wait until a replica has what its primary has."""

    def offset(server: RedisServer, field: str) -> str:
        lines = server.ask("INFO", "replication").decode().splitlines()
        return next(line.split(":")[1] for line in lines if line.startswith(field))

    await met(lambda: offset(primary, "master_repl_offset") == offset(replica, "slave_repl_offset"))
