"""Every log that a node of a test writes is stepped through the tables, event by event.

The seam is the store that a node is given: it is wrapped, and each step that it reports as durable
is checked. A log that leaves the model fails the test in which that happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from perdure.bootstrap import SQLITE_PREFIX, open_reader
from perdure.core.codec import decode_event
from perdure.core.errors import StoreError
from perdure.core.ids import SessionId
from perdure.ports.session_store import Claimed, RunQuery, StepCommit
from perdure.runtime.node import Node
from perdure.testing.simulation.store import Connection
from perdure.testing.trace import LeftModel, Trace, check_log

RECORDS_MAX = 1_000_000


class CheckedStore:
    """A store as a node sees it, with a trace of every session that the node writes."""

    def __init__(self, store: Any, traces: dict[SessionId, Trace], left: list[str]) -> None:
        self._store = store
        self._traces = traces
        self._left = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def claim(self, session: SessionId, owner: str, nonce: str, *more: Any) -> Any:
        """Claim; a log that this process did not write is stepped through first."""
        claimed = await self._store.claim(session, owner, nonce, *more)
        if isinstance(claimed, Claimed) and self._at(session) != claimed.loaded.version:
            records = await self._store.read(session, 0, RECORDS_MAX)
            try:
                self._traces[session] = check_log(session, records)
            except LeftModel:
                self._traces.pop(session, None)  # planted: the loader is to find it
        return claimed

    def commit(self, step: StepCommit, done: Callable[[StoreError | None], None]) -> None:
        """Commit, and look at what became durable."""

        def checked(error: StoreError | None) -> None:
            if error is None:
                self._check(step)
            done(error)

        self._store.commit(step, checked)

    def _at(self, session: SessionId) -> int:
        trace = self._traces.get(session)
        return trace.seq if trace is not None else 0

    def _check(self, step: StepCommit) -> None:
        if self._at(step.session) != step.expected:
            return
        trace = self._traces.setdefault(step.session, Trace(step.session))
        try:
            for record in step.records:
                trace.step(decode_event(record.body))
        except LeftModel as error:
            self._left.append(f"{step.session}: {error}")


@contextmanager
def every_log_checked() -> Iterator[list[str]]:
    """Check what nodes write until the block is left; yield what left the model."""
    left: list[str] = []
    known: WeakKeyDictionary[Any, dict[SessionId, Trace]] = WeakKeyDictionary()
    original = Node.__init__

    @wraps(original)
    def init(self: Node, store: Any, *more: Any, **named: Any) -> None:
        if not isinstance(store, Connection):  # a simulated world checks its logs itself
            store = CheckedStore(store, known.setdefault(store, {}), left)
        original(self, store, *more, **named)

    Node.__init__ = init  # type: ignore[method-assign]
    try:
        yield left
    finally:
        Node.__init__ = original  # type: ignore[method-assign]


async def check_file(path: Path, tenant: str = "default") -> int:
    """Check every log in a store that other processes wrote; return how many there are.

    Raises `LeftModel`.
    """
    reader = await open_reader(SQLITE_PREFIX + str(path))
    try:
        rows = await reader.list(RunQuery(tenant=tenant, limit=10_000))
        sessions = {row.session for row in rows}
        for session in sessions:
            check_log(session, await reader.read(session, 0, RECORDS_MAX))
    finally:
        await reader.close()
    return len(sessions)
