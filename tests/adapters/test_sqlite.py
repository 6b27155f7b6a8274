"""Opening a SQLite store: what is refused and left untouched, what is checked, who may open it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import msgspec
import pytest

from perdure.adapters.sqlite import checks
from perdure.adapters.sqlite.schema import Migration
from perdure.adapters.stores.sqlite import SqliteReader, SqliteStore, reading
from perdure.adapters.stores.sqlite.schema import SCHEMA
from perdure.core.codec import decode_event
from perdure.core.errors import (
    Fenced,
    NotFound,
    StoreLocked,
    StoreRefused,
    Unavailable,
    UnreadableEvent,
)
from perdure.core.runs import RunRow
from perdure.ports.session_store import RunQuery
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import (
    SESSION,
    claim,
    created,
    dump,
    entry,
    outcomes,
    submit,
)

ROW = RunRow(id="first", session=SESSION, status="running", created_at=1)
NEWEST = "ORDER BY created_at DESC, id DESC"
BODY = b'{"type":"model_replied","text":"' + b"word " * 190 + b'"}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the store is."""
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """Open a store as a user does."""
    store = await SqliteStore.open(path, FakeClock())
    yield store
    await store.close()


async def made(path: Path) -> None:
    """Leave a store with one session behind."""
    store = await SqliteStore.open(path, FakeClock())
    owner = await created(store)
    assert await submit(store, owner.step(BODY, rows=(ROW,))) == [None]
    await store.close()


def written(path: Path, content: bytes) -> Path:
    """Put something else in the place of a store."""
    path.write_bytes(content)
    return path


def content(path: Path) -> bytes | None:
    """Return what is in a file, if there is one."""
    return path.read_bytes() if path.exists() else None


def spoil(path: Path, start: int, end: int | None = None) -> None:
    """Write noise over a part of a file."""
    size = len(path.read_bytes()[start:end])
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * size)


def change(path: Path, *statements: str) -> None:
    """Do to a file what no version of ours would do."""
    db = apsw.Connection(str(path))
    for statement in statements:
        db.execute(statement).fetchall()
    db.close()


