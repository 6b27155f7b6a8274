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
from contextlib import suppress
from typing import ClassVar, Final

from perdure.core.errors import InvalidInput, StoreRefused
from perdure.ports.catalog import Catalog, NameTaken, TenantCatalog
from perdure.ports.entries import Entry
from perdure.server.changes import SERVERS
from perdure.server.tokens import Fresh, keyed_hash

VERSION: Final = "v1."
NONCE_BYTES: Final = 16
TAG_BYTES: Final = 32


class Sealed(Entry, frozen=True, kw_only=True):
    """What follows from the pepper of a catalog and does not give it away."""

    kind: ClassVar[str] = "sealed"

    name: str = "pepper"
    check: str = ""


async def check_pepper(catalog: Catalog, pepper: bytes) -> None:
    """Note the pepper that a catalog's keys and secrets are made with, or compare it.

    Raises `StoreRefused` if it is another one than the first that came.
    """
    servers = TenantCatalog(catalog, SERVERS)
    check = keyed_hash(pepper, "check", "pepper")
    with suppress(NameTaken):
        await servers.create(Sealed(check=check))
    found = await servers.find(Sealed, Sealed().name)
    if found is None or not hmac.compare_digest(found.check, check):
        raise StoreRefused(
            "PERDURE_KEY_PEPPER is not the one that the keys and secrets in this catalog were made "
            "with, and none of them would be known: give all servers the one that was first"
        )


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
