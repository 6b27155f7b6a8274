"""What a disk is tried with: two lives of the SQLite store, and the judge of what they leave.

The product's own code runs over a disk of `perdure.testing.disk`: its settings, migrations, writer
thread, commits and checkpoints, with an orderly end between the lives. What the file holds after
each transaction of an undisturbed run is the reference for every disturbed one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from perdure.adapters.sqlite import checks
from perdure.adapters.sqlite.schema import Migration
from perdure.adapters.stores.sqlite import operations, reading, writer
from perdure.adapters.stores.sqlite.commits import RowIds, write_all
from perdure.adapters.stores.sqlite.schema import SCHEMA
from perdure.core import events as e
from perdure.core.codec import genesis, seal, verify_chain
from perdure.core.errors import Conflict, PerdureError, Unavailable
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import Claimed, InboxEntry, StepCommit, Token
from perdure.testing.disk import Disk

NOW = 1_700_000_000_000
PATH = Path("/nowhere/store.db")
CHECKPOINT_PAGES = 25
"""So few that the short workload makes checkpoints, and writes over a log that was copied."""

A, B = SessionId("t", "agent", "a"), SessionId("t", "agent", "b")
TABLES = ("sessions", "events", "inbox", "snapshots", "runs", "blobs", "nodes")
SESSIONS = "SELECT tenant, agent, key, epoch, version, head, unconsumed FROM sessions"
LARGE = "".join(str(n * n) for n in range(1_500)) * 9
"""More than 64 KiB, stored apart and compressed to a few pages."""

Contents = dict[str, list[Any]]
Groups = Iterator[list[writer.Operation]]


class Author:
    """The owner of a session: knows its version and head, and writes its steps."""

    def __init__(self, session: SessionId) -> None:
        self.session = session
        self.token = Token(1, "nonce-1")
        self.version = 0
        self.head = genesis(session)

    def step(self, *contents: str, **more: Any) -> writer.Commit:
        """Return the commit of one message for each content."""
        events = [e.MessageReceived(at=NOW, message="m", content=content) for content in contents]
        expected, records = self.version, seal(self.head, self.version, events)
        self.version, self.head = records[-1].seq, records[-1].hash
        step = StepCommit(self.session, self.token, expected, tuple(records), **more)
        return writer.Commit(step, lambda error: None)

    def claim(self) -> writer.Request:
        """Return the request for the token."""
        nonce = self.token.nonce
        return writer.Request(
            self.session,
            lambda db, ids: operations.claim(db, ids, self.session, "node", nonce, NOW),
            None,
        )

    def release(self, snapshot: bytes) -> writer.Request:
        """Return the request that gives the token back."""
        kept = (self.version, snapshot)
        return writer.Request(
            self.session,
            lambda db, ids: operations.release(db, ids, self.session, self.token, kept, None),
            None,
        )


def accept(session: SessionId, name: str) -> writer.Request:
    """Return the request that puts a command into an inbox, with the row of its run."""
    entry = InboxEntry(name, session, f'"{name}"'.encode(), NOW)
    return writer.Request(
        session, lambda db, ids: operations.accept(db, entry, row(session, name), 0, NOW), None
    )


def row(session: SessionId, name: str, status: Any = "queued") -> RunRow:
    """Return the row of a run."""
    return RunRow(id=name, session=session, status=status, created_at=NOW)


def lives() -> Iterator[Groups]:
    """Two lives of a node over one store; the second knows what the first has written."""
    a, b = Author(A), Author(B)
    yield first_life(a, b)
    a.token = b.token = Token(2, "nonce-2")
    yield second_life(a, b)


def first_life(a: Author, b: Author) -> Groups:
    """Two sessions, alone and together, with everything that a commit can carry."""
    yield [accept(A, "a1")]
    yield [accept(A, "a2"), accept(B, "b1")]
    yield [a.claim(), b.claim()]
    yield [a.step("hello", "again", consumed=("a1",), rows=(row(A, "a1", "running"),))]
    yield [a.step("two"), b.step(LARGE, consumed=("b1",)), a.step("three", postponed=1)]
    yield [b.step("x" * 5_000, snapshot=b"s" * 3_000, blobs=(("f" * 64, b"blob"),))]
    late = writer.Commit(StepCommit(B, b.token, 0, wake_at=NOW), lambda error: None)
    yield [a.step("four", consumed=("a2",)), late, accept(A, "a3")]
    yield [a.step("five", wake_at=NOW + 1)]
    yield [a.step(LARGE + LARGE, rows=(row(A, "a1", "completed"),)), a.release(b"snapshot of a")]


def second_life(a: Author, b: Author) -> Groups:
    """Take over a session that was released and one that was being run."""
    yield [accept(B, "b2")]
    yield [a.claim(), b.claim()]
    yield [b.step("more", consumed=("b2",)), a.step("y" * 20_000, consumed=("a3",))]
    yield [b.step("last", snapshot=b"S" * 9_000)]
    yield [b.release(b"snapshot of b")]


class Node:
    """Gives a writer one group after the other, and notes what was acknowledged.

    It takes the place of the event loop and runs what it is given at once, in the thread of the
    writer: so the next group waits before the writer looks again, and every run is the same.
    """

    def __init__(
        self, db: apsw.Connection, disk: Disk, groups: Groups, noted: Callable[[], None]
    ) -> None:
        self.refused = 0
        self._disk = disk
        self._groups = groups
        self._noted = noted
        self._ended = threading.Event()
        self.writer = writer.Writer(db, str(PATH), self)  # type: ignore[arg-type]
        self._submit()

    def wait(self) -> None:
        """Wait until everything is written, or one write has failed."""
        assert self._ended.wait(60), "the writer is stuck"

    def call_soon_threadsafe(self, tell: Callable[..., None], batch: Any, refused: Any) -> None:
        """Do as an event loop does, but now."""
        tell(batch, refused)
        self.refused += sum(isinstance(one.error, Conflict) for one in batch)
        if any(isinstance(one.error, Unavailable) for one in batch):
            self._ended.set()
        else:
            self._noted()
            self._submit()

    def time(self) -> float:
        """Stand still, so that a batch is told in one turn."""
        return 0.0

    def _submit(self) -> None:
        group = next(self._groups, None)
        if group is None:
            self._disk.phase = "close"
            self._ended.set()
        for operation in group or ():
            self.writer.submit(operation)


def start(disk: Disk, level: str) -> apsw.Connection:
    """Open the store as `SqliteStore` does."""
    db = checks.connect_to_write(
        PATH, "FULL" if level == "FULL" else "NORMAL", connect=disk.connect
    )
    try:
        if level == "OFF":
            db.pragma("synchronous", "OFF")
        set_up(db)
    except BaseException:
        db.close()
        raise
    return db


def set_up(db: apsw.Connection) -> None:
    """Bring the schema up to date and void the claims of the dead."""
    with checks.refusing(PATH):
        SCHEMA.migrate(db, PATH, NOW, migrations())
        operations.free_claims(db)


@cache
def migrations() -> list[Migration]:
    """Read them once: they are files, and thousands of cases need them."""
    return SCHEMA.migrations()


class Ended(NamedTuple):
    """How a run came to its end: the steps that were refused, and what the store said at last."""

    refused: int
    failure: str | None = None


def run(disk: Disk, level: str, noted: Callable[[apsw.Connection], None]) -> Ended:
    """Run both lives, until the end or until the store fails or cannot be opened."""
    refused = 0
    for groups in lives():
        try:
            disk.phase = "open"
            db = start(disk, level)
        except PerdureError as error:
            return Ended(refused, str(error))
        noted(db)
        with _small_log():
            disk.phase = "work"
            node = Node(db, disk, groups, partial(noted, db))
            node.wait()
            # An orderly end: it makes a checkpoint and unlinks the log, unless the store failed.
            node.writer.stop()
        refused += node.refused
        if node.writer.failure is not None:
            return Ended(refused, node.writer.failure)
    return Ended(refused)


@contextmanager
def _small_log() -> Iterator[None]:
    usual, writer.CHECKPOINT_PAGES = writer.CHECKPOINT_PAGES, CHECKPOINT_PAGES
    try:
        yield
    finally:
        writer.CHECKPOINT_PAGES = usual


class Reference(NamedTuple):
    """The undisturbed run: what the file held after each transaction, and what it took."""

    states: list[Contents]
    operations: int
    refused: int


@cache
def reference(level: str) -> Reference:
    """Run to the end, and look after each transaction."""
    disk, states = Disk(), list[Contents]()
    ended = run(disk, level, lambda db: states.append(contents(db)))
    assert ended.failure is None, ended.failure
    return Reference(states, disk.operations, ended.refused)


class Held(NamedTuple):
    """What a file was found to hold, and held when each session had gone on by a step.

    `wrong` says what is damaged; without `contents` there was no store yet.
    """

    contents: Contents | None = None
    later: Contents | None = None
    wrong: str = ""


def look(disk: Disk) -> Held:
    """Open what a disk holds as the next process does, check it, and go on with each session.

    The power is lost after that.
    """
    held = later = None
    try:
        db = checks.connect_to_write(PATH, "FULL", connect=disk.connect)
        try:
            if (damage := db.pragma("integrity_check")) != "ok":
                return Held(wrong=str(damage).replace("\n", "; "))
            if db.pragma("user_version"):
                held = contents(db)
            set_up(db)
            audit(db)
            go_on(db)
            later = contents(db)
        finally:
            disk.die()
            db.close()
    except (AssertionError, PerdureError, apsw.Error) as error:
        return Held(held, wrong=f"{type(error).__name__}: {error}")
    return Held(held, later)


def judge(held: Held, states: list[Contents], acknowledged: int) -> tuple[str, str]:
    """Say "lost" or "corrupt" and why, or nothing if all is well.

    `acknowledged` is how many of the states of the undisturbed run somebody was told of.
    """
    if held.wrong:
        return "corrupt", held.wrong
    if held.contents is None:
        return ("lost", "everything") if acknowledged else ("", "")
    if held.contents not in states:
        return "corrupt", "it holds what no transaction has left"
    missing = acknowledged - 1 - states.index(held.contents)
    if missing < -1:
        return "corrupt", "it holds what was not written yet"
    return ("lost", f"the last {missing} acknowledged transactions") if missing > 0 else ("", "")


def contents(db: apsw.Connection) -> Contents:
    """Return every row of every table."""
    return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}  # noqa: S608


def audit(db: apsw.Connection) -> None:
    """Check each session against its own log. Raises `AssertionError` and `BrokenChain`."""
    rows: list[Any] = db.execute(SESSIONS).fetchall()
    for *names, _, version, head, unconsumed in rows:
        session = SessionId(*names)
        records = reading.read(db, session, 0, version + 1)
        assert len(records) == version, f"{session} is at {version} and has {len(records)} records"
        assert verify_chain(genesis(session), 0, records) == head, f"{session} has another head"
        loaded = reading.load(db, session)
        assert loaded is not None
        assert not loaded.tail or loaded.tail[-1] == records[-1]
        assert len(loaded.inbox) == unconsumed, f"{session} counts {unconsumed} commands"


def go_on(db: apsw.Connection) -> None:
    """Claim each session and write a step. Raises `AssertionError` if that is refused."""
    ids: RowIds = {}
    rows: list[Any] = db.execute(SESSIONS).fetchall()
    for *names, epoch, _, _, _ in rows:
        session = SessionId(*names)
        with db:
            claimed = operations.claim(db, ids, session, "next", "nonce", NOW)
            assert isinstance(claimed, Claimed)
            assert claimed.token.epoch == epoch + 1, f"{session} gave epoch {epoch} twice"
            one = e.MessageReceived(at=NOW, message="m", content="on")
            version, head = claimed.loaded.version, claimed.loaded.head
            step = StepCommit(session, claimed.token, version, tuple(seal(head, version, [one])))
            assert write_all(db, ids, [step]), f"{session} does not go on"
