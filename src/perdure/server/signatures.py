"""Signatures of webhooks: those that come in are checked, those that go out are signed.

| scheme | headers | HMAC-SHA256 over | written as |
| --- | --- | --- | --- |
| github | x-hub-signature-256 | body | sha256=HEX |
| stripe | stripe-signature (t=..., v1=...) | t.body | HEX |
| slack | x-slack-signature, x-slack-request-timestamp | v0:timestamp:body | v0=HEX |
| standard | webhook-id, webhook-timestamp, webhook-signature | id.timestamp.body | v1,BASE64 |
| none | | | |

`standard` is Standard Webhooks; its secret is `whsec_` and base64. Any one of several signatures
is enough for stripe and standard: that is how a sender changes its secret.

The raw bytes are checked, before anybody parses them. A header that comes twice is a signature that
does not hold: which of the two another program reads is not known. Except with github, which signs
no time, a signature is good for 300 seconds before and after its timestamp. So a repeat is kept off
by the delivery's id, which the caller makes the idempotency key of what it accepts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

from perdure.core.errors import InvalidInput, PerdureError

Scheme = Literal["none", "github", "stripe", "slack", "standard"]
Reason = Literal["missing_signature", "invalid_signature", "stale_timestamp"]
Text = bytes | str
Headers = Mapping[str, str] | Iterable[tuple[Text, Text]]

TOLERANCE_SECONDS: Final = 300
SIGNATURES_MAX: Final = 16
"""So many signatures of a header are looked at: more only serve to keep a server busy."""
ID_CHARS_MAX: Final = 256
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  what a secret begins with

_DIGITS: Final = re.compile(rb"[0-9]{1,12}")


class BadSignature(PerdureError):
    """A webhook that does not prove where it comes from; `reason` is what is answered."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def check_secret(scheme: str, secret: str | None) -> Scheme:
    """Return the scheme, if it is one and the secret can serve it; raise `InvalidInput` if not."""
    for known in get_args(Scheme):
        if scheme == known:
            if known != "none":
                _key(known, secret or "")
            return known  # type: ignore[no-any-return]
    raise InvalidInput(f"{scheme!r} is no signature type; expected {', '.join(get_args(Scheme))}")


def verify(scheme: Scheme, secret: str, headers: Headers, body: bytes, now_ms: int) -> None:
    """Check that a webhook comes from who knows the secret; raises `BadSignature` if not.

    `headers` are a mapping or, as they came, pairs of bytes or text; `body` is the raw body;
    `now_ms` is since 1970.
    """
    if scheme == "none":
        return
    found, key, stamp = _Headers(headers), _key(scheme, secret), None
    # Texts are compared, not what they decode to: a signature has one spelling.
    if scheme == "github":
        theirs = [found.one(b"x-hub-signature-256")]
        ours = b"sha256=" + _hex(key, body)
    elif scheme == "stripe":
        stamp, theirs = _stripe(found.one(b"stripe-signature"))
        ours = _hex(key, stamp, b".", body)
    elif scheme == "slack":
        theirs, stamp = [found.one(b"x-slack-signature")], found.one(b"x-slack-request-timestamp")
        ours = b"v0=" + _hex(key, b"v0:", stamp, b":", body)
    else:
        message, stamp = found.one(b"webhook-id"), found.one(b"webhook-timestamp")
        theirs = found.one(b"webhook-signature").split(b" ")[:SIGNATURES_MAX]
        # With a point in the id, id and timestamp could be cut elsewhere and still be signed.
        if b"." in message or len(message) > ID_CHARS_MAX:
            theirs = []
        ours = _v1(key, message, stamp, body)
    # No shortcut at the first match: how long it takes says nothing.
    if sum([hmac.compare_digest(ours, each) for each in theirs]) == 0:
        raise BadSignature("invalid_signature")
    if stamp is not None and not _is_fresh(stamp, now_ms):
        raise BadSignature("stale_timestamp")


