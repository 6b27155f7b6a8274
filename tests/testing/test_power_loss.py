"""Whatever was acknowledged is there after a loss of power, at every I/O operation of a workload.

The product's own code runs over the disk of perdure.testing.power_loss: its settings, migrations,
writer thread, commits and checkpoints, in two lives with an orderly end between them. After a loss
the file must hold exactly what it held after some transaction: the last one that was acknowledged,
or the next. With less than `synchronous=FULL` the same judge must find losses.

A case by hand: `python -m tests.testing.test_power_loss FULL 120 7` (level, operation, seed); all
of them: `python -m tests.testing.test_power_loss`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import apsw
import pytest

from perdure.adapters.stores.sqlite import checks, operations, reading, schema, writer
from perdure.adapters.stores.sqlite.commits import RowIds, write_all
from perdure.core import events as e
from perdure.core.codec import genesis, seal, verify_chain
from perdure.core.errors import Conflict, PerdureError, Unavailable
from perdure.core.ids import SessionId
from perdure.core.limits import BLOB_THRESHOLD_BYTES
from perdure.core.runs import RunRow
from perdure.ports.session_store import Claimed, InboxEntry, StepCommit, Token
from perdure.testing.power_loss import Disk

LEVELS = ("FULL", "NORMAL", "OFF")
PARTS = 8
SEEDS = 12
CONTROL = {"seeds": range(4), "parts": 3}
"""Every third operation is enough to see that the judge can say no."""
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


# ------------------------------------------------------------------------------------ the workload


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
        session, lambda db, ids: operations.accept(db, entry, row(session, name), NOW), None
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

    def __init__(self, db: apsw.Connection, groups: Groups, noted: Callable[[], None]) -> None:
        self.refused = 0
        self._groups = groups
        self._noted = noted
        self._ended = threading.Event()
        self.writer = writer.Writer(db, str(PATH), self)  # type: ignore[arg-type]
        self._submit()

    def live(self) -> bool:
        """Wait until everything is written, or one write has failed; True if none has."""
        assert self._ended.wait(60)
        return self.writer.failure is None

    def call_soon_threadsafe(self, tell: Callable[..., None], batch: Any, refused: Any) -> None:
        """Do as an event loop does, but now."""
        tell(batch, refused)
        self.refused += sum(isinstance(one.error, Conflict) for one in batch)
        if any(isinstance(one.error, Unavailable) for one in batch):
            self._ended.set()
        else:
            self._noted()
            self._submit()

    def _submit(self) -> None:
        group = next(self._groups, None)
        if group is None:
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
        schema.migrate(db, PATH, NOW, migrations())
        operations.free_claims(db)


@cache
def migrations() -> list[schema.Migration]:
    """Read them once: they are files, and thousands of cases need them."""
    return schema.migrations()


def run(disk: Disk, level: str, noted: Callable[[apsw.Connection], None]) -> int:
    """Run both lives until the end or the loss of power; return how many steps were refused."""
    refused = 0
    try:
        for groups in lives():
            db = start(disk, level)
            noted(db)
            node = Node(db, groups, partial(noted, db))
            alive = node.live()
            # An orderly end: it makes a checkpoint and unlinks the log.
            node.writer.stop()
            refused += node.refused
            if not alive:
                break
    except PerdureError:
        disk.die()
    return refused


# --------------------------------------------------------------------------------------- the judge


class Reference(NamedTuple):
    """The undisturbed run: what the file held after each transaction, and what it took."""

    states: list[Contents]
    operations: int
    refused: int


@cache
def reference(level: str) -> Reference:
    """Run to the end, and look after each transaction."""
    disk, states = Disk(), list[Contents]()
    with mock.patch.object(writer, "CHECKPOINT_PAGES", CHECKPOINT_PAGES):
        refused = run(disk, level, lambda db: states.append(contents(db)))
    return Reference(states, disk.operations, refused)


def contents(db: apsw.Connection) -> Contents:
    """Return every row of every table."""
    return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}


class Case(NamedTuple):
    """A loss of power at one operation, what it left by one seed, and what is wrong with that."""

    level: str
    at: int
    seed: int
    verdict: str = ""
    why: str = ""

    def __str__(self) -> str:
        again = f"python -m tests.testing.test_power_loss {self.level} {self.at} {self.seed}"
        return f"{again}: {self.verdict or 'all kept'} {self.why}".strip()


def cases(level: str, at: int, seeds: range) -> Iterator[Case]:
    """Run until the power is lost at an operation; yield what each seed makes of it."""
    disk, acknowledged = Disk(dies_at=at), list[apsw.Connection]()
    with mock.patch.object(writer, "CHECKPOINT_PAGES", CHECKPOINT_PAGES):
        run(disk, level, acknowledged.append)
    disk.die()
    for seed in seeds:
        found = disk.after_loss(f"{at}/{seed}")
        yield Case(level, at, seed, *judge(found, reference(level).states, len(acknowledged)))


def judge(disk: Disk, states: list[Contents], acknowledged: int) -> tuple[str, str]:
    """Open what is left; say "lost" or "corrupt" and why, or nothing if all is well.

    `acknowledged` is how many of the states of the undisturbed run somebody was told of.
    """
    try:
        db = checks.connect_to_write(PATH, "FULL", connect=disk.connect)
        try:
            if (damage := db.pragma("integrity_check")) != "ok":
                return "corrupt", str(damage).replace("\n", "; ")
            begun = db.pragma("user_version")
            held = contents(db) if begun else None
            set_up(db)
            audit(db)
            go_on(db)
        finally:
            disk.die()
            db.close()
    except (AssertionError, PerdureError, apsw.Error) as error:
        return "corrupt", f"{type(error).__name__}: {error}"
    if held is None:
        return ("lost", "everything") if acknowledged else ("", "")
    if held not in states:
        return "corrupt", "it holds what no transaction has left"
    missing = acknowledged - 1 - states.index(held)
    if missing < -1:
        return "corrupt", "it holds what was not written yet"
    return ("lost", f"the last {missing} acknowledged transactions") if missing > 0 else ("", "")


def audit(db: apsw.Connection) -> None:
    """Check each session against its own log. Raises `AssertionError` and `BrokenChain`."""
    for *names, _, version, head, unconsumed in db.execute(SESSIONS).fetchall():
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
    for *names, epoch, _, _, _ in db.execute(SESSIONS).fetchall():
        session = SessionId(*names)
        with db:
            claimed = operations.claim(db, ids, session, "next", "nonce", NOW)
            assert isinstance(claimed, Claimed)
            assert claimed.token.epoch == epoch + 1, f"{session} gave epoch {epoch} twice"
            one = e.MessageReceived(at=NOW, message="m", content="on")
            version, head = claimed.loaded.version, claimed.loaded.head
            step = StepCommit(session, claimed.token, version, tuple(seal(head, version, [one])))
            assert write_all(db, ids, [step]), f"{session} does not go on"


# --------------------------------------------------------------------------------------- the proof


def all_cases(level: str, seeds: range, part: int = 0, parts: int = 1) -> list[Case]:
    """Return the cases of every parts-th operation; the last is the end of the run."""
    points = range(1 + part, reference(level).operations + 2, parts)
    return [case for at in points for case in cases(level, at, seeds)]


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_acknowledged_is_lost_at_full(part: int) -> None:
    found = all_cases("FULL", range(SEEDS), part, PARTS)
    wrong = [str(case) for case in found if case.verdict]
    assert not wrong, "\n".join(["", *wrong])


def test_normal_loses_what_was_acknowledged_and_corrupts_nothing() -> None:
    found = all_cases("NORMAL", **CONTROL)
    assert any(case.verdict == "lost" for case in found)
    wrong = [str(case) for case in found if case.verdict == "corrupt"]
    assert not wrong, "\n".join(["", *wrong])


def test_off_loses_and_corrupts() -> None:
    assert {"lost", "corrupt"} <= {case.verdict for case in all_cases("OFF", **CONTROL)}


def test_a_batch_in_several_transactions_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge tells a part of a batch from a whole one."""
    transact = writer.Writer._transact
    reference("FULL")

    def one_by_one(self: writer.Writer, batch: list[writer.Operation]) -> list[Any]:
        return [claim for operation in batch for claim in transact(self, [operation])]

    monkeypatch.setattr(writer.Writer, "_transact", one_by_one)
    assert any(case.verdict == "corrupt" for case in all_cases("FULL", **CONTROL))


def test_the_workload_reaches_what_it_is_for() -> None:
    """Commits of every kind, a refusal, two lives; and enough cases."""
    found = reference("FULL")
    last = found.states[-1]
    versions = [row[6] for row in last["sessions"]]
    assert versions == [8, 4]
    assert len(found.states) == 16
    assert found.refused == 1
    assert (found.operations + 1) * SEEDS >= 5_000
    assert len(LARGE) > BLOB_THRESHOLD_BYTES
    assert all(last[name] for name in TABLES if name != "nodes")


def main() -> None:
    """Print one case, or the figures of all."""
    if len(sys.argv) == 4:
        level, at, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        print(next(cases(level, at, range(seed, seed + 1))))
        return
    for level in LEVELS:
        began = time.monotonic()
        found = all_cases(level, range(SEEDS))
        verdicts = Counter(case.verdict for case in found)
        print(
            f"{level}: {reference(level).operations} operations, {len(found)} cases, "
            f"{verdicts['lost']} lost, {verdicts['corrupt']} corrupt, "
            f"{time.monotonic() - began:.1f} s"
        )


if __name__ == "__main__":
    main()
