"""What is written: one message for each thing that happens to a session, and what it says.

A message says in a header what changes (a `Change`), for every node to fold; in its body it has
what is read by whoever needs it (a `Body`). An entry of an inbox has a subject of its own, so that
JetStream itself knows an id for ever; whatever the owner does is on the session's one subject, each
message guarded by the number of the one before.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.adapters.nats.connection import subject_part
from perdure.core.ids import SessionId

HEADER_BYTES_MAX = 24 * 1024
"""A change that is larger goes into the body: replicas keep at most 64 KiB of headers."""
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
    """Somebody took the session. `term` names the lease that he had, `strikes` are those now."""

    epoch: int
    nonce: str
    owner: str
    term: int
    strikes: int
    trusts: int


class Commit(msgspec.Struct, tag="commit", array_like=True, frozen=True, gc=False):
    """The owner wrote one or more steps; `version` and `head` are those after it.

    `consumed` are numbers of messages, `refused` the last parts of their subjects; `snapshot` is
    the version of the one in the body. The rows in the body are those of `rows`, in order.
    """

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
    """The owner, or a person, gave the session up or put it in quarantine."""

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


encode_change = msgspec.json.Encoder().encode
decode_change: Any = msgspec.json.Decoder(Change).decode
encode_body = msgspec.msgpack.Encoder().encode
decode_body = msgspec.msgpack.Decoder(Body).decode


def place_of(session: SessionId) -> str:
    """Return the part of a subject that stands for a session."""
    return subject_part("\x1f".join(f"{len(part)}:{part}" for part in session))


def pack(change: Change, body: bytes) -> tuple[bytes, bytes]:
    """Return header and body of a message; a change that is too large goes into the body."""
    header = encode_change(change)
    if len(header) <= HEADER_BYTES_MAX:
        return header, body
    return IN_BODY, msgspec.msgpack.encode((header, body))


def unpack(header: str, body: bytes) -> tuple[Change, bytes]:
    """Return the change and the body that `pack` made a message of."""
    if header != IN_BODY.decode():
        return decode_change(header), body
    packed, inner = msgspec.msgpack.decode(body, type=tuple[bytes, bytes])
    return decode_change(packed), inner