def delivery_id(scheme: Scheme, headers: Headers, payload: Any) -> str | None:
    """Return the sender's id of a delivery, the same each time it sends it again; None if none.

    Call it after `verify`. `payload` is the decoded body: stripe and slack have the id in there,
    signed. github's is a header that it does not sign: whoever has seen one of its deliveries can
    give it another id.
    """
    found = _Headers(headers)
    name: Any = None
    if scheme in {"stripe", "slack"} and isinstance(payload, Mapping):
        name = payload.get("id" if scheme == "stripe" else "event_id")
    elif scheme in {"github", "standard"}:
        header = found.get(b"x-github-delivery" if scheme == "github" else b"webhook-id")
        name = header.decode("latin-1") if header is not None else None
    return name if isinstance(name, str) and 0 < len(name) <= ID_CHARS_MAX else None


def sign(secrets: Sequence[str], id: str, now_ms: int, body: bytes) -> dict[str, str]:
    """Return the headers of an outbound webhook, signed with each of the secrets (`whsec_...`).

    The id stays the same for every attempt. Raises `InvalidInput` for an id that has a point in it.
    """
    if "." in id or not id.isascii():
        raise InvalidInput(f"the id {id!r} of a webhook is ASCII without a point")
    stamp = str(now_ms // 1000)
    keys = [_key("standard", secret) for secret in secrets]
    signatures = [_v1(key, id.encode(), stamp.encode(), body) for key in keys]
    return {
        "webhook-id": id,
        "webhook-timestamp": stamp,
        "webhook-signature": b" ".join(signatures).decode(),
    }


def new_secret(chance: bytes) -> str:
    """Return a secret for `sign` made of random bytes, 24 to 64 of them."""
    if not 24 <= len(chance) <= 64:
        raise InvalidInput(f"a secret is made of 24 to 64 random bytes, not {len(chance)}")
    return SECRET_PREFIX + base64.b64encode(chance).decode()


class _Headers:
    """Headers by name, which know how often each came."""

    def __init__(self, headers: Headers) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        pairs: Iterable[tuple[Text, Text]]
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        for name, value in pairs:
            self._values.setdefault(_bytes(name).lower(), []).append(_bytes(value))

    def get(self, name: bytes) -> bytes | None:
        """Return a header that came exactly once."""
        values = self._values.get(name, [])
        return values[0] if len(values) == 1 else None

    def one(self, name: bytes) -> bytes:
        """Return a header that has to come exactly once, and not empty."""
        if not any(self._values.get(name, [])):
            raise BadSignature("missing_signature")
        if (value := self.get(name)) is None:
            raise BadSignature("invalid_signature")
        return value


def _bytes(text: Text) -> bytes:
    return text.encode(errors="surrogateescape") if isinstance(text, str) else text


def _key(scheme: Scheme, secret: str) -> bytes:
    if not secret:
        raise InvalidInput(f"the signature type {scheme} needs a signing secret")
    if scheme != "standard":
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise InvalidInput(f"the signing secret is not {SECRET_PREFIX} and base64")
    return key


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def _hex(key: bytes, *parts: bytes) -> bytes:
    return _mac(key, *parts).hex().encode()


def _v1(key: bytes, id: bytes, stamp: bytes, body: bytes) -> bytes:
    return b"v1," + base64.b64encode(_mac(key, id, b".", stamp, b".", body))


def _stripe(header: bytes) -> tuple[bytes, list[bytes]]:
    parts = [part.partition(b"=") for part in header.split(b",")]
    stamps = [value for name, _, value in parts if name == b"t"]
    macs = [value for name, _, value in parts if name == b"v1"]
    if len(stamps) != 1 or not _DIGITS.fullmatch(stamps[0]) or not macs:
        raise BadSignature("missing_signature")
    return stamps[0], macs[:SIGNATURES_MAX]


def _is_fresh(stamp: bytes, now_ms: int) -> bool:
    if not _DIGITS.fullmatch(stamp):
        return False
    return abs(now_ms // 1000 - int(stamp)) <= TOLERANCE_SECONDS
