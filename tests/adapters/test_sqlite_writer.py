"""The writer of the SQLite store: group commit, what is told when, and what a failure does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from perdure.adapters.sqlite.group_commit import BATCH_MAX
from perdure.adapters.stores.sqlite import SqliteStore, writer
from perdure.core.errors import StoreError, Unavailable
from perdure.core.limits import INBOX_ENTRIES_MAX
from perdure.ports import faults
from perdure.ports.session_store import CommitDone, NotClaimed, RunQuery
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

OTHER = SESSION._replace(key="other")
BODY = b'{"type":"model_replied","text":"' + b"word " * 190 + b'"}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the store is."""
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """Open a store that leaves the syncing to the system: these tests are about order."""
    store = await SqliteStore.open(path, FakeClock(), synchronous="NORMAL")
    yield store
    await store.close()


class Hook:
    """What the writer does at its fault points: it tells, and stops or fails where it is told."""

    def __init__(self) -> None:
        self.failing: str | None = None
        self.seen: Callable[[str], None] = lambda site: None
        self.gate = threading.Event()
        self.gate.set()
        self.stopped = threading.Event()
        self.committed = threading.Event()

    def __call__(self, site: str) -> None:
        self.seen(site)
        if site == "store.before_begin" and not self.gate.is_set():
            self.stopped.set()
            self.gate.wait()
        if site == "store.after_commit":
            self.committed.set()
        if site == self.failing:
            raise OSError(f"planned at {site}")


@pytest.fixture
def hook() -> Iterator[Hook]:
    """Install a hook."""
    hook = Hook()
    faults.install(hook)
    yield hook
    faults.install(None)


@asynccontextmanager
async def together(store: SqliteStore, hook: Hook) -> AsyncIterator[None]:
    """Let all that is begun inside wait, behind one other transaction."""
    hook.gate.clear()
    first = asyncio.ensure_future(store.renew("nobody", 1))
    await asyncio.to_thread(hook.stopped.wait)
    yield
    await asyncio.sleep(0)
    hook.gate.set()
    assert await first


async def on_the_writer(store: SqliteStore, statement: str) -> None:
    """Run a statement on the connection that writes."""
    await store._ask(None, lambda db, ids: db.execute(statement).fetchall())


