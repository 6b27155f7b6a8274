"""A log as a file that anyone can verify: a header line, then one line an event.

Every line is JSON. The header names the session, the number of events and the last hash; an event
line has `seq`, `hash` (hex) and `event`, whose exact bytes are the ones that were hashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from perdure.core.codec import Record, decode_event, genesis, verify_chain
from perdure.core.errors import BrokenChain, IllegalTransition, InvalidInput, UnreadableEvent
from perdure.core.evolve import evolve
from perdure.core.ids import SessionId
from perdure.core.state import EMPTY, State

FORMAT = 1


class _Header(msgspec.Struct, frozen=True):
    perdure_export: int
    tenant: str
    agent: str
    session: str
    events: int
    head: str


class _Line(msgspec.Struct, frozen=True):
    seq: int
    hash: str
    event: msgspec.Raw


class Verified(msgspec.Struct, frozen=True):
    """What is true of a verified log: its session, length, last hash and folded state."""

    session: SessionId
    events: int
    head: str
    state: State


_encode = msgspec.json.Encoder().encode


def export_lines(session: SessionId, records: Iterable[Record]) -> Iterator[bytes]:
    """Yield the lines of an export, without line ends."""
    kept = list(records)
    head = kept[-1].hash if kept else genesis(session)
    yield _encode(
        _Header(FORMAT, session.tenant, session.agent, session.key, len(kept), head.hex())
    )
    for record in kept:
        yield _encode(_Line(record.seq, record.hash.hex(), msgspec.Raw(record.body)))


def verify_export(lines: Iterable[bytes]) -> Verified:
    """Verify an export: the chain, the count, the head, and that every event was allowed.

    Raises `InvalidInput` if it is no export, `BrokenChain` with the first bad position otherwise.
    """
    rest = (line for line in lines if line.strip())
    try:
        header = msgspec.json.decode(next(rest, b""), type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"line 1 is not the header of a perdure export: {error}") from None
    if header.perdure_export != FORMAT:
        raise InvalidInput(f"the export has format {header.perdure_export}; this reads {FORMAT}")
    session = SessionId(header.tenant, header.agent, header.session)
    records = [_record(number, line) for number, line in enumerate(rest, start=1)]
    verified = verify_log(session, records)
    if len(records) != header.events or verified.head != header.head:
        raise BrokenChain(
            len(records) + 1,
            f"the header promises {header.events} events ending in {header.head[:16]}…; "
            f"there are {len(records)} ending in {verified.head[:16]}…",
        )
    return verified


def verify_log(session: SessionId, records: Iterable[Record]) -> Verified:
    """Verify a whole log: the chain, and that every event was allowed by the transition tables.

    Raises `BrokenChain` with the first bad position.
    """
    state, head, kept = EMPTY, genesis(session), 0
    for record in records:
        head = verify_chain(head, kept, (record,))
        kept += 1
        try:
            state = evolve(state, decode_event(record.body))
        except (IllegalTransition, UnreadableEvent) as error:
            raise BrokenChain(kept, f"event {kept}: {error}") from None
    return Verified(session, kept, head.hex(), state)


def _record(number: int, line: bytes) -> Record:
    try:
        decoded = msgspec.json.decode(line, type=_Line)
        return Record(decoded.seq, bytes(decoded.event), bytes.fromhex(decoded.hash))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise BrokenChain(number, f"event {number} is not a line of an export: {error}") from None
