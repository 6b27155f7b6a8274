"""Events as bytes and back. The bytes are made once: store, hash and stream use the same ones.

Old versions of an event type are lifted by `UPCASTS`, one step at a time; an event of an unknown
type or of a newer version is refused, and its bytes stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from perdure.core.errors import BrokenChain, UnreadableEvent
from perdure.core.events import AnyEvent, Event
from perdure.core.ids import SessionId

GENERATION = 2
"""The newest schema of events and inbox commands that this version writes, and that it reads.

Raise it with every new event, command or version of one: nodes that read less then leave sessions
alone in which a newer one wrote.
"""


class Record(NamedTuple):
    """An event as it is stored: its position, its bytes, and the hash of the log up to it."""

    seq: int
    body: bytes
    hash: bytes


def _without_digests_of_parts(fields: dict[str, Any]) -> dict[str, Any]:
    """Lift version 1, which named prompt, tools and model anew at every call."""
    parts = ("prompt", "tools", "model")
    kept = {name: value for name, value in fields.items() if name not in parts}
    return {**kept, "type": f"{fields['type']}.2"}


UPCASTS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "model_call_intended": _without_digests_of_parts,
    "compaction_intended": _without_digests_of_parts,
}
"""Tag of an old version -> function from its fields to those of the next version, tag included."""

encode_event = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(AnyEvent)
_known_tags = frozenset(str(cls.__struct_config__.tag) for cls in AnyEvent.__args__)


def decode_event(
    body: bytes, upcasts: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = UPCASTS
) -> Event:
    """Return the event in `body`, lifted to the present version of its type.

    Raises `UnreadableEvent` if the bytes are corrupt, or of a type or version unknown here.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _decode_old(body, upcasts, str(error))


def _decode_old(
    body: bytes, upcasts: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]], why: str
) -> Event:
    try:
        fields = msgspec.json.decode(body)
        tag = fields["type"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        raise UnreadableEvent(f"the bytes are not an event: {why}") from None
    lifted = tag
    while lifted in upcasts:
        fields = upcasts[lifted](fields)
        lifted = fields["type"]
    if lifted not in _known_tags:
        raise UnreadableEvent(
            f"the event type {tag!r} is unknown to this version of perdure: it is probably from a "
            "newer one. Its bytes are kept; upgrade to read it"
        )
    try:
        lifted_event: Event = msgspec.convert(fields, AnyEvent)
    except msgspec.MsgspecError as error:
        raise UnreadableEvent(f"the event of type {tag!r} is corrupt: {error}") from None
    return lifted_event


def genesis(session: SessionId) -> bytes:
    """Return the hash that a session's first event is chained to."""
    return sha256(b"perdure log 1\n" + str(session).encode()).digest()


def link(previous: bytes, body: bytes) -> bytes:
    """Return the hash of a log: SHA-256 over the hash before this event and the event's bytes."""
    return sha256(previous + body).digest()


def seal(previous: bytes, version: int, events: Iterable[Event]) -> list[Record]:
    """Return the records of `events`, which follow position `version` with hash `previous`."""
    records = []
    for event in events:
        version += 1
        body = encode_event(event)
        previous = sha256(previous + body).digest()
        records.append(Record(version, body, previous))
    return records


def verify_chain(previous: bytes, version: int, records: Iterable[Record]) -> bytes:
    """Return the hash at the end of `records`; raise `BrokenChain` at the first that is wrong."""
    for record in records:
        version += 1
        if record.seq != version:
            raise BrokenChain(version, f"event {version} is missing: found {record.seq} instead")
        previous = link(previous, record.body)
        if previous != record.hash:
            raise BrokenChain(
                version, f"event {version} does not match its hash: it or one before was changed"
            )
    return previous
