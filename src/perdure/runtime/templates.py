"""Which definition a run was made under, by its log."""

from __future__ import annotations

from perdure.core.codec import decode_event
from perdure.core.events import RunStarted
from perdure.core.runs import RunRow
from perdure.ports.session_store import SessionStore
from perdure.runtime.forking import records_of


async def named_last(store: SessionStore, row: RunRow, read_batch_records: int) -> str | None:
    """Return the digest of the definition that a run named last; None if it has not begun."""
    named: str | None = None
    if row.started_seq is None:
        return None
    async for record in records_of(store, row.session, row.started_seq - 1, read_batch_records):
        event = decode_event(record.body)
        if isinstance(event, RunStarted) and event.run != row.id:
            break
        named = getattr(event, "agent", None) or named
    return named
