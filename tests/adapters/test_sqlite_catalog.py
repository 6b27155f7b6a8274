"""What the catalog's file promises beyond the port: who may open it, and what a death leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from perdure.adapters.catalog.sqlite import SqliteCatalog
from perdure.adapters.catalog.sqlite.catalog import SCHEMA
from perdure.adapters.sqlite.write_thread import WriteThread
from perdure.adapters.stores.sqlite import SqliteStore
from perdure.core.errors import Conflict, StoreError, StoreLocked, StoreRefused, Unavailable
from perdure.ports.entries import Agent
from perdure.testing.clock import FakeClock

TENANT = "tenant"
WRITES_UNTIL_KILLED = """
import asyncio, sys
from perdure.adapters.catalog.sqlite import SqliteCatalog
from perdure.ports.entries import Agent

async def main():
    catalog = await SqliteCatalog.open(sys.argv[1], lambda: 0)
    async def write(lane):
        for n in range(10**6):
            name = f"{sys.argv[2]}.{lane}.{n}"
            kept = await catalog.create("tenant", Agent(name=name, system_prompt=""))
            (number,) = await catalog.numbers("tenant", "run", [name])
            print(name, kept.id, number, flush=True)
    await asyncio.gather(*map(write, range(8)))

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a catalog."""
    return tmp_path / "folder" / "catalog.db"


def agent(name: str = "bot") -> Agent:
    """Return an agent that is not kept yet."""
    return Agent(name=name, system_prompt="")


async def opened(path: Path) -> SqliteCatalog:
    """Open the catalog at a path."""
    return await SqliteCatalog.open(path, FakeClock().now_ms)


class TestFile:
    """Whose file it is."""

    async def test_nobody_else_can_read_it(self, path: Path) -> None:
        catalog = await opened(path)
        await catalog.create(TENANT, agent())
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        await catalog.close()
        assert modes.pop(f"{path.name}.lock") is not None
        assert modes == {path.name: 0o600, f"{path.name}-wal": 0o600, f"{path.name}-shm": 0o600}

    async def test_it_is_one_process_s(self, path: Path) -> None:
        catalog = await opened(path)
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            await opened(path)
        await catalog.close()
        await (await opened(path)).close()

    async def test_it_is_not_taken_for_a_store_nor_a_store_for_it(self, tmp_path: Path) -> None:
        await (await opened(tmp_path / "catalog.db")).close()
        with pytest.raises(StoreRefused, match="another program"):
            await SqliteStore.open(tmp_path / "catalog.db", FakeClock())
        await (await SqliteStore.open(tmp_path / "store.db", FakeClock())).close()
        with pytest.raises(StoreRefused, match="another program"):
            await opened(tmp_path / "store.db")

    async def test_after_closing_it_takes_nothing(self, path: Path) -> None:
        catalog = await opened(path)
        await catalog.close()
        await catalog.close()
        for work in (catalog.tenants(), catalog.create(TENANT, agent())):
            with pytest.raises(Unavailable, match="is closed"):
                await work

    async def test_an_entry_of_another_version_hurts_nobody_else(self, path: Path) -> None:
        catalog = await opened(path)
        kept = await catalog.create(TENANT, agent())
        other = await catalog.create(TENANT, agent("other"))
        db = apsw.Connection(str(path))
        db.execute("UPDATE entries SET body = x'7b7d' WHERE id = ?", (kept.id,))
        db.close()
        for work in (catalog.get(TENANT, Agent, kept.id), catalog.update(TENANT, kept)):
            with pytest.raises(StoreError, match="the agent on record cannot be read"):
                await work
        assert await catalog.get(TENANT, Agent, other.id) == other
        assert (await catalog.update(TENANT, other)).revision == 2
        await catalog.close()


class TestTables:
    """What tenants have is kept by tenant, and found without looking at what others have."""

    @pytest.fixture
    def db(self) -> apsw.Connection:
        """Return an empty database with the tables."""
        db = apsw.Connection(":memory:")
        SCHEMA.migrate(db, Path("memory"), 0)
        return db

    def test_every_table_has_the_tenant_in_its_primary_key(self, db: apsw.Connection) -> None:
        tables = [name for (name,) in db.execute("SELECT name FROM pragma_table_list")]
        of_nobody = {"counters", "migrations", "sqlite_schema", "sqlite_temp_schema"}
        query = "SELECT name FROM pragma_table_info(?) WHERE pk = 1"
        first = {name: db.execute(query, (name,)).get for name in set(tables) - of_nobody}
        assert first == {"entries": "tenant_id", "numbers": "tenant_id"}

    @pytest.mark.parametrize(
        ("where", "index"),
        [
            ("entries WHERE tenant_id = 1 AND kind = 1 AND id > 1 ORDER BY id DESC", "sqlite_auto"),
            ("entries WHERE tenant_id = 1 AND kind = 1 AND name = 1", "entries_by_name"),
            ("entries WHERE kind = 1 AND handle = 1", "entries_by_handle"),
            ("entries WHERE tenant_id = 1 AND kind = 1 AND of_id = 1 ORDER BY id", "entries_of"),
            ("numbers WHERE tenant_id = 1 AND of = 1 AND id = 1", "numbers_by_id"),
        ],
    )
    def test_what_is_asked_is_found_by_an_index(
        self, db: apsw.Connection, where: str, index: str
    ) -> None:
        query = f"EXPLAIN QUERY PLAN SELECT * FROM {where}"
        (step,) = [row[3] for row in db.execute(query)]
        assert step.startswith("SEARCH")
        assert f"INDEX {index}" in step


class TestWriting:
    """What one piece of work does to the others, and what a failure does to all."""

    @pytest.fixture
    def db(self, tmp_path: Path) -> apsw.Connection:
        """Return a connection with one table."""
        db = apsw.Connection(str(tmp_path / "db"))
        db.pragma("journal_mode", "wal")
        db.execute("CREATE TABLE t (x UNIQUE)")
        return db

    async def test_what_is_refused_takes_nothing_else_with_it(
        self, db: apsw.Connection, tmp_path: Path
    ) -> None:
        thread = WriteThread(db, tmp_path / "db", lambda: db)

        def insert(*values: object) -> asyncio.Future[None]:
            def work(db: apsw.Connection) -> None:
                for value in values:
                    db.execute("INSERT INTO t VALUES (?)", (value,))

            return asyncio.ensure_future(thread.run(work))

        done = await asyncio.gather(
            insert(1),
            insert(2, 1),
            insert(3, 2**70),
            insert(5, object()),
            insert(4),
            return_exceptions=True,
        )
        await asyncio.to_thread(thread.stop)
        fates = [type(None), Conflict, Conflict, TypeError, type(None)]
        assert [type(one) for one in done] == fates
        kept = sqlite3.connect(tmp_path / "db").execute("SELECT x FROM t ORDER BY x").fetchall()
        assert kept == [(1,), (4,)]

    async def test_after_a_failed_commit_the_file_is_opened_again(
        self, db: apsw.Connection, tmp_path: Path
    ) -> None:
        """Once in a second at most; until then, and as long as that fails, nothing is taken."""
        seconds, opens = [0.0], [True, False]
        db.set_commit_hook(lambda: True)

        def connect() -> apsw.Connection:
            if opens.pop():
                return apsw.Connection(str(tmp_path / "db"))
            raise Unavailable("the disk is full")

        async def insert(value: int) -> str:
            try:
                await thread.run(lambda db: db.execute("INSERT INTO t VALUES (?)", (value,)))
            except Unavailable as error:
                return str(error)
            return "done"

        thread = WriteThread(db, tmp_path / "db", connect, lambda: seconds[0])
        told = []
        for value, at in enumerate((0.0, 0.9, 1.0, 1.9, 2.0, 2.0)):
            seconds[0] = at
            told.append(await insert(value))
        await asyncio.to_thread(thread.stop)
        assert "takes nothing more until it is opened again" in told[0]
        assert told == [told[0]] * 2 + ["the disk is full"] * 2 + ["done"] * 2
        kept = sqlite3.connect(tmp_path / "db").execute("SELECT x FROM t").fetchall()
        assert kept == [(4,), (5,)]


def killed(path: Path, life: int, lines: int) -> dict[str, tuple[int, int]]:
    """Kill a process that writes after it has said so many lines; return what it has said."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_UNTIL_KILLED, str(path), str(life)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = [process.stdout.readline().split() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return {name: (int(agent_id), int(number)) for name, agent_id, number in said}


async def test_what_was_acknowledged_outlives_a_killed_process(path: Path) -> None:
    """Every acknowledged name is found under its id, and its run under its number."""
    told: dict[str, tuple[int, int]] = {}
    for life, lines in enumerate((1, 60, 300)):
        told |= await asyncio.to_thread(killed, path, life, lines)
    catalog = await opened(path)
    for name, (agent_id, number) in told.items():
        kept = await catalog.get(TENANT, Agent, agent_id)
        assert kept is not None
        assert kept.name == name
        assert await catalog.named(TENANT, "run", number) == name
    everything = await catalog.list(TENANT, Agent)
    await catalog.close()
    assert len({entry.id for entry in everything}) == len(everything) >= len(told) == 361