class TestGroupCommit:
    """Whatever waits is one transaction, and is told at once."""

    @pytest.mark.parametrize(
        ("waiting", "transactions"),
        [(1, 1), (500, 1), (BATCH_MAX, 1), (BATCH_MAX + 1, 2), (2 * BATCH_MAX + 500, 3)],
    )
    async def test_all_that_waits_is_one_transaction(
        self, store: SqliteStore, hook: Hook, waiting: int, transactions: int
    ) -> None:
        owners = [await created(store, SESSION._replace(key=str(n))) for n in range(10)]
        steps = [owners[n % 10].step(b"event") for n in range(waiting)]
        before = store.facts()["transactions"]
        async with together(store, hook):
            told = asyncio.ensure_future(submit(store, *steps))
        assert await told == [None] * waiting
        assert store.facts()["transactions"] - before == 1 + transactions

    async def test_a_batch_of_everything_is_one_transaction(
        self, store: SqliteStore, hook: Hook
    ) -> None:
        owner, other = await created(store), await created(store, OTHER)
        before = store.facts()["transactions"]
        async with together(store, hook):
            asked = asyncio.gather(
                outcomes(store, owner.step(b"one"), other.step(b"one")),
                store.accept(entry("m1")),
                outcomes(store, owner.step(b"two", consumed=("m1",))),
                store.release(OTHER, other.token),
                store.claim(OTHER, "node", "again"),
                store.renew("node", 5),
                outcomes(store, owner.step(b"three")),
            )
        one, _, two, _, _, _, three = await asked
        assert (one, two, three) == (["written"] * 2, ["written"], ["written"])
        assert store.facts()["transactions"] - before == 2
        assert [r.body for r in await store.read(SESSION, 0, 9)] == [b"one", b"two", b"three"]

    async def test_what_is_gathered_is_written_before_what_was_submitted_after_it(
        self, store: SqliteStore, hook: Hook
    ) -> None:
        owner = await created(store)
        names = [f"m{n}" for n in range(INBOX_ENTRIES_MAX)]
        await asyncio.gather(*(store.accept(entry(name)) for name in names))
        async with together(store, hook):
            asked = asyncio.gather(
                outcomes(store, owner.step(b"one", consumed=("m7",), postponed=999)),
                store._ask(None, lambda db, ids: db.execute("SELECT count(*) FROM events").get),
                store.accept(entry("there is room for this")),
            )
        written, events, receipt = await asked
        assert (written, receipt.duplicate, events) == (["written"], False, 1)

    async def test_a_batch_is_told_in_one_callback(
        self, store: SqliteStore, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner = await created(store)
        loop = asyncio.get_running_loop()
        calls: list[object] = []
        real = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *arguments: Any, **named: Any) -> asyncio.Handle:
            calls.append(callback)
            return real(callback, *arguments, **named)

        async with together(store, hook):
            told = asyncio.gather(submit(store, *(owner.step(b"event") for _ in range(100))))
            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        assert await told == [[None] * 100]
        assert len(calls) == 2

    async def test_nobody_learns_of_a_step_before_its_commit_has_returned(
        self, store: SqliteStore, hook: Hook, path: Path
    ) -> None:
        owner = await created(store)
        told: list[StoreError | None] = []
        seen: list[tuple[str, int, int]] = []

        def look(site: str) -> None:
            db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            seen.append((site, db.execute("SELECT count(*) FROM events").get, len(told)))
            db.close()

        hook.seen = look
        store.commit(owner.step(b"event"), told.append)
        await store.renew("node", 1)
        assert told == [None]
        assert seen[:3] == [
            ("store.before_begin", 0, 0),
            ("store.before_commit", 0, 0),
            ("store.after_commit", 1, 0),
        ]

    async def test_a_callback_that_raises_does_not_keep_others_from_being_told(
        self, store: SqliteStore, hook: Hook
    ) -> None:
        owner = await created(store)
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, why: reported.append(why))
        told: list[int] = []

        def teller(n: int) -> CommitDone:
            def done(error: StoreError | None) -> None:
                if n == 1:
                    raise RuntimeError("planned")
                told.append(n)

            return done

        async with together(store, hook):
            for n in range(4):
                store.commit(owner.step(b"event"), teller(n))
        assert await submit(store, owner.step()) == [None]
        assert told == [0, 2, 3]
        assert [str(why["exception"]) for why in reported] == ["planned"]

    async def test_a_waiter_that_was_cancelled_disturbs_nobody(
        self, store: SqliteStore, hook: Hook
    ) -> None:
        async with together(store, hook):
            cancelled = asyncio.ensure_future(store.accept(entry("m1")))
            kept = asyncio.ensure_future(store.accept(entry("m2")))
            await asyncio.sleep(0)
            cancelled.cancel()
        assert (await kept).id == "m2"
        assert cancelled.cancelled()
        assert (await store.accept(entry("m1"))).duplicate


