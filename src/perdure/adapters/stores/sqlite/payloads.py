"""Payloads as they are stored: small ones as they are, large ones compressed and by content.

What is stored as it is never begins with a zero byte (JSON cannot). After a zero byte a letter says
what follows: `z` a compressed payload, `r` a raw one that begins with a zero byte itself, `h` the
SHA-256 under which `blobs` has it.

A payload that is damaged or lost reads as what is stored in its place. That is no JSON, so whoever
decodes it sets that one session aside; the store itself goes on.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

from perdure.core.limits import BLOB_THRESHOLD_BYTES

ZIPPED, RAW, HASH = b"\0z", b"\0r", b"\0h"
FASTEST = 1


def pack(payload: bytes) -> bytes:
    """Return the bytes to store for `payload`: compressed if it is large and that helps."""
    if len(payload) > BLOB_THRESHOLD_BYTES:
        zipped = zlib.compress(payload, FASTEST)
        if len(zipped) < len(payload):
            return ZIPPED + zipped
    return RAW + payload if payload.startswith(b"\0") else payload


def unpack(stored: bytes) -> bytes:
    """Return the payload in `stored`, or `stored` itself if it is damaged."""
    if not stored.startswith(b"\0"):
        return stored
    if stored.startswith(RAW):
        return stored[len(RAW) :]
    try:
        return zlib.decompress(stored[len(ZIPPED) :])
    except zlib.error:
        return stored


def set_apart(payload: bytes) -> tuple[bytes, tuple[str, bytes]]:
    """Return what to store in the place of a large payload, and the blob that holds it."""
    digest = hashlib.sha256(payload).digest()
    return HASH + digest, (digest.hex(), pack(payload))


def restore(stored: bytes, blob: Callable[[str], bytes | None]) -> bytes:
    """Return the payload that `stored` holds or stands for, or `stored` itself if it is lost."""
    if not stored.startswith(HASH):
        return unpack(stored)
    address = stored[len(HASH) :].hex()
    packed = blob(address)
    payload = stored if packed is None else unpack(packed)
    return payload if hashlib.sha256(payload).hexdigest() == address else stored