def opened_elsewhere(path: Path) -> str:
    """Open a store in another process; return what it says."""
    program = (
        "import asyncio, sys\n"
        "from perdure.adapters.stores.sqlite import SqliteStore\n"
        "asyncio.run(SqliteStore.open(sys.argv[1], lambda: 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


class TestOpening:
    """What `open` promises."""

    async def test_a_missing_folder_is_made(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a" / "b" / "store.db", FakeClock())
        assert (await store.accept(entry("m1"))).durability == "fsynced"
        await store.close()

    async def test_the_settings_are_those_the_promise_rests_on(self, store: SqliteStore) -> None:
        facts = store.facts()
        assert (facts["journal_mode"], facts["synchronous"]) == ("wal", 2)
        assert facts["wal_autocheckpoint"] == 0
        assert facts["durability"] == store.durability == "fsynced"
        assert facts["schema_version"] == SCHEMA.newest()
        assert facts["sqlite_version"] == apsw.sqlite_lib_version()
        assert facts["failure"] is None
        assert facts["database_bytes"] + facts["log_bytes"] > 0

    async def test_a_store_that_does_not_sync_says_so(self, path: Path) -> None:
        store = await SqliteStore.open(path, FakeClock(), synchronous="NORMAL")
        assert (await store.accept(entry("m1"))).durability == "os"
        await store.close()

    async def test_what_was_written_is_there_when_it_is_opened_again(self, path: Path) -> None:
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        step = owner.step(b"event", BODY * 100, rows=(ROW,), snapshot=b"state", wake_at=7)
        assert await submit(store, step, owner.step(b"last")) == [None, None]
        await store.release(SESSION, owner.token)
        before = await dump(store, SESSION)
        await store.close()
        store = await SqliteStore.open(path, FakeClock())
        assert await dump(store, SESSION) == before
        await store.close()

    async def test_claims_of_an_earlier_process_are_void_and_count_as_strikes(
        self, path: Path
    ) -> None:
        clock = FakeClock()
        store = await SqliteStore.open(path, clock)
        kept = await created(store, nonce="kept")
        left = await created(store, SESSION._replace(key="released"))
        await store.release(left.session, left.token)
        await store.close()
        store = await SqliteStore.open(path, clock)
        assert await outcomes(store, kept.step(b"late")) == ["Fenced"]
        with pytest.raises(Fenced):
            await store.release(SESSION, kept.token)
        assert (await claim(store, owner="other", nonce="new")).loaded.strikes == 1
        again = await claim(store, left.session, owner="other", nonce="new")
        assert again.loaded.strikes == 0
        await store.close()


class TestRefusing:
    """What cannot be trusted is refused, with what to do, and not touched."""

    @pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "2.99.9"])
    def test_an_sqlite_that_corrupts_its_log_is_refused(self, version: str) -> None:
        with pytest.raises(StoreRefused, match=r"3\.51\.3 is needed: install a newer apsw"):
            checks.check_library(version)

    @pytest.mark.parametrize("version", ["3.51.3", "3.51.10", "3.54.1", "4.0.0"])
    def test_a_repaired_sqlite_is_accepted(self, version: str) -> None:
        checks.check_library(version)

    @pytest.mark.parametrize(
        ("junk", "message"),
        [
            (b"hello", "not an SQLite database"),
            (b"\0" * 4096, "not an SQLite database"),
            (b"SQLite format 3\0" + b"\xff" * 8000, "not an SQLite database|damaged"),
        ],
    )
    @pytest.mark.parametrize("opened", [SqliteStore, SqliteReader])
    async def test_a_file_that_is_no_database_is_refused(
        self, path: Path, junk: bytes, message: str, opened: type
    ) -> None:
        written(path, junk)
        with pytest.raises(StoreRefused, match=message):
            await (opened.open(path, FakeClock()) if opened is SqliteStore else opened.open(path))
        assert content(path) == junk

    @pytest.mark.parametrize(
        ("statement", "message"),
        [
            ("PRAGMA user_version = 99", "newer version .* upgrade perdure"),
            ("PRAGMA application_id = 7", "another program"),
        ],
    )
    @pytest.mark.parametrize("opened", [SqliteStore, SqliteReader])
    async def test_a_file_of_another_version_or_program_is_refused(
        self, path: Path, statement: str, message: str, opened: type
    ) -> None:
        await made(path)
        change(path, statement)
        before = content(path)
        with pytest.raises(StoreRefused, match=message):
            await (opened.open(path, FakeClock()) if opened is SqliteStore else opened.open(path))
        assert content(path) == before

    async def test_a_database_of_another_program_is_refused(self, path: Path) -> None:
        change(path, "CREATE TABLE theirs (x)")
        before = content(path)
        with pytest.raises(StoreRefused, match="another program"):
            await SqliteStore.open(path, FakeClock())
        assert content(path) == before

    async def test_a_schema_of_an_unreleased_build_is_refused(self, path: Path) -> None:
        await made(path)
        change(path, "UPDATE migrations SET checksum = 'x'")
        with pytest.raises(StoreRefused, match="0001_initial"):
            await SqliteStore.open(path, FakeClock())

    async def test_a_refused_file_is_not_left_locked(self, path: Path) -> None:
        written(path, b"hello")
        with pytest.raises(StoreRefused):
            await SqliteStore.open(path, FakeClock())
        await made(written(path, b""))

    async def test_a_folder_in_the_place_of_the_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StoreRefused, match="is a folder: name a file in it"):
            await SqliteStore.open(tmp_path, FakeClock())

    @pytest.mark.parametrize(
        ("folder", "kind"),
        [
            ("/data/agents", "ext4"),
            ("/data/net/agents", "nfs4"),
            ("/data/net work", "cifs"),
            ("/datastore", "overlay"),
            ("/", "overlay"),
        ],
    )
    def test_the_filesystem_of_a_folder_is_that_of_the_innermost_mount(
        self, folder: str, kind: str
    ) -> None:
        mounts = (
            "overlay / overlay rw 0 0\n"
            "/dev/sda1 /data ext4 rw 0 0\n"
            "server:/x /data/net nfs4 rw 0 0\n"
            "//server/x /data/net\\040work cifs rw 0 0\n"
            "broken\n"
        )
        assert checks.filesystem(Path(folder), mounts) == kind

    async def test_a_network_filesystem_is_refused(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "filesystem", lambda folder, mounts: "nfs4")
        with pytest.raises(StoreRefused, match="nfs4"):
            await SqliteStore.open(path, FakeClock())
        assert content(path) is None

    @pytest.mark.parametrize(
        ("found", "refused"),
        [
            ({"journal_mode": "wal", "synchronous": 2}, False),
            ({"journal_mode": "delete", "synchronous": 2}, True),
            ({"journal_mode": "wal", "synchronous": 1}, True),
        ],
    )
    def test_a_setting_that_is_not_taken_is_refused(
        self, path: Path, found: dict[str, object], refused: bool
    ) -> None:
        if not refused:
            checks.check_settings(path, found, "FULL")
            return
        with pytest.raises(StoreRefused):
            checks.check_settings(path, found, "FULL")

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (apsw.CantOpenError("no"), StoreRefused),
            (apsw.ReadOnlyError("no"), StoreRefused),
            (PermissionError("no"), StoreRefused),
            (apsw.FullError("no"), Unavailable),
            (apsw.IOError("no"), Unavailable),
            (StoreLocked("no"), StoreLocked),
        ],
    )
    def test_what_the_system_says_is_said_in_our_words(
        self, path: Path, error: Exception, said: type[Exception]
    ) -> None:
        with pytest.raises(said, match="no"), checks.refusing(path):
            raise error

    async def test_a_setting_that_is_not_taken_leaves_nothing_open(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setitem(checks.SYNCHRONOUS, "FULL", 3)
            with pytest.raises(StoreRefused, match="synchronous=3"):
                await SqliteStore.open(path, FakeClock())
        await made(path)


class TestLocking:
    """One process per file."""

    async def test_a_second_opening_names_the_process_that_has_it(
        self, store: SqliteStore, path: Path
    ) -> None:
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}: stop that process"):
            await SqliteStore.open(path, FakeClock())
        link = path.with_name("link.db")
        link.symlink_to(path)
        with pytest.raises(StoreLocked):
            await SqliteStore.open(link, FakeClock())

    async def test_a_second_process_is_refused(self, store: SqliteStore, path: Path) -> None:
        done = opened_elsewhere(path)
        assert f"StoreLocked: the store {path} is in use by process {os.getpid()}" in done

    async def test_a_closed_store_can_be_opened_again(self, path: Path) -> None:
        for _ in range(3):
            store = await SqliteStore.open(path, FakeClock())
            await store.accept(entry("m1"))
            await store.close()
            await store.close()