class TestOneByOne:
    """A batch with something wrong in it is written again, each operation for itself."""

    async def test_what_cannot_be_stored_is_refused_alone(self, store: SqliteStore) -> None:
        owner, other = await created(store), await created(store, OTHER)
        poison = msgspec.structs.replace(owner.step(b"event"), wake_at=1 << 70)
        steps = [other.step(b"one"), poison, other.step(b"two")]
        assert await outcomes(store, *steps) == ["written", "Conflict", "written"]
        again = await claim(store, nonce="again")
        assert await outcomes(store, again.step(b"event")) == ["written"]

    async def test_a_refusal_says_what_is_wrong(self, store: SqliteStore) -> None:
        old = await created(store)
        owner = await claim(store, nonce="new")
        step, change = owner.step(b"event"), msgspec.structs.replace
        wrong = {
            "claim 1 of tenant/agent/key is not the current one": old.step(b"event"),
            "tenant/agent/key is at 0, not at 7": change(step, expected=7, records=()),
            "records do not follow position 0 of tenant/agent/key": change(
                step, records=(step.records[0]._replace(seq=2),)
            ),
            "a consumed command is not in the inbox of tenant/agent/key": change(
                step, consumed=("first",)
            ),
            "cannot be stored": change(step, wake_at=1 << 70),
        }
        for message, refused in wrong.items():
            (error,) = await submit(store, refused)
            assert message in str(error)

    async def test_operations_of_all_kinds_are_done_once_when_a_batch_is_written_again(
        self, store: SqliteStore, hook: Hook
    ) -> None:
        zombie = await created(store)
        owner = await claim(store, nonce="new")
        async with together(store, hook):
            asked = asyncio.gather(
                store.accept(entry("m1")),
                outcomes(store, zombie.step(b"late")),
                store.accept(entry("m1")),
                outcomes(store, owner.step(b"event", consumed=("m1",))),
                store.claim(OTHER, "node", "x"),
                store.accept(entry("m1", session=OTHER)),
            )
        accepted, late, repeated, event, absent, fresh = await asked
        assert (accepted.duplicate, repeated.duplicate, fresh.duplicate) == (False, True, False)
        assert (late, event, absent) == (["Fenced"], ["written"], NotClaimed("absent"))
        assert [record.body for record in await store.read(SESSION, 0, 9)] == [b"event"]

    async def test_what_was_decided_on_a_refused_step_is_refused_in_a_later_batch_too(
        self, store: SqliteStore, hook: Hook
    ) -> None:
        owner = await created(store)
        wrong = msgspec.structs.replace(owner.step(b"never"), expected=1)
        right_by_number = msgspec.structs.replace(owner.step(b"on never"), expected=0)
        right_by_number = msgspec.structs.replace(
            right_by_number, records=(right_by_number.records[0]._replace(seq=1),)
        )
        told: list[StoreError | None] = []
        hook.committed.clear()
        store.commit(wrong, told.append)
        # The event loop stands still meanwhile: the owner cannot have been told.
        hook.committed.wait()
        assert await outcomes(store, right_by_number) == ["Conflict"]
        assert [type(error).__name__ for error in told] == ["Conflict"]
        assert await outcomes(store, right_by_number) == ["written"]


async def everything(store: SqliteStore, owner: Claimant) -> dict[str, str]:
    """Ask for every operation; return the name of what was raised or told."""
    asked = {
        "accept": store.accept(entry("m9")),
        "claim": store.claim(SESSION, "node", "n"),
        "load": store.load(SESSION),
        "renew": store.renew("node", 1),
        "release": store.release(SESSION, owner.token),
        "due": store.due(0, 1),
        "read": store.read(SESSION, 0, 1),
        "list": store.list(RunQuery(tenant="tenant")),
        "blob": store.blob("address"),
    }
    found = await asyncio.gather(*asked.values(), return_exceptions=True)
    names = {name: type(one).__name__ for name, one in zip(asked, found, strict=True)}
    return names | {"commit": (await outcomes(store, owner.step(b"more")))[0]}


