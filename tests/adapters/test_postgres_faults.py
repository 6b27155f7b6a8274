"""What becomes of a store when connections, backends and servers die: nothing acknowledged is lost.

Whoever is told that a step is written finds it in the log, and nobody is told that one is not
which is there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from perdure.core.errors import StoreRefused, Unavailable
from perdure.testing.conformance.claimant import (
    FAR,
    SESSION,
    claim,
    created,
    entry,
    outcomes,
    submit,
)
from perdure.testing.nodes.proxy import CHUNK_BYTES, Direction, Proxy
from perdure.testing.servers.postgres import PostgresServer
from tests.adapters.postgres_faults import (
    MET_SECONDS_MAX,
    Wire,
    at_work,
    check,
    met,
    opened,
    progress,
)

OWNERS = 40


class OneAnswer(Direction):
    """Lets one answer more through once there shall be a `last` one, and holds what comes then."""

    last = False

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes until one end is closed."""
        while data := await reader.read(CHUNK_BYTES):
            await self._open.wait()
            writer.write(data)
            if self.last:
                self.last = False
                self.hold()


COMES_BACK_SECONDS_MAX = 5.0
TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'perdure'
"""
CONNECTED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'perdure'
"""


class LateRequest(Direction):
    """Holds one request that is `longer_than` so many bytes, and nothing else, until it heals."""

    def __init__(self) -> None:
        super().__init__()
        self.hold()
        self.longer_than = self.caught = self.under_way = 0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes until one end is closed."""
        catches = False
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self.longer_than and len(data) > self.longer_than:
                    self.longer_than, catches = 0, True
                    self.caught = self.under_way = 1
                    await self._open.wait()
                writer.write(data)
        finally:
            if catches:
                self.under_way = 0


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """An empty database of a server that lives."""
    return postgres.fresh_database()


@pytest.fixture(scope="module")
def own(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that may be killed: whoever kills it starts it again."""
    with PostgresServer.start() as server:
        yield server


class TestConnections:
    """Connections that are cut."""

    async def test_terminated_backends_cost_nothing(
        self, postgres: PostgresServer, url: str
    ) -> None:
        async with opened(url) as store, at_work(store, OWNERS) as owners:
            for _ in range(5):
                await progress(owners, 2 * OWNERS)
                await asyncio.to_thread(postgres.sql, TERMINATE, url)
            await progress(owners, 2 * OWNERS)
            made = store.facts()["connections_made"]
        async with opened(url) as store:
            await check(store, owners)
        assert int(str(made)) > 1

    async def test_connections_are_few_and_all_are_closed(
        self, postgres: PostgresServer, url: str
    ) -> None:
        async with opened(url) as store, at_work(store, OWNERS) as owners:
            for n in range(25):
                reads = [asyncio.ensure_future(store.load(one.session)) for one in owners]
                await asyncio.sleep(0)
                for read in reads[n % 3 :: 3]:
                    read.cancel()
                await asyncio.gather(*reads, return_exceptions=True)
            connected = await asyncio.to_thread(postgres.sql, CONNECTED, url)
            assert 1 <= int(connected) <= 5
        await met(lambda: postgres.sql(CONNECTED, url) == "0")

    @pytest.mark.parametrize("operation", ["commit", "accept", "claim", "release"])
    async def test_an_answer_that_was_lost_is_found_out(
        self, postgres: PostgresServer, url: str, operation: str
    ) -> None:
        wire = Wire(postgres.port)
        await wire.open()
        through = url.replace(f":{postgres.port}/", f":{wire.port}/")
        async with opened(through) as store:
            owner = await created(store)
            # From the second time on there is nothing to prepare: one request, one answer.
            for n in range(2):
                if n:
                    wire.lose_answers(longer_than=100)
                match operation:
                    case "commit":
                        steps = [owner.step(b"x", consumed=()), owner.step(b"y", b"z")]
                        assert await submit(store, *steps) == [None, None]
                    case "accept":
                        await store.accept(entry(f"m{n}"))
                    case "claim":
                        owner = await claim(store, nonce=f"n{n}")
                        assert owner.loaded.strikes == 0
                    case "release":
                        await store.release(SESSION, owner.token, quarantine=None)
                        owner = await claim(store, nonce=f"r{n}")
            assert wire.cuts == 1
            loaded = await store.load(SESSION)
            assert loaded is not None
            assert loaded.version == owner.version
            if operation == "commit":
                assert [record.body for record in loaded.tail] == [b"x", b"y", b"z"] * 2
            if operation == "accept":
                assert [one.id for one in loaded.inbox] == ["m0", "m1"]
            assert await submit(store, owner.step(b"on", postponed=2)) == [None]
        await wire.close()

    async def test_a_step_without_records_whose_answer_was_lost_is_found_out(
        self, postgres: PostgresServer, url: str
    ) -> None:
        wire = Wire(postgres.port)
        await wire.open()
        through = url.replace(f":{postgres.port}/", f":{wire.port}/")
        async with opened(through) as store:
            owner = await created(store)
            await store.accept(entry("m1"))
            wire.lose_answers(longer_than=100)
            assert await submit(store, owner.step(consumed=("m1",))) == [None]
            assert wire.cuts == 1
            assert await store.settled(SESSION, "m1") is not None
        await wire.close()

    async def test_steps_written_together_whose_answer_was_lost_are_found_out(
        self, postgres: PostgresServer, url: str
    ) -> None:
        """The first of them wrote no record and took no command: only what followed shows it."""
        wire = Wire(postgres.port)
        await wire.open()
        through = url.replace(f":{postgres.port}/", f":{wire.port}/")
        async with opened(through) as store:
            owner = await created(store)
            # From the second time on there is nothing to prepare: one request, one answer.
            for n in range(2):
                if n:
                    wire.lose_answers(longer_than=100)
                steps = [owner.step(postponed=0), owner.step(b"one")]
                assert await submit(store, *steps) == [None, None]
            assert wire.cuts == 1
            assert await submit(store, owner.step(b"two")) == [None]
        await wire.close()

    async def test_a_claim_that_arrives_after_its_connection_was_given_up_claims_nothing(
        self, postgres: PostgresServer, url: str
    ) -> None:
        """Its node lives, so nobody else could take the session, and that node knows nothing."""
        async with Proxy("127.0.0.1", postgres.port) as proxy:
            late = proxy.requests = LateRequest()
            through = url.replace(f":{postgres.port}/", f":{proxy.port}/")
            async with opened(through, patience_seconds=0.5) as store:
                owner = await created(store)
                await store.renew("node", 600_000)
                await store.release(SESSION, owner.token)
                late.longer_than = 100
                with pytest.raises(Unavailable):
                    await claim(store, nonce="late")
                assert late.caught == 1
                owner = await claim(store, nonce="again")
                assert await submit(store, owner.step(b"one", wake_at=5)) == [None]
                await store.release(SESSION, owner.token)
                late.heal()
                await met(lambda: late.under_way == 0)
                assert await store.due(FAR, 1) == ([SESSION], None)

    async def test_a_refusal_whose_answer_was_lost_is_the_same_refusal(
        self, postgres: PostgresServer, url: str
    ) -> None:
        wire = Wire(postgres.port)
        await wire.open()
        through = url.replace(f":{postgres.port}/", f":{wire.port}/")
        async with opened(through) as store:
            zombie = await created(store)
            owner = await claim(store, nonce="new")
            assert await submit(store, owner.step(b"one")) == [None]
            wire.lose_answers(longer_than=100)
            assert await outcomes(store, zombie.step(b"two")) == ["Fenced"]
            assert wire.cuts == 1
        await wire.close()


