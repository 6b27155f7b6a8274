"""A store that writes down, outside of itself, which token each event was written with.

One line of JSON for each claim, each step that was submitted, and what was said of it: the log
itself does not tell who wrote it. Lines are in the page cache when the call is made, so a process
that is killed has said everything.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from perdure.core.errors import StoreError
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    Claimed,
    CommitDone,
    InboxEntry,
    NotClaimed,
    Receipt,
    SessionStore,
    StepCommit,
    Token,
)

TRACE_SUFFIX = ".trace.jsonl"


class Recorder:
    """Hands every call on to the store that it wraps."""

    def __init__(self, store: SessionStore, name: str, trace: Path) -> None:
        self._store = store
        self._name = name
        self._fd = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._number = 0
        self._pid = os.getpid()
        self._note("began", store=store.identity)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Accept, and note that it was acknowledged."""
        receipt = await self._store.accept(entry, row, generation)
        self._note("accepted", session=str(entry.session), entry=entry.id)
        return receipt

    async def claim(
        self, session: SessionId, owner: str, nonce: str, *more: Any, **named: Any
    ) -> Claimed | NotClaimed:
        """Claim, and note the token."""
        found = await self._store.claim(session, owner, nonce, *more, **named)
        if isinstance(found, Claimed):
            self._note(
                "claimed",
                session=str(session),
                token=found.token,
                version=found.loaded.version,
                suspect=found.loaded.suspect,
                strikes=found.loaded.strikes,
            )
        return found

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Submit, and note what was submitted and what was said of it."""
        self._number = number = self._number + 1
        self._note(
            "submitted",
            number=number,
            session=str(step.session),
            token=step.token,
            expected=step.expected,
            hashes=[record.hash.hex() for record in step.records],
            consumed=step.consumed,
        )

        def told(error: StoreError | None) -> None:
            name = None if error is None else type(error).__name__
            self._note("told", number=number, session=str(step.session), error=name)
            done(error)

        self._store.commit(step, told)

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Renew, and note a lease that had run out."""
        alive = await self._store.renew(owner, lease_ms)
        if not alive:
            self._note("lapsed", owner=owner)
        return alive

    async def release(
        self, session: SessionId, token: Token | None, *more: Any, **named: Any
    ) -> None:
        """Release, and note that it was accepted."""
        await self._store.release(session, token, *more, **named)
        self._note("released", session=str(session), token=token)

    def _note(self, what: str, **fields: Any) -> None:
        at = round(time.monotonic(), 4)
        line = {"what": what, "node": self._name, "pid": self._pid, "at": at, **fields}
        os.write(self._fd, json.dumps(line).encode() + b"\n")


class Trace(NamedTuple):
    """A line of a trace, and the process life that it belongs to."""

    life: str
    line: dict[str, Any]


def read_traces(folder: Path) -> Iterator[Trace]:
    """Yield the lines of all traces in a folder."""
    for file in sorted(folder.glob(f"*{TRACE_SUFFIX}")):
        for text in file.read_bytes().split(b"\n"):
            if text:
                yield Trace(file.name.removesuffix(TRACE_SUFFIX), json.loads(text))