class TestFailing:
    """After a failed write the store takes nothing more; what was acknowledged stays."""

    @pytest.mark.parametrize(
        ("site", "written"),
        [
            ("store.before_begin", False),
            ("store.before_commit", False),
            ("store.after_commit", True),
        ],
    )
    async def test_a_failure_leaves_the_outcome_to_be_read_again(
        self, path: Path, hook: Hook, site: str, written: bool
    ) -> None:
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        assert await submit(store, owner.step(b"acknowledged")) == [None]
        hook.failing = site
        step = owner.step(b"in doubt")
        found = await asyncio.gather(
            submit(store, step), store.accept(entry("m1")), return_exceptions=True
        )
        assert isinstance(found[1], Unavailable)
        assert [type(error).__name__ for error in found[0]] == ["Broken"]
        hook.failing = None
        assert set((await everything(store, owner)).values()) == {"Broken"}
        assert f"planned at {site}" in store.facts()["failure"]
        await store.close()
        store = await SqliteStore.open(path, FakeClock())
        bodies = [record.body for record in await store.read(SESSION, 0, 9)]
        assert bodies == [b"acknowledged", b"in doubt"][: 1 + written]
        await store.close()

    async def test_a_full_disk_fails_the_store_and_loses_nothing_acknowledged(
        self, path: Path
    ) -> None:
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        await on_the_writer(store, "PRAGMA max_page_count = 60")
        acknowledged = 0
        error: StoreError | None = None
        while error is None:
            (error,) = await submit(store, owner.step(BODY))
            acknowledged += error is None
        assert isinstance(error, Unavailable)
        assert "FullError" in str(error)
        assert set((await everything(store, owner)).values()) == {"Broken"}
        await store.close()
        store = await SqliteStore.open(path, FakeClock())
        assert len(await store.read(SESSION, 0, 1000)) == acknowledged > 10
        heir = await claim(store, nonce="heir")
        assert await submit(store, heir.step(b"there is room again")) == [None]
        await store.close()

    def test_a_file_that_may_not_grow_fails_the_store(self, path: Path) -> None:
        program = Path(__file__).with_name("sqlite_crashes.py")
        done = subprocess.run(
            [sys.executable, str(program), "fill", str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.startswith("Broken "), done.stdout + done.stderr
        acknowledged = int(done.stdout.split()[1])

        async def count() -> int:
            store = await SqliteStore.open(path, FakeClock())
            records = await store.read(SESSION, 0, 10_000)
            await store.close()
            return len(records)

        # The one that failed is in doubt: its bytes may have reached the disk.
        assert asyncio.run(count()) - acknowledged in (0, 1)

    async def test_a_closed_store_is_unavailable(self, path: Path) -> None:
        store = await SqliteStore.open(path, FakeClock())
        owner = await created(store)
        told: list[StoreError | None] = []
        store.commit(owner.step(b"before"), told.append)
        await store.close()
        assert set((await everything(store, owner)).values()) == {"Broken"}
        assert told == [None]
        assert store.facts()["log_bytes"] == 0


class TestCheckpoints:
    """The log is written back by the connection that writes."""

    async def test_the_log_does_not_grow_for_ever(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 100)
        store = await SqliteStore.open(path, FakeClock(), synchronous="NORMAL")
        owner = await created(store)
        for _ in range(200):
            assert await submit(store, *(owner.step(BODY) for _ in range(10))) == [None] * 10
        facts = store.facts()
        assert facts["log_bytes"] < 200 * 4096 < facts["database_bytes"]
        await store.close()

    async def test_a_reader_in_the_way_delays_a_checkpoint_and_nothing_else(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 10)
        store = await SqliteStore.open(path, FakeClock(), synchronous="NORMAL")
        owner = await created(store)
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        with db:
            assert db.execute("SELECT count(*) FROM events").get == 0
            for _ in range(20):
                assert await submit(store, owner.step(BODY)) == [None]
            assert db.execute("SELECT count(*) FROM events").get == 0
        db.close()
        assert await submit(store, owner.step(BODY)) == [None]
        assert store.facts()["failure"] is None
        await store.close()


class TestCrashing:
    """Killed at any moment: every acknowledged commit and command is there."""

    def test_thirty_kills_lose_nothing_that_was_acknowledged(self, path: Path) -> None:
        program = Path(__file__).with_name("sqlite_crashes.py")
        done = subprocess.run(
            [sys.executable, str(program), "crash", str(path), "30", "1"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        report = msgspec.json.decode(done.stdout)
        assert report["kills"] == 30
        assert report["acknowledged"] > 1_000
        assert report["lost"] == []
