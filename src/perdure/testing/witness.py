"""What can be seen from outside: the logs as they are on disk, and the lines of the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from perdure.bootstrap import SQLITE_PREFIX, open_reader
from perdure.core import events as e
from perdure.core.codec import Record, decode_event
from perdure.core.errors import PerdureError
from perdure.core.evolve import evolve
from perdure.core.ids import SessionId
from perdure.core.state import EMPTY, decode_snapshot
from perdure.ports.session_store import Loaded, RunQuery, SessionReader
from perdure.runtime.handles import RecordedEvent, recorded

SESSION = SessionId("default", "surveyor", "survey")
RECORDS_MAX = 100_000
RUNS_MAX = 100_000

Line = dict[str, Any]


class Seen(NamedTuple):
    """One session as it was on disk: its log, what waits in its inbox, and whether it agrees.

    `agrees` says that folding the whole log gives what the snapshot and the tail give.
    """

    session: SessionId
    records: tuple[Record, ...]
    inbox: tuple[str, ...] = ()
    agrees: bool = True

    @property
    def log(self) -> list[RecordedEvent]:
        """Return the events."""
        return [recorded(one.seq, one.body) for one in self.records]

    @property
    def events(self) -> list[e.Event]:
        """Return the bare events."""
        return [decode_event(one.body) for one in self.records]


Store = dict[str, Seen]
"""The sessions of a store, by name."""


class Kill(NamedTuple):
    """A death: the process, where it stood, the store as it was then, the lines of the ledger."""

    pid: int
    site: str
    store: Store
    heard: int


async def look(path: Path, runs: int = RUNS_MAX) -> Store:
    """Read the sessions of the newest runs of a store file; none, if it is not there yet."""
    if not path.exists():
        return {}
    try:
        reader = await open_reader(SQLITE_PREFIX + str(path))
    except PerdureError:
        # Killed before the file had its tables: nothing was ever acknowledged from it.
        return {}
    try:
        return await see(reader, runs)
    finally:
        await reader.close()


async def see(reader: SessionReader, runs: int = RUNS_MAX) -> Store:
    """Read the sessions of the newest runs of a store."""
    rows = await reader.list(RunQuery(tenant="default", limit=runs))
    found = {}
    for session in {row.session: None for row in rows}:
        loaded = await reader.load(session)
        records = tuple(await reader.read(session, 0, RECORDS_MAX))
        assert loaded is not None
        inbox = tuple(entry.id for entry in loaded.inbox)
        found[str(session)] = Seen(session, records, inbox, folds_agree(loaded, records))
    return found


def folds_agree(loaded: Loaded, records: tuple[Record, ...]) -> bool:
    """Say whether a session's snapshot and tail give the state that its whole log gives."""
    try:
        whole = EMPTY
        for record in records:
            whole = evolve(whole, decode_event(record.body))
        state = EMPTY if loaded.snapshot is None else decode_snapshot(loaded.snapshot)
        if state is None:
            return True
        for record in loaded.tail:
            state = evolve(state, decode_event(record.body))
    except PerdureError:
        return False
    return state == whole


def log_of(store: Store, session: SessionId = SESSION) -> list[RecordedEvent]:
    """Return the log of a session; empty if it is not there."""
    seen = store.get(str(session))
    return seen.log if seen is not None else []
