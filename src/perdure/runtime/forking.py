"""Reading what a fork goes on from: the source's log is only read."""

from __future__ import annotations

from collections.abc import AsyncIterator

from perdure.core.codec import Record, decode_event
from perdure.core.errors import BrokenChain, InvalidInput, Refused
from perdure.core.events import Event, Origin
from perdure.core.fork import Cut, inherited
from perdure.core.ids import SessionId
from perdure.core.messages import Message
from perdure.core.runs import TERMINAL, RunRow
from perdure.ports.session_store import SessionStore


async def history_after(
    store: SessionStore, row: RunRow, step: int, read_batch_records: int
) -> tuple[Origin, tuple[tuple[Message, ...], ...]]:
    """Return the history of a run after a step, group by group, and which part of the log it is.

    Raises `InvalidInput` for a step that the run has not come to, and `Refused` for a run that has
    not begun, or is going on: what it does next would be missing. One that waits may be forked.
    """
    if row.status not in TERMINAL and row.status != "waiting":
        raise Refused(f"run {row.id} is {row.status}: wait until it has ended", row.status)
    if row.started_seq is None:
        raise Refused(f"run {row.id} was cancelled before it began: send its message again", "")
    if step < 0:
        raise InvalidInput(f"step {step} cannot be: the first step is 1, and 0 is before it")
    cut = Cut(step)
    async for record in records_of(store, row.session, row.started_seq - 1, read_batch_records):
        if not cut.feed(record.seq, decode_event(record.body)):
            break
    if cut.last_step < step:
        raise InvalidInput(f"step {step} is beyond the run's last step ({cut.last_step})")
    prefix = cut.prefix()
    events: list[tuple[int, Event]] = []
    head = b""
    if prefix.summary is not None and prefix.summary < prefix.first:
        found = await store.read(row.session, prefix.summary - 1, 1)
        events += [(record.seq, decode_event(record.body)) for record in found]
    async for record in records_of(store, row.session, prefix.first - 1, read_batch_records):
        if record.seq > prefix.upto:
            break
        events.append((record.seq, decode_event(record.body)))
        head = record.hash
    if not events or events[-1][0] != prefix.upto:
        raise BrokenChain(prefix.upto, f"event {prefix.upto} of {row.session} is missing")
    _, agent, key = row.session
    origin = Origin(agent, key, row.id, step, prefix.upto, head.hex())
    return origin, inherited(prefix, events)


async def records_of(
    store: SessionStore, session: SessionId, after: int, read_batch_records: int
) -> AsyncIterator[Record]:
    """Yield the records of a session after a position, a batch at a time."""
    while True:
        page = await store.read(session, after, read_batch_records)
        for record in page:
            after = record.seq
            yield record
        if len(page) < read_batch_records:
            return
