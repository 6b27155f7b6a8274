"""The writer: group commit of steps and of what is asked besides.

A batch is first written as if nothing could be refused. If something is, it is rolled back and
written again one operation at a time, so that each learns its own fate. A failed write is another
matter: what the disk holds is then unknown, so the store takes nothing more until it is opened
again. What was acknowledged before is not affected.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import apsw

from perdure.adapters.sqlite.group_commit import GroupCommit
from perdure.adapters.stores.sqlite.commits import RowIds, why_refused, write_all
from perdure.core.errors import Broken, Conflict, PerdureError, StoreError
from perdure.core.ids import SessionId
from perdure.ports import faults
from perdure.ports.session_store import CommitDone, StepCommit, Token

CHECKPOINT_PAGES = 4_000
TELLING_SECONDS = 0.001
"""How long what became of commits is told before others have their turn on the event loop."""
UNSTORABLE = (apsw.ConstraintError, apsw.TooBigError, OverflowError, TypeError, ValueError)
"""One operation's own fault: it is refused, and the store goes on."""

Work = Callable[[apsw.Connection, RowIds], Any]
ClaimKey = tuple[SessionId, Token]


class Commit:
    """A step commit on its way."""

    __slots__ = ("done", "error", "step")

    def __init__(self, step: StepCommit, done: CommitDone) -> None:
        self.step = step
        self.done = done
        self.error: StoreError | None = None

    def tell(self) -> None:
        """Call back."""
        self.done(self.error)


class Request:
    """Any other operation; `session` is the one it concerns, or None if it concerns many."""

    __slots__ = ("answer", "error", "future", "session", "work")

    def __init__(
        self, session: SessionId | None, work: Work, future: asyncio.Future[Any] | None
    ) -> None:
        self.session = session
        self.work = work
        self.future = future
        self.answer: Any = None
        self.error: Exception | None = None

    def run(self, db: apsw.Connection, ids: RowIds) -> None:
        """Do the work; an error that it raises on purpose is its answer."""
        self.error = None
        try:
            self.answer = self.work(db, ids)
        except PerdureError as error:
            self.error = error

    def tell(self) -> None:
        """Resolve the future, unless nobody waits any more."""
        if self.future is None or self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.answer)
        else:
            self.future.set_exception(self.error)


Operation = Commit | Request


class _NotWritten(Exception):
    """Leaves a savepoint, so that it is rolled back."""


class Writer(GroupCommit[Operation]):
    """Writes operations in the order in which they are submitted, many at a time."""

    def __init__(self, db: apsw.Connection, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.transactions = 0
        self._ids: RowIds = {}
        self._untold: dict[ClaimKey, list[StoreError]] = {}
        self._telling: deque[Callable[[], None]] = deque()
        super().__init__(db, name, loop, CHECKPOINT_PAGES)

    def _write(self, batch: Sequence[Operation]) -> list[ClaimKey]:
        """Write a batch, or mark the store as failed; return the claims of refused commits."""
        refused: list[ClaimKey] = []
        if self.failure is None:
            try:
                faults.reach("store.before_begin")
                refused = self._transact(batch)
                faults.reach("store.after_commit")
            except BaseException as error:  # noqa: BLE001 - whoever waits must learn of it
                self._fail(error)
        if self.failure is not None:
            for operation in batch:
                operation.error = Broken(self.failure)
        return refused

    def _transact(self, batch: Sequence[Operation]) -> list[ClaimKey]:
        db, refused = self._db, list[ClaimKey]()
        db.execute("BEGIN IMMEDIATE")
        if self._untold or not self._write_together(batch):
            db.execute("ROLLBACK")
            self._ids.clear()
            db.execute("BEGIN IMMEDIATE")
            refused = self._write_one_by_one(batch)
        faults.reach("store.before_commit")
        db.execute("COMMIT")
        self.transactions += 1
        return refused

    def _write_together(self, batch: Sequence[Operation]) -> bool:
        """Write a batch as if nothing were refused; False if something is.

        Commits are gathered, because what concerns other sessions may go before them.
        """
        db, ids = self._db, self._ids
        steps: list[StepCommit] = []
        sessions: set[SessionId] = set()
        try:
            for operation in batch:
                if isinstance(operation, Commit):
                    steps.append(operation.step)
                    sessions.add(operation.step.session)
                    continue
                if steps and (operation.session is None or operation.session in sessions):
                    if not write_all(db, ids, steps):
                        return False
                    steps, sessions = [], set()
                operation.run(db, ids)
            return not steps or write_all(db, ids, steps)
        except UNSTORABLE:
            return False

    def _write_one_by_one(self, batch: Sequence[Operation]) -> list[ClaimKey]:
        refused = []
        for operation in batch:
            if isinstance(operation, Request):
                self._run_alone(operation)
                continue
            operation.error = self._write_alone(operation.step)
            if operation.error is not None:
                claim = (operation.step.session, operation.step.token)
                self._untold.setdefault(claim, []).append(operation.error)
                refused.append(claim)
        return refused

    def _run_alone(self, request: Request) -> None:
        try:
            with self._db:
                request.run(self._db, self._ids)
        except UNSTORABLE as error:
            request.error = Conflict(f"it cannot be stored: {error}")

    def _write_alone(self, step: StepCommit) -> StoreError | None:
        """Write one step, or nothing of it, and return why.

        Whatever was decided on a step that is refused is refused too, until its owner is told.
        """
        earlier = self._untold.get((step.session, step.token))
        if earlier is not None:
            return type(earlier[0])(str(earlier[0]))
        try:
            with self._db:
                self._write_whole(step)
        except _NotWritten:
            return why_refused(self._db, step)
        except UNSTORABLE as error:
            return Conflict(f"it cannot be stored: {error}")
        return None

    def _write_whole(self, step: StepCommit) -> None:
        if not write_all(self._db, self._ids, (step,)):
            raise _NotWritten

    def _tell(self, batch: Sequence[Operation], refused: Sequence[ClaimKey] = ()) -> None:
        waits_for_its_turn = bool(self._telling)
        self._telling.extend(operation.tell for operation in batch)
        if refused:
            note = Request(None, lambda db, ids: self._note_told(refused), None)
            self._telling.append(lambda: self.submit(note))
        if not waits_for_its_turn:
            self._tell_on()

    def _tell_on(self) -> None:
        """Tell for a moment; the rest after whatever else came up: each may be a step's work."""
        end = self._loop.time() + TELLING_SECONDS
        try:
            while self._telling:
                self._telling.popleft()()
                if self._loop.time() > end:
                    break
        finally:
            # A callback that raised is the event loop's to report; the others are told anyway.
            if self._telling:
                self._loop.call_soon(self._tell_on)

    def _note_told(self, refused: Sequence[ClaimKey]) -> None:
        for claim in refused:
            self._untold[claim].pop()
            if not self._untold[claim]:
                del self._untold[claim]
