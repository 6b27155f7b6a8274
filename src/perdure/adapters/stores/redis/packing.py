"""Sessions' names and payloads as they are stored.

A name is `tenant/agent/key`, with what would be mistaken for a separator escaped. A payload begins
with a byte that says whether it is compressed, as large ones are if that makes them smaller; memory
is what a Redis has least of.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

from perdure.adapters.redis.names import escape, unescape
from perdure.core.codec import Record
from perdure.core.ids import SessionId
from perdure.core.limits import BLOB_THRESHOLD_BYTES
from perdure.ports.session_store import InboxEntry

NAMES_CACHED = 10_000
PLAIN, ZIPPED = b"\0", b"\1"
FASTEST = 1
HASH_BYTES_MAX = 127
IS_ZIPPED = 0x80
BYTES = [bytes((number,)) for number in range(256)]
TIME_BYTES = 8
ORDER_BYTES = 4


@lru_cache(NAMES_CACHED)
def name(session: SessionId) -> str:
    """Return the name of a session."""
    return "/".join(map(escape, session))


def session_of(named: bytes) -> SessionId:
    """Return the session with a name."""
    return SessionId(*map(unescape, named.decode().split("/")))


def pack(payload: bytes) -> bytes:
    """Return the bytes to store for a payload."""
    zipped = _zipped(payload)
    return PLAIN + payload if zipped is None else ZIPPED + zipped


def unpack(stored: bytes) -> bytes:
    """Return the payload in what is stored, or that itself if it is damaged."""
    return _unzipped(stored[1:]) if stored.startswith(ZIPPED) else stored[1:]


def pack_record(record: Record) -> bytes:
    """Return an element of a log: how long the hash is and whether the body is zipped, both."""
    _, body, chained = record
    if len(body) > BLOB_THRESHOLD_BYTES and (zipped := _zipped(body)) is not None:
        return b"".join((BYTES[len(chained) | IS_ZIPPED], chained, zipped))
    return b"".join((BYTES[len(chained)], chained, body))


def unpack_record(seq: int, stored: bytes) -> Record:
    """Return the record in an element of a log."""
    start = 1 + (stored[0] & HASH_BYTES_MAX)
    body = stored[start:]
    return Record(seq, _unzipped(body) if stored[0] & IS_ZIPPED else body, stored[1:start])


def pack_entry(entry: InboxEntry) -> bytes:
    """Return an inbox entry as it waits; the server puts its place in the order before it."""
    return entry.accepted_at.to_bytes(TIME_BYTES, signed=True) + pack(entry.command)


def unpack_inbox(session: SessionId, stored: Sequence[bytes]) -> tuple[InboxEntry, ...]:
    """Return the entries of a session's inbox, from ids and what waits under them in turn."""
    waiting = sorted(
        (value[:ORDER_BYTES], named, value[ORDER_BYTES:])
        for named, value in zip(stored[::2], stored[1::2], strict=True)
    )
    return tuple(
        InboxEntry(
            id=named.decode(),
            session=session,
            command=unpack(value[TIME_BYTES:]),
            accepted_at=int.from_bytes(value[:TIME_BYTES], signed=True),
        )
        for _, named, value in waiting
    )


def _zipped(payload: bytes) -> bytes | None:
    if len(payload) <= BLOB_THRESHOLD_BYTES:
        return None
    zipped = zlib.compress(payload, FASTEST)
    return zipped if len(zipped) < len(payload) else None


def _unzipped(zipped: bytes) -> bytes:
    try:
        return zlib.decompress(zipped)
    except zlib.error:
        return zipped
