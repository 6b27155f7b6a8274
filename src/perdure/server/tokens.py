"""API keys as text: how one is made, read and hashed. Pure functions; chance is handed in.

A key is `prd_<id>_<secret><checksum>`. The id finds it, the secret has 256 bits, and the checksum
tells a typing error, and a key from a string that only looks like one, without a lookup. A worker's
key begins with `nrnw_`, by which the SDK of Norns knows that it may do nothing but work.

Keys that somebody else made (`nrn_...`) are strings without any structure: their id is a hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from collections.abc import Callable

from perdure.ports.entries import Scope

Fresh = Callable[[int], bytes]
"""Returns so many random bytes that nobody can guess."""

PREFIX = "prd"
WORKER_PREFIX = "nrnw"
ID_BYTES, ID_CHARS = 8, 11
SECRET_BYTES, SECRET_CHARS = 32, 43
CHECKSUM_CHARS = 6
FOREIGN_CHARS_MIN = 16
TOKEN_CHARS_MAX = 256

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_OURS = re.compile(
    rf"(?:{PREFIX}|{WORKER_PREFIX})_([0-9A-Za-z]{{{ID_CHARS}}})"
    rf"_[0-9A-Za-z]{{{SECRET_CHARS + CHECKSUM_CHARS}}}"
)


def make_token(scope: Scope, fresh: Fresh) -> str:
    """Return a new key."""
    prefix = WORKER_PREFIX if scope == "worker" else PREFIX
    key_id, secret = _base62(fresh(ID_BYTES), ID_CHARS), _base62(fresh(SECRET_BYTES), SECRET_CHARS)
    body = f"{prefix}_{key_id}_{secret}"
    return body + _checksum(body)


def key_id(token: str, pepper: bytes) -> str | None:
    """Return the id of the key that this may be; None for what cannot be one."""
    if not token.isascii() or not FOREIGN_CHARS_MIN <= len(token) <= TOKEN_CHARS_MAX:
        return None
    if not token.startswith((f"{PREFIX}_", f"{WORKER_PREFIX}_")):
        return keyed_hash(pepper, "id", token)[:32]
    ours = _OURS.fullmatch(token)
    body, checksum = token[:-CHECKSUM_CHARS], token[-CHECKSUM_CHARS:]
    return ours[1] if ours is not None and checksum == _checksum(body) else None


def keyed_hash(pepper: bytes, purpose: str, text: str) -> str:
    """Return the HMAC-SHA256 of a text in hex; hashes for several purposes do not meet."""
    return hmac.new(pepper, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()).to_bytes(4, "big"), CHECKSUM_CHARS)


def _base62(data: bytes, chars: int) -> str:
    number, found = int.from_bytes(data, "big"), ""
    for _ in range(chars):
        number, digit = divmod(number, len(_DIGITS))
        found = _DIGITS[digit] + found
    return found