class TestServer:
    """A server that dies, freezes, or is another one."""

    @pytest.mark.parametrize("end", ["backend", "immediately", "killed"])
    async def test_a_server_that_dies_while_it_commits_loses_nothing(
        self, own: PostgresServer, end: str
    ) -> None:
        url = own.fresh_database()
        # A busy machine may take long to start a server: that is not what is tried here.
        patient = opened(url, patience_seconds=MET_SECONDS_MAX)
        async with patient as store, at_work(store, OWNERS, end) as owners:
            for _ in range(2):
                await progress(owners, 5 * OWNERS)
                if end == "backend":
                    busy = "SELECT pid FROM pg_stat_activity WHERE application_name = 'perdure'"
                    os.kill(
                        int(own.sql(f"{busy} ORDER BY backend_start LIMIT 1", url)), signal.SIGKILL
                    )
                else:
                    stop = own.kill if end == "killed" else own.quit_immediately
                    await asyncio.to_thread(stop)
                    await asyncio.to_thread(own.start_again)
                began = time.monotonic()
                await progress(owners, 1)
                assert time.monotonic() - began < COMES_BACK_SECONDS_MAX
        async with opened(url) as store:
            await check(store, owners)

    async def test_a_server_that_stays_away_is_unavailable_and_comes_back(
        self, own: PostgresServer
    ) -> None:
        async with opened(own.fresh_database(), patience_seconds=0.5) as store:
            owner = await created(store)
            await asyncio.to_thread(own.kill)
            told = await submit(store, owner.step(b"one"), owner.step(b"two"))
            assert [type(error) for error in told] == [Unavailable] * 2
            for asked in (store.accept(entry("m1")), store.load(SESSION), store.due(FAR, 1)):
                with pytest.raises(Unavailable):
                    await asked
            await asyncio.to_thread(own.start_again)
            began = time.monotonic()
            while True:
                try:
                    again = await claim(store, nonce="again")
                    break
                except Unavailable:
                    assert time.monotonic() - began < COMES_BACK_SECONDS_MAX
            assert await submit(store, again.step(b"three")) == [None]

    async def test_a_frozen_server_is_unavailable_and_what_it_did_is_found_after_it(
        self, own: PostgresServer
    ) -> None:
        async with opened(own.fresh_database(), patience_seconds=0.5) as store:
            owner = await created(store)
            own.freeze()
            step = owner.step(b"one")
            assert await outcomes(store, step) == ["Unavailable"]
            own.thaw()
            again = await claim(store, nonce="again")
            assert [record.body for record in again.loaded.tail] in ([], [b"one"])
            assert await outcomes(store, step) == ["Fenced"]
            assert await submit(store, again.step(b"two")) == [None]

    async def test_a_password_is_in_no_error(self) -> None:
        for url in (
            "postgresql://me:hunter2@127.0.0.1:1/none",
            "postgresql://me:hunter2@127.0.0.1:1/none?sslmode=nonsense",
            "postgresql://me:hunter2@127.0.0.1:1/none?pooler=maybe",
            "mysql://me:hunter2@127.0.0.1:1/none",
            "postgresql://me:hunter2/x@127.0.0.1:1/none",
            "postgresql://me:x/hunter2@127.0.0.1:1/none",
            "postgresql://me:hunter2?x@127.0.0.1:1/none",
            "postgresql://me:hunter2#x@127.0.0.1:1/none",
            "postgresql://me:hunter2]x@127.0.0.1:1/none",
            "postgresql://me:hunter2\u2100@127.0.0.1:1/none",
        ):
            with pytest.raises(Exception, match=".") as refused:
                await opened(url).__aenter__()
            assert "hunter2" not in str(refused.value)

    async def test_what_a_commit_is_worth_is_looked_up_with_every_renewal(
        self, own: PostgresServer
    ) -> None:
        url, noted = own.fresh_database(), "SELECT durability FROM perdure.store"
        async with opened(url) as store:
            for setting, worth in (("off", "memory"), ("on", "fsynced")):
                await asyncio.to_thread(own.sql, f"ALTER SYSTEM SET synchronous_commit = {setting}")
                await asyncio.to_thread(own.sql, "SELECT pg_reload_conf()")
                while store.durability != worth:
                    assert await store.renew("owner", 60_000)
                assert own.sql(noted, url) == worth
                assert (await store.accept(entry(worth))).durability == worth

    async def test_a_renewal_is_told_although_the_server_falls_silent_after_it(
        self, own: PostgresServer
    ) -> None:
        """What a commit is worth has changed besides: noting that holds up nobody."""
        url = own.fresh_database()
        async with Proxy("127.0.0.1", own.port) as proxy:
            proxy.answers = OneAnswer()
            async with opened(
                url.replace(f":{own.port}/", f":{proxy.port}/"), patience_seconds=1.0
            ) as store:
                assert await store.renew("owner", 60_000)
                await asyncio.to_thread(own.sql, "ALTER SYSTEM SET synchronous_commit = off")
                await asyncio.to_thread(own.sql, "SELECT pg_reload_conf()")
                proxy.answers.last = True
                async with asyncio.timeout(MET_SECONDS_MAX):
                    assert await store.renew("owner", 60_000)
                proxy.heal()
                while store.durability != "memory":
                    assert await store.renew("owner", 60_000)
        await asyncio.to_thread(own.sql, "ALTER SYSTEM RESET synchronous_commit")
        await asyncio.to_thread(own.sql, "SELECT pg_reload_conf()")

    async def test_a_standby_is_refused_and_once_it_is_promoted_all_is_suspect(
        self, postgres: PostgresServer
    ) -> None:
        with PostgresServer.start() as primary, primary.standby() as standby:
            with pytest.raises(StoreRefused, match="standby"):
                await opened(standby.url).__aenter__()
            both = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            url = f"postgresql://postgres@{both}/postgres?target_session_attrs=primary"
            async with opened(url) as store, opened(url) as other:
                owner = await created(store)
                assert await submit(store, owner.step(b"one")) == [None]
                assert owner.loaded.suspect is None
                lsn = primary.sql("SELECT pg_current_wal_flush_lsn()")
                caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"
                await met(lambda: standby.sql(caught_up) == "t")
                await asyncio.to_thread(primary.kill)
                await asyncio.to_thread(standby.promote)
                assert await submit(store, owner.step(b"two")) == [None]
                since = [(await one.load(SESSION)).suspect for one in (store, other)]  # type: ignore[union-attr]
                assert since[0] is not None
                assert since[0] == since[1]
                again = await claim(store, nonce="again")
                assert await submit(store, again.step(b"three")) == [None]
            async with opened(url) as store:
                loaded = await store.load(SESSION)
                assert loaded is not None
                assert (loaded.suspect, loaded.version) == (None, 3)