class TestReading:
    """`SqliteReader`: a look at a store that another process may be writing."""

    async def test_it_sees_what_is_acknowledged_while_the_store_is_written(
        self, store: SqliteStore, path: Path
    ) -> None:
        reader = await SqliteReader.open(path)
        owner = await created(store)
        for n in range(20):
            row = msgspec.structs.replace(ROW, steps=n)
            step = owner.step(BODY * 100, rows=(row,), blobs=(("address", b"content"),))
            assert await submit(store, step) == [None]
            assert await reader.load(SESSION) == await store.load(SESSION)
            assert await reader.list(RunQuery(tenant="tenant")) == [row]
            assert await reader.read(SESSION, n, 9) == await store.read(SESSION, n, 9)
            assert await reader.blob("address") == b"content"
        await reader.close()

    async def test_it_reads_a_store_that_nobody_has_open(self, path: Path) -> None:
        await made(path)
        reader = await SqliteReader.open(path)
        assert await reader.list(RunQuery(tenant="tenant")) == [ROW]
        facts = await reader.facts()
        assert (facts["journal_mode"], facts["schema_version"]) == ("wal", SCHEMA.newest())
        await reader.close()

    async def test_it_does_not_make_a_store(self, path: Path) -> None:
        with pytest.raises(NotFound, match="there is no store at"):
            await SqliteReader.open(path)
        assert content(path) is None

    async def test_it_does_not_read_what_is_not_yet_a_store(self, path: Path) -> None:
        written(path, b"")
        with pytest.raises(StoreRefused, match="older version"):
            await SqliteReader.open(path)


