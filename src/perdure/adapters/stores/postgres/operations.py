"""What is asked of a store, on its way: each operation learns its own fate, and tells it once.

`now` is the time in milliseconds, or None if the server's clock says it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.adapters.stores.postgres.names import Key
from perdure.core.errors import StoreError
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import CommitDone, InboxEntry, StepCommit, Token

ClaimKey = tuple[SessionId, Token]
ENTRY_BYTES = 200
"""About what an operation costs besides its payloads."""


class Operation:
    """What all have. `at` is when it was submitted, by the event loop's clock.

    It is `unsure` once a connection was lost that may have carried it out.
    """

    __slots__ = ("at", "bytes", "key", "unsure")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.at = 0.0
        self.bytes = ENTRY_BYTES
        self.unsure = False

    def fail(self, error: Exception) -> None:
        """Note that nothing came of it."""
        raise NotImplementedError

    def tell(self) -> None:
        """Tell whoever asked."""
        raise NotImplementedError


class Commit(Operation):
    """A step commit."""

    __slots__ = ("done", "error", "step")

    def __init__(self, key: Key, step: StepCommit, done: CommitDone) -> None:
        self.key = key
        self.at = 0.0
        self.unsure = False
        self.step = step
        self.done = done
        self.error: StoreError | None = None
        size = ENTRY_BYTES
        for record in step.records:
            size += len(record[1])
        if step.snapshot is not None:
            size += len(step.snapshot)
        for _, body in step.blobs:
            size += len(body)
        self.bytes = size

    @property
    def claim(self) -> ClaimKey:
        """The claim under which it was decided."""
        return self.step.session, self.step.token

    def fail(self, error: Exception) -> None:
        """Note that nothing came of it."""
        assert isinstance(error, StoreError)
        self.error = error

    def tell(self) -> None:
        """Call back."""
        self.done(self.error)


class Request(Operation):
    """Anything that somebody awaits; `answer` and `fail` say what came of it."""

    __slots__ = ("_error", "_found", "future")

    def __init__(self, key: Key, future: asyncio.Future[Any]) -> None:
        super().__init__(key)
        self.future = future
        self._found: Any = None
        self._error: Exception | None = None

    def answer(self, found: Any) -> None:
        """Note the result."""
        self._found = found
        self._error = None

    def fail(self, error: Exception) -> None:
        """Note the error to raise."""
        self._error = error

    def tell(self) -> None:
        """Resolve the future, unless nobody waits any more."""
        if self.future.done():
            return
        if self._error is None:
            self.future.set_result(self._found)
        else:
            self.future.set_exception(self._error)


class Accept(Request):
    """A command for an inbox."""

    __slots__ = ("digest", "entry", "generation", "now", "row")

    def __init__(
        self,
        key: Key,
        future: asyncio.Future[Any],
        entry: InboxEntry,
        digest: bytes,
        row: RunRow | None,
        generation: int,
        now: int | None,
    ) -> None:
        super().__init__(key, future)
        self.now = now
        self.entry = entry
        self.digest = digest
        self.row = row
        self.generation = generation
        self.bytes += len(entry.command)


class Claim(Request):
    """A claim of a session."""

    __slots__ = ("nonce", "now", "owner", "reads", "session", "strikes_max")

    def __init__(
        self,
        key: Key,
        future: asyncio.Future[Any],
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None,
        reads: int | None,
        now: int | None,
    ) -> None:
        super().__init__(key, future)
        self.now = now
        self.session = session
        self.owner = owner
        self.nonce = nonce
        self.strikes_max = strikes_max
        self.reads = reads


class Release(Request):
    """The end of a claim, or what a person does to one."""

    __slots__ = ("quarantine", "session", "snapshot", "token")

    def __init__(
        self,
        key: Key,
        future: asyncio.Future[Any],
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None,
        quarantine: str | None,
    ) -> None:
        super().__init__(key, future)
        self.session = session
        self.token = token
        self.snapshot = snapshot
        self.quarantine = quarantine
        self.bytes += 0 if snapshot is None else len(snapshot[1])
