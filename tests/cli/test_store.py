"""`perdure store`: a copy beside a process that writes, whole and suspect; and what is refused."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from perdure.adapters.sqlite import backup
from perdure.adapters.stores.sqlite import SqliteReader, SqliteStore
from perdure.bootstrap import back_up
from perdure.core.errors import NotFound, StoreRefused
from perdure.ports.session_store import RunQuery
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import claim, created, submit
from tests.cli.terminal import Terminal

STORE = "sqlite:///.perdure/perdure.db"


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """Give a directory with agents in it."""
    return Terminal(tmp_path)


async def suspects(path: Path) -> list[bool]:
    """Say of each session of a store whether it is suspect."""
    reader = await SqliteReader.open(path)
    try:
        rows = await reader.list(RunQuery(tenant="default"))
        loaded = [await reader.load(row.session) for row in rows]
    finally:
        await reader.close()
    return [each is not None and each.suspect is not None for each in loaded]


async def test_a_copy_is_whole_and_suspect_and_the_original_is_not(terminal: Terminal) -> None:
    assert terminal.run("count the files").code == 0
    copied = terminal.perdure("store", "backup", "copies/monday", "--json")
    assert copied.code == 0, copied.err
    assert [line["file"] for line in copied.lines] == ["copies/monday/perdure.db"]
    copies = terminal.directory / "copies"
    assert [path.name for path in copies.rglob("*")] == ["monday", "perdure.db"]
    copy = copies / "monday" / "perdure.db"
    assert copy.stat().st_mode & 0o077 == 0
    assert terminal.perdure("verify", str(copy)).code == 0
    assert await suspects(copy) == [True]
    assert await suspects(terminal.directory / ".perdure" / "perdure.db") == [False]


async def test_a_copy_is_made_beside_a_process_that_writes(tmp_path: Path) -> None:
    """It has every session that was there when it began, each as one moment saw it."""
    (tmp_path / "live").mkdir()
    clock = FakeClock()
    store = await SqliteStore.open(tmp_path / "live" / "server.db", clock)
    owner = await created(store)
    assert await submit(store, owner.step(b'{"type":"a"}')) == [None]
    [copy] = await back_up(tmp_path / "live", tmp_path / "copy", clock)
    assert await submit(store, owner.step(b'{"type":"b"}')) == [None]
    identity = store.identity
    await store.close()
    restored = await SqliteStore.open(copy, clock)
    try:
        claimed = await claim(restored)
        assert claimed.loaded.version == 1
        assert claimed.loaded.suspect is not None
        assert restored.identity == identity, "the keys of what is sent again are the same"
    finally:
        await restored.close()


async def test_the_catalog_is_copied_after_the_sessions(tmp_path: Path) -> None:
    """So that it knows whatever they name. Files of others are left alone."""
    live = tmp_path / "live"
    live.mkdir()
    for name, kind in (("a", 0x50524443), ("z", 0x50524452), ("notes", 7)):
        with apsw.Connection(str(live / f"{name}.db")) as db:
            db.pragma("application_id", kind)
        db.close()
    assert [path.stem for path in backup.files(live, (0x50524452, 0x50524443))] == ["z", "a"]


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("live/server.db", b"no database at all" * 99, StoreRefused, "not an SQLite database"),
        ("live/nothing.txt", b"", NotFound, "nothing of perdure's"),
    ],
)
async def test_what_cannot_be_copied_is_refused(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], said: str
) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        await back_up(tmp_path / "live", tmp_path / "copy", FakeClock())
    assert not (tmp_path / "copy").is_dir()


def test_a_folder_that_is_there_is_left_alone(terminal: Terminal) -> None:
    assert terminal.run("count the files").code == 0
    done = terminal.perdure("store", "backup", ".")
    assert (done.code, done.err) == (2, "perdure: . is there already: name a folder that is not\n")


async def test_a_copy_of_what_is_damaged_gets_no_name(tmp_path: Path) -> None:
    """What was begun is in the way of nobody, and begun again."""
    live, to = tmp_path / "live", tmp_path / "copy"
    live.mkdir()
    store = await SqliteStore.open(live / "server.db", FakeClock())
    owner = await created(store)
    for _ in range(40):
        assert await submit(store, owner.step(b'{"type":"a","text":"%s"}' % (b"x" * 4000))) == [
            None
        ]
    await store.close()
    whole = (live / "server.db").read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    (live / "server.db").write_bytes(whole[:middle] + b"\xff" * 4096 + whole[middle + 4096 :])
    with pytest.raises(StoreRefused, match="damaged"):
        await back_up(live, to, FakeClock())
    assert not to.exists()
    (live / "server.db").write_bytes(whole)
    assert await back_up(live, to, FakeClock()) == [to / "server.db"]


async def test_a_store_can_be_distrusted_by_hand(terminal: Terminal) -> None:
    assert terminal.run("count the files").code == 0
    done = terminal.perdure("store", "distrust", "--store", STORE)
    assert (done.code, done.out) == (0, "every session of the store is suspect now\n")
    assert await suspects(terminal.directory / ".perdure" / "perdure.db") == [True]


def test_show_measures_what_an_acknowledgement_is_worth(terminal: Terminal) -> None:
    assert terminal.run("count the files").code == 0
    [first] = terminal.perdure("store", "show", "--json").lines
    [again] = terminal.perdure("store", "show", "--json").lines
    assert (first["durability"], first["synchronous"]) == ("fsynced", 2)
    assert first["identity"] == again["identity"]
    assert "durability           fsynced\n" in terminal.perdure("store", "show").out


@pytest.mark.parametrize("verb", ["show", "distrust"])
def test_a_store_that_is_not_there_is_not_made(terminal: Terminal, verb: str) -> None:
    done = terminal.perdure("store", verb, "--store", "sqlite:///none.db")
    assert (done.code, done.err) == (3, "perdure: there is no store at sqlite:///none.db\n")
    assert not (terminal.directory / "none.db").exists()


def test_a_store_in_use_is_left_to_its_process(terminal: Terminal) -> None:
    running = terminal.start("run", "agents.py:helper", "please pay", HANG="1")
    try:
        assert running.stdout is not None
        assert any("paying" in line for line in running.stdout)
        assert terminal.perdure("store", "distrust").code == 7
        assert terminal.perdure("store", "backup", "copy").code == 0
    finally:
        running.kill()
        running.communicate()


def test_what_a_restored_store_was_at_is_not_done_again(terminal: Terminal) -> None:
    """The copy is made while the payment is under way; the original is lost after it."""
    running = terminal.start("run", "agents.py:helper", "please pay", HANG="1")
    assert running.stdout is not None
    assert any("paying" in line for line in running.stdout)
    assert terminal.perdure("store", "backup", "copy").code == 0
    running.kill()
    running.communicate()
    restored = "sqlite:///copy/perdure.db"
    resumed = terminal.perdure("resume", "--store", restored)
    assert resumed.code == 4, resumed
    [run] = terminal.perdure("runs", "list", "--store", restored, "--json").lines
    assert (run["status"], run["code"]) == ("failed", "suspect")
    assert terminal.ran() == ["pay 5"]
    again = terminal.perdure("run", "agents.py:helper", "count the files", "--store", restored)
    assert again.code == 0, "what is asked after the restore runs as always"
    assert terminal.perdure("verify", "copy/perdure.db").code == 0