class TestDamage:
    """A file whose bytes were lost: what cannot be read is said, never guessed."""

    @pytest.fixture
    async def damaged(self, path: Path) -> Path:
        """Return a store whose pages but the first two are noise."""
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        assert await submit(store, *(owner.step(BODY) for _ in range(200))) == [None] * 200
        await store.close()
        spoil(path, 30 * 4096)
        return path

    async def test_a_damaged_page_makes_a_session_unavailable(self, damaged: Path) -> None:
        store = await SqliteStore.open(damaged, FakeClock())
        with pytest.raises(Unavailable, match="CorruptError"):
            await store.read(SESSION, 0, 1000)
        await store.close()

    async def test_a_damaged_schema_is_refused(self, path: Path) -> None:
        await made(path)
        spoil(path, 200, 3200)
        with pytest.raises(StoreRefused, match="damaged"):
            await SqliteStore.open(path, FakeClock())

    @pytest.mark.parametrize(
        "damage",
        ["DELETE FROM blobs", "UPDATE blobs SET body = 'x'", "UPDATE blobs SET body = x'007a00'"],
    )
    async def test_a_lost_payload_reads_as_no_event_and_harms_nobody_else(
        self, path: Path, damage: str
    ) -> None:
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        assert await submit(store, owner.step(BODY * 100)) == [None]
        await store.close()
        change(path, damage.replace("'x'", "x'41'"))
        store = await SqliteStore.open(path, FakeClock())
        for record in await store.read(SESSION, 0, 9):
            assert record.hash == owner.head
            with pytest.raises(UnreadableEvent):
                decode_event(record.body)
        claimed = await claim(store)
        await store.release(SESSION, claimed.token, quarantine="its log cannot be read")
        other = await created(store, SESSION._replace(key="other"))
        assert await submit(store, other.step(BODY)) == [None]
        await store.close()


def beside(path: Path) -> set[str]:
    """Return what is in the folder of a file."""
    return {one.name for one in path.parent.iterdir()}


def change_log(path: Path, content: bytes) -> None:
    """Put something in the place of a store's write-ahead log."""
    path.with_name(f"{path.name}-wal").write_bytes(content)


