"""What is particular to PostgreSQL: what is found at the start, schema, pages and locks."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from perdure.adapters.catalog.postgres.catalog import SCHEMA as CATALOG
from perdure.adapters.cluster.postgres.cluster import SCHEMA as CLUSTER
from perdure.adapters.postgres.found import durability, standbys
from perdure.adapters.postgres.schema import Migration
from perdure.adapters.stores.postgres import PostgresStore, reading
from perdure.adapters.stores.postgres.store import SCHEMA
from perdure.core.errors import InvalidInput, StoreRefused
from perdure.core.ids import SessionId
from perdure.ports.session_store import Claimed, NotClaimed, RunQuery
from perdure.testing.conformance.claimant import (
    FAR,
    SESSION,
    claim,
    created,
    entry,
    outcomes,
    run_row,
    submit,
)
from perdure.testing.servers.postgres import PostgresServer
from tests.adapters.postgres_faults import at_work, check, opened, progress

NAMELESS = SESSION._replace(key="nul\0")


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """An empty database."""
    return postgres.fresh_database()


class TestFound:
    """What the server is found to be."""

    @pytest.mark.parametrize(
        ("changed", "worth"),
        [
            ({}, "fsynced"),
            ({"synchronous_commit": "off"}, "memory"),
            ({"fsync": "off"}, "os"),
            ({"full_page_writes": "off"}, "os"),
            ({"synchronous_standby_names": "a"}, "replicated(2)"),
            ({"synchronous_standby_names": "FIRST 2 (a, b, c)"}, "replicated(3)"),
            ({"synchronous_standby_names": "a", "synchronous_commit": "remote_apply"},
             "replicated(2)"),
            ({"synchronous_standby_names": "a", "synchronous_commit": "remote_write"}, "fsynced"),
            ({"synchronous_standby_names": "a", "synchronous_commit": "local"}, "fsynced"),
            ({"synchronous_standby_names": "a", "fsync": "off"}, "os"),
        ],
    )  # fmt: skip
    def test_a_commit_is_worth_what_the_settings_say(
        self, changed: dict[str, str], worth: str
    ) -> None:
        settings = {
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "synchronous_standby_names": "",
        }
        assert durability(settings | changed) == worth

    @pytest.mark.parametrize(
        ("names", "count"),
        [("", 0), ("*", 1), ("a, b", 1), ("2 (a, b)", 2), ("any 3 (a,b,c,d)", 3), ('"1 (x"', 1)],
    )
    def test_a_commit_waits_for_so_many_standbys(self, names: str, count: int) -> None:
        assert standbys(names) == count

    async def test_the_settings_of_this_connection_count(self, url: str) -> None:
        for value, worth in (("on", "fsynced"), ("off", "memory")):
            async with opened(f"{url}?synchronous_commit={value}") as store:
                assert store.durability == worth
                assert store.facts()["synchronous_commit"] == value
                assert (await store.accept(entry(value))).durability == worth

    async def test_a_database_in_another_encoding_is_refused(
        self, postgres: PostgresServer
    ) -> None:
        postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
        with pytest.raises(StoreRefused, match="UTF8"):
            await PostgresStore.open(postgres.url_of("latin"))

    async def test_a_database_that_does_not_exist_is_refused(
        self, postgres: PostgresServer
    ) -> None:
        with pytest.raises(StoreRefused, match="does not exist"):
            await PostgresStore.open(postgres.url_of("nowhere"))

    async def test_behind_a_pooler_everything_works_without_what_lasts(self, url: str) -> None:
        async with opened(f"{url}?pooler=yes") as store, at_work(store, 5) as owners:
            await progress(owners, 20)
            loaded = await store.load(owners[0].session)
            assert loaded is not None
        async with opened(url) as store:
            await check(store, owners)

    async def test_the_identity_is_that_of_the_facts(
        self, url: str, postgres: PostgresServer
    ) -> None:
        async with opened(url) as one, opened(url) as same:
            assert one.identity == same.identity
        async with opened(postgres.fresh_database()) as other:
            assert other.identity != one.identity


class TestNames:
    """PostgreSQL holds no NUL in a text."""

    async def test_a_name_that_cannot_be_held_is_refused_and_never_found(self, url: str) -> None:
        async with opened(url) as store:
            for wrong in (entry("m", session=NAMELESS), entry("m\0")):
                with pytest.raises(InvalidInput, match="NUL"):
                    await store.accept(wrong)
            assert await store.claim(NAMELESS, "node", "n") == NotClaimed("absent")
            assert await store.load(NAMELESS) is None
            assert await store.read(NAMELESS, 0, 1) == []
            assert await store.settled(SESSION, "m\0") is None
            assert await store.list(RunQuery(tenant="t", key="\0")) == []
            assert await store.blob("\0") is None
            assert await store.due(FAR, 9, ["\0"]) == ([], None)

    async def test_a_step_that_cannot_be_held_takes_no_other_with_it(self, url: str) -> None:
        async with opened(url) as store:
            one = await created(store)
            other = await created(store, SESSION._replace(key="other"))
            steps = [
                one.step(b"x", rows=(run_row("r\0"),)),
                other.step(b"x", rows=(run_row("r", other.session),)),
            ]
            assert await outcomes(store, *steps) == ["Conflict", "written"]

    async def test_what_two_accept_at_once_is_kept_once(self, url: str) -> None:
        async with opened(url) as here, opened(url) as there:
            names = [f"m{n}" for n in range(100)]
            asked = [store.accept(entry(one)) for one in names for store in (here, there)]
            receipts = await asyncio.gather(*asked)
            assert sum(receipt.duplicate for receipt in receipts) == len(names)
            loaded = await here.load(SESSION)
            assert loaded is not None
            assert sorted(one.id for one in loaded.inbox) == sorted(names)

    async def test_what_two_accept_at_once_and_alone_is_kept_once(self, url: str) -> None:
        async with opened(url) as here, opened(url) as there:
            for n in range(50):
                asked = [store.accept(entry(f"m{n}")) for store in (here, there)]
                receipts = await asyncio.gather(*asked)
                assert sorted(receipt.duplicate for receipt in receipts) == [False, True]


class TestLocks:
    """Several nodes at the same rows."""

    async def test_two_nodes_accept_and_commit_for_the_same_sessions(self, url: str) -> None:
        async with opened(url) as here, opened(url) as there, at_work(here, 20) as owners:
            for n in range(10):
                accepted = [
                    there.accept(entry(f"{n}", session=owner.session)) for owner in owners[::-1]
                ]
                receipts = await asyncio.gather(*accepted)
                assert not any(receipt.duplicate for receipt in receipts)
        async with opened(url) as store:
            await check(store, owners)
            unread = await store.unread("node", 100)
            assert sorted(unread) == sorted(owner.session for owner in owners)

    async def test_a_deadlock_is_tried_again(self, url: str) -> None:
        async with opened(f"{url}?deadlock_timeout=500ms") as store:
            owners = [await created(store, SESSION._replace(key=key)) for key in "ab"]
            rival = await asyncpg.connect(url)
            lock = "UPDATE perdure.sessions SET quarantine = NULL WHERE id = $1"
            ids = await rival.fetch("SELECT id FROM perdure.sessions ORDER BY id")
            # Of the two, it is the store that finds out.
            await rival.execute("SET deadlock_timeout = '10s'")
            transaction = rival.transaction()
            await transaction.start()
            await rival.execute(lock, ids[1][0])
            told = asyncio.ensure_future(submit(store, *(owner.step(b"x") for owner in owners)))
            await waiting(rival, 1)
            await rival.execute(lock, ids[0][0])
            await transaction.rollback()
            await rival.close()
            assert await told == [None, None]

    async def test_a_row_that_somebody_has_locked_holds_up_nobody_else_for_long(
        self, url: str
    ) -> None:
        async with opened(url) as store:
            owners = [await created(store, SESSION._replace(key=key)) for key in "abc"]
            rival = await asyncpg.connect(url)
            transaction = rival.transaction()
            await transaction.start()
            await rival.execute("SELECT FROM perdure.sessions WHERE key = 'b' FOR UPDATE")
            steps = {owner.session.key: owner.step(b"x") for owner in owners}
            told = {key: asyncio.ensure_future(submit(store, step)) for key, step in steps.items()}
            assert await asyncio.gather(told["a"], store.renew("node", 1_000)) == [[None], True]
            assert not told["b"].done()
            await transaction.rollback()
            await rival.close()
            assert await asyncio.gather(told["b"], told["c"]) == [[None], [None]]

    async def test_a_claim_reads_what_was_committed_while_it_waited(self, url: str) -> None:
        async with opened(url) as here, opened(url) as there:
            owner = await created(here)
            rival = await asyncpg.connect(url)
            transaction = rival.transaction()
            await transaction.start()
            await rival.execute("SELECT FROM perdure.sessions FOR UPDATE")
            told = asyncio.ensure_future(submit(here, owner.step(b"before the claim")))
            await waiting(rival, 1)
            claimed = asyncio.ensure_future(claim(there, nonce="again"))
            await waiting(rival, 2)
            await transaction.rollback()
            await rival.close()
            assert await told == [None]
            assert [record.body for record in (await claimed).loaded.tail] == [b"before the claim"]

    async def test_a_claim_that_waited_takes_nothing_from_a_node_that_began_meanwhile(
        self, url: str
    ) -> None:
        """The node renewed its lease for the first time when the claim had begun."""
        async with opened(url) as store, opened(url) as other:
            sessions = [SESSION._replace(key=key) for key in "ab"]
            for session in sessions:
                await store.accept(entry("m1", session=session))
            await store.renew("early", 600_000)
            rival = await asyncpg.connect(url)
            transaction = rival.transaction()
            await transaction.start()
            await rival.execute("SELECT FROM perdure.sessions WHERE key = 'a' FOR UPDATE")
            asked = [asyncio.ensure_future(store.claim(one, "early", "n1")) for one in sessions]
            await waiting(rival, 1)
            await other.renew("new", 600_000)
            taken = await claim(other, sessions[1], "new", "n2")
            await transaction.rollback()
            await rival.close()
            claimed, refused = await asyncio.gather(*asked)
            assert isinstance(claimed, Claimed)
            assert refused == NotClaimed("held", "new")
            assert await submit(other, taken.step(b"one")) == [None]


async def waiting(connection: asyncpg.Connection[Any], count: int) -> None:
    """Wait until so many others wait for a lock."""
    for _ in range(10_000):
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        if await connection.fetchval(waits) >= count:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("nobody waits")


class TestPages:
    """What is written stays cheap."""

    async def test_a_commit_touches_no_index_of_sessions(self, url: str) -> None:
        async with opened(url) as store, at_work(store, 20) as owners:
            await progress(owners, 2_000)
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            # Those of the begin are others: an acceptance and a claim of each.
            updated, hot = await connection.fetchrow(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
                "WHERE relname = 'sessions'"
            )
        finally:
            await connection.close()
        assert updated > 300
        assert updated - hot < 0.1 * updated

    async def test_a_scan_searches_one_index(self, url: str) -> None:
        async with opened(url) as store:
            await store.accept(entry("m1"))
            rows = await store._pool.ask(
                f"EXPLAIN {reading.DUE}", FAR, 1, None, ["agent"], 1, False
            )
        plan = "\n".join(row[0] for row in rows)
        assert "Index Scan using sessions_due" in plan
        assert "((agent = wanted.agent) AND (due_at <= " in plan
        assert "(owner = nodes.owner)" in plan
        assert "Seq Scan on sessions" not in plan

    async def test_parked_sessions_of_others_are_not_looked_at(self, url: str) -> None:
        async with opened(url) as store:
            for agent in "abc":
                await store.accept(entry("m", session=SessionId("t", agent, "k")))
            found, _ = await store.due(FAR, 10, ["b"])
            assert [session.agent for session in found] == ["b"]
            found, _ = await store.due(FAR, 10)
            assert sorted(session.agent for session in found) == ["a", "b", "c"]


SCHEMAS = [SCHEMA, CATALOG, CLUSTER]
LAYOUT = """
SELECT string_agg(line, chr(10) ORDER BY line) FROM (
    SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
        AS line
    FROM information_schema.columns WHERE table_schema = 'perdure'
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'perdure'
    UNION ALL SELECT format('%s %s %s', part, number, checksum) FROM perdure.migrations
) AS layout
"""


class TestSchema:
    """Migrations can be cut off anywhere, and old and new nodes run together."""

    async def test_a_migration_that_is_cut_off_at_any_statement_is_run_again(
        self, postgres: PostgresServer
    ) -> None:
        whole = await layout(postgres.fresh_database(), [])
        url = postgres.fresh_database()
        cut, statements = 0, 1
        while cut < statements:
            await asyncio.to_thread(postgres.sql, "DROP SCHEMA IF EXISTS perdure CASCADE", url)
            statements = await cut_off(url, after=cut)
            assert await layout(url, SCHEMAS) == whole, f"cut off after statement {cut}"
            cut += 1
        assert statements > 20

    async def test_nodes_that_begin_at_the_same_time_make_one_schema(self, url: str) -> None:
        stores = await asyncio.gather(*(PostgresStore.open(url) for _ in range(5)))
        assert len({store.identity for store in stores}) == 1
        for store in stores:
            await store.close()

    async def test_an_older_node_works_with_what_a_newer_one_has_added(self, url: str) -> None:
        for number, works_with, refused in ((2, 1, False), (3, 3, True)):
            later = Migration(
                number,
                f"{number:04}_later",
                f"-- works with: {works_with}\nCREATE TABLE perdure.later{number} ();\n",
            )
            connection = await asyncpg.connect(url)
            await SCHEMA.migrate(connection, url, [*SCHEMA.migrations(), later])
            await connection.close()
            if refused:
                with pytest.raises(StoreRefused, match="upgrade"):
                    await PostgresStore.open(url)
            else:
                async with opened(url) as store:
                    await store.accept(entry("m1"))

    async def test_a_schema_of_another_history_is_refused(self, url: str) -> None:
        async with opened(url):
            pass
        connection = await asyncpg.connect(url)
        await connection.execute("UPDATE perdure.migrations SET checksum = 'x'")
        await connection.close()
        with pytest.raises(StoreRefused, match="never released"):
            await PostgresStore.open(url)


async def layout(url: str, schemas: list[Any]) -> str:
    """Migrate what is missing, and return how the tables look."""
    connection = await asyncpg.connect(url)
    try:
        for schema in schemas or SCHEMAS:
            await schema.migrate(connection, url)
        found: str = await connection.fetchval(LAYOUT)
        return found
    finally:
        await connection.close()


async def cut_off(url: str, after: int) -> int:
    """Migrate, and lose the connection after so many statements; return how many were run."""
    connection = await asyncpg.connect(url)
    run = 0

    async def execute(query: str, *values: Any) -> None:
        nonlocal run
        if run == after:
            connection.terminate()
            raise ConnectionError
        run += 1
        await connection.execute(query, *values)

    try:
        for schema in SCHEMAS:
            await schema.migrate(connection, url, execute=execute)
    except (ConnectionError, asyncpg.InterfaceError):
        return after + 2
    finally:
        connection.terminate()
    return run
