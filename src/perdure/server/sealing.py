"""Secrets of others that we must be able to use: sealed in the catalog, opened with the pepper.

A secret that signs webhooks cannot be kept as a hash. It is encrypted with a stream that
HMAC-SHA256 makes of a key and a random nonce (counter mode), and then authenticated with another
key: encrypt, then MAC. Both keys follow from the pepper. Whoever has the catalog's file alone reads
nothing, and what was changed there is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from perdure.core.errors import InvalidInput
from perdure.server.tokens import Fresh

VERSION: Final = "v1."
NONCE_BYTES: Final = 16
TAG_BYTES: Final = 32


class Seal:
    """Seals texts, and opens what was sealed with the same pepper."""

    def __init__(self, pepper: bytes, fresh: Fresh) -> None:
        self._fresh = fresh
        self._stream_key = _mac(pepper, b"seal: stream")
        self._tag_key = _mac(pepper, b"seal: tag")

    def seal(self, text: str) -> str:
        """Return a text as it may be stored; the same text is sealed differently each time."""
        nonce = self._fresh(NONCE_BYTES)
        sealed = nonce + self._crypt(nonce, text.encode())
        return VERSION + urlsafe_b64encode(sealed + _mac(self._tag_key, sealed)).decode()

    def unseal(self, sealed: str) -> str:
        """Return the text. Raises `InvalidInput` for what was not sealed so, or was changed."""
        data = _decode(sealed)
        body, tag = data[:-TAG_BYTES], data[-TAG_BYTES:]
        if len(body) < NONCE_BYTES or not hmac.compare_digest(tag, _mac(self._tag_key, body)):
            raise InvalidInput(
                "a stored secret cannot be opened: it was changed, or sealed with another pepper; "
                "set it again"
            )
        return self._crypt(body[:NONCE_BYTES], body[NONCE_BYTES:]).decode()

    def _crypt(self, nonce: bytes, data: bytes) -> bytes:
        blocks = (
            _mac(self._stream_key, nonce + block.to_bytes(8, "big"))
            for block in range(-(-len(data) // TAG_BYTES))
        )
        return bytes(a ^ b for a, b in zip(data, b"".join(blocks), strict=False))


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def _decode(sealed: str) -> bytes:
    try:
        return urlsafe_b64decode(sealed.removeprefix(VERSION))
    except ValueError:
        return b""
