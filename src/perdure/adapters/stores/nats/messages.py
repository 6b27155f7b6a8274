"""What is written: messages of one or many changes, each to one session.

A message says in a header what changes (a `Change` for each session), for every node to fold; in
its body it has what is read by whoever needs it (a `Body` for each). An entry of an inbox is a
message with a subject of its own, so that JetStream itself knows an id for ever. All else that a
node does to sessions goes into its batches, and whether a change holds is judged where it is
folded: it says what it was decided on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from perdure.adapters.nats.connection import subject_part
from perdure.core.ids import SessionId

HEADER_BYTES_MAX = 48 * 1024
"""What is larger goes into the body: replicas keep at most 64 KiB of headers."""
PLACES_KNOWN_MAX = 20_000
CHANGES_MAX = 1 << 10
"""How many changes a message may have."""
IN_BODY = b"~"

RowKey = tuple[str, str, int]
"""The id, status and created_at of a run's row."""


class Arrival(msgspec.Struct, tag="in", array_like=True, frozen=True, gc=False):
    """An entry came into the inbox. `at` is the store's time if somebody sets it, in ms."""

    session: SessionId
    id: str
    at: int
    trusted: int
    generation: int
    row: RowKey | None


class Claim(msgspec.Struct, tag="claim", array_like=True, frozen=True, gc=False):
    """Somebody took the session, if its epoch is still the one before.

    `term` names the lease that he had. `void` says that of the claim before: its owner's lease had
    run out, and he lives.
    """

    epoch: int
    nonce: str
    owner: str
    term: int
    void: bool
    trusts: int


class Commit(msgspec.Struct, tag="commit", array_like=True, frozen=True, gc=False):
    """The owner wrote one or more steps, if the token and the version `expected` still are those.

    `version` and `head` are those after it. `consumed` are numbers of messages, `refused` the last
    parts of their subjects; `snapshot` is the version of the one in the body. The rows in the body
    are those of `rows`, in order.
    """

    epoch: int
    nonce: str
    expected: int
    version: int
    head: bytes
    consumed: tuple[int, ...]
    postponed: int
    wake_at: int | None
    snapshot: int | None
    generation: int
    rows: tuple[RowKey, ...]
    refused: tuple[str, ...]


class Release(msgspec.Struct, tag="release", array_like=True, frozen=True, gc=False):
    """The owner, or a person, gave the session up or put it in quarantine.

    A person's, without a nonce, holds if the epoch still is the one that was seen.
    """

    epoch: int
    nonce: str | None
    quarantine: str | None
    snapshot: int | None


Change = Arrival | Claim | Commit | Release


class Body(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What only some read. `refusals` say why, by the last part of the entry's subject."""

    rows: tuple[bytes, ...] = ()
    records: tuple[tuple[bytes, bytes], ...] = ()
    snapshot: bytes | None = None
    refusals: tuple[tuple[str, bytes], ...] = ()
    id: str = ""
    command: bytes = b""
    accepted_at: int = 0


Changes = tuple[tuple[str, Change], ...]
"""What a message changes: the places of sessions, and what happens to each."""

_encode = msgspec.json.Encoder().encode
decode_changes: Any = msgspec.json.Decoder(Changes).decode
encode_body = msgspec.msgpack.Encoder().encode
decode_body = msgspec.msgpack.Decoder(Body).decode


@lru_cache(maxsize=PLACES_KNOWN_MAX)
def place_of(session: SessionId) -> str:
    """Return the part of a subject that stands for a session."""
    return subject_part("\x1f".join(f"{len(part)}:{part}" for part in session))


def encode_change(place: str, change: Change) -> bytes:
    """Return what a message says of one session."""
    return _encode((place, change))


def pack(changes: Sequence[bytes], bodies: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return header and body of a message; changes that are too large go into the body."""
    header, body = b"[%b]" % b",".join(changes), msgspec.msgpack.encode(bodies)
    if len(header) <= HEADER_BYTES_MAX:
        return header, body
    return IN_BODY, msgspec.msgpack.encode((header, body))


def unpack(header: str, body: bytes) -> tuple[Changes, list[bytes]]:
    """Return the changes and the bodies that `pack` made a message of."""
    packed: bytes | str = header
    if header == IN_BODY.decode():
        packed, body = msgspec.msgpack.decode(body, type=tuple[bytes, bytes])
    return decode_changes(packed), msgspec.msgpack.decode(body, type=list[bytes])


def where(seq: int, index: int) -> int:
    """Return one number for a body: that of its message, and which of it."""
    return seq * CHANGES_MAX + index