class TestReadOnly:
    """A backup can be read where nothing can be written."""

    @pytest.fixture
    async def backup(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Return a store in a folder that cannot be written."""
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        assert await submit(store, owner.step(BODY)) == [None]
        await store.close()
        monkeypatch.setattr(checks.os, "access", lambda *_: False)
        return path

    async def test_a_store_is_read_and_nothing_is_written_beside_it(self, backup: Path) -> None:
        reader = await SqliteReader.open(backup)
        assert [record.body for record in await reader.read(SESSION, 0, 9)] == [BODY]
        await reader.close()
        assert beside(backup) == {backup.name, f"{backup.name}.lock"}

    async def test_a_log_beside_it_that_would_be_missed_is_named(self, backup: Path) -> None:
        change_log(backup, b"x")
        with pytest.raises(StoreRefused, match="write-ahead log"):
            await SqliteReader.open(backup)


async def test_a_store_has_an_identity_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    """Idempotency keys are derived from it: another store's are others."""
    found = []
    for name in ("a.db", "b.db", "a.db"):
        store = await SqliteStore.open(tmp_path / name, FakeClock())
        found.append(store.identity)
        await store.close()
    assert found[0] == found[2] != found[1]


class TestSchema:
    """Migrations run once, in order, each in one transaction."""

    NEXT = SCHEMA.newest() + 1
    STEP = Migration(NEXT, "more", "CREATE TABLE more (x); INSERT INTO more VALUES (1);")
    BROKEN = Migration(NEXT + 1, "not", "CREATE TABLE yet (x); INSERT INTO nowhere (1);")

    def test_later_steps_are_run_once(self, path: Path) -> None:
        db = apsw.Connection(str(path))
        for steps in ([], [self.STEP], [self.STEP]):
            SCHEMA.migrate(db, path, 1, [*SCHEMA.migrations(), *steps])
        assert db.execute("SELECT x FROM more").get == 1
        assert db.pragma("user_version") == self.NEXT
        numbers = [number for (number,) in db.execute("SELECT number FROM migrations")]
        assert numbers == [*range(1, self.NEXT + 1)]

    def test_a_step_that_fails_leaves_nothing_behind(self, path: Path) -> None:
        db = apsw.Connection(str(path))
        steps = [*SCHEMA.migrations(), self.STEP]
        with pytest.raises(apsw.SQLError):
            SCHEMA.migrate(db, path, 1, [*steps, self.BROKEN])
        assert db.pragma("user_version") == self.NEXT
        assert not db.table_exists(None, "yet")

    def test_the_scan_for_due_sessions_passes_over_no_session_of_another_agent(self) -> None:
        """Its work must not grow with what is parked: both of its queries search one index."""
        db = apsw.Connection(":memory:")
        SCHEMA.migrate(db, Path("memory"), 1, SCHEMA.migrations())
        values = {"agent": "a", "now": 1, "limit": 1, "reads": None}
        for query, bounds in ((reading.UNOWNED_DUE, "<"), (reading.UNOWNED_NEXT, ">")):
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", values)]
            assert plan == [
                f"SEARCH sessions USING INDEX sessions_due (agent=? AND wake_at{bounds}?)"
            ]

    def test_the_migrations_are_numbered_without_a_gap(self) -> None:
        numbers = [step.number for step in SCHEMA.migrations()]
        assert numbers == list(range(1, len(numbers) + 1))

    @pytest.mark.parametrize(
        ("query", "index"),
        [
            (reading.UNOWNED_DUE, "sessions_due"),
            (reading.UNOWNED_NEXT, "sessions_due"),
            (reading.ORPHANED_DUE, "sessions_owned"),
            (reading.ORPHANED_NEXT, "sessions_owned"),
            (reading.INBOX, "inbox_unconsumed"),
            (f"{reading.RUNS} WHERE tenant = ? {NEWEST}", "runs_newest"),
            (f"{reading.RUNS} WHERE tenant = ? AND status = ? {NEWEST}", "runs_with_status"),
            (f"{reading.RUNS} WHERE tenant = ? AND agent = ? AND key = ? {NEWEST}", "runs_of_sess"),
        ],
    )
    def test_what_is_asked_often_touches_only_what_it_finds(
        self, path: Path, query: str, index: str
    ) -> None:
        db = apsw.Connection(str(path))
        SCHEMA.migrate(db, path, 1, SCHEMA.migrations())
        query = re.sub(r"\?|:\w+", "1", query)
        steps = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()]
        assert any(f"INDEX {index}" in step for step in steps), steps
        assert not any(step in ("SCAN sessions", "SCAN runs", "SCAN inbox") for step in steps)
        assert "nodes" in query or not any("TEMP B-TREE" in step for step in steps), steps

    async def test_an_event_takes_little_more_than_its_bytes(self, path: Path) -> None:
        store = await SqliteStore.open(path, FakeClock(), synchronous="NORMAL")
        owners = [await created(store, SESSION._replace(key=f"k{n}")) for n in range(20)]
        steps = [owner.step(BODY) for _ in range(250) for owner in owners]
        assert await submit(store, *steps) == [None] * len(steps)
        await store.close()
        assert len(content(path) or b"") / len(steps) < 1.35 * (len(BODY) + 100)

    async def test_a_large_snapshot_is_not_kept_when_a_later_one_comes(self, path: Path) -> None:
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        for n in range(3):
            assert await submit(store, owner.step(b"event", snapshot=BODY * (100 + n))) == [None]
        await store.close()
        db = apsw.Connection(str(path))
        assert db.execute("SELECT count(*) FROM blobs").get == 0
        assert db.execute("SELECT count(*) FROM snapshots").get == 1
        assert db.execute("SELECT length(body) FROM snapshots").get < len(BODY) * 10
