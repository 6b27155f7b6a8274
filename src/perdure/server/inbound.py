"""What a webhook that came in asks for: which message, in which session, under which key.

`receive` checks the signature of the raw bytes before it parses them. What it returns is accepted
by the store under `idempotency_key`: the command and the memory of the delivery are one write, so a
delivery that comes a thousand times is one run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from perdure.core.errors import InvalidInput
from perdure.core.ids import digest
from perdure.core.limits import JSON_DEPTH_MAX, may_be_too_deep, too_deep
from perdure.server.signatures import Headers, Scheme, delivery_id, verify

CONVERSATION_CHARS_MAX: Final = 150
"""A value longer than that is represented by its digest in the key of the session."""


class Inbound(msgspec.Struct, frozen=True):
    """What to send. Without `session_key` it is a session of its own.

    Without `idempotency_key` the sender gave no id, and each delivery is a new message.
    """

    content: Any
    session_key: str | None
    idempotency_key: str | None


class Challenge(msgspec.Struct, frozen=True):
    """Slack asks whether the address is ours before it sends anything: answer with `text`."""

    text: str


def receive(
    hook: int,
    scheme: Scheme,
    secret: str,
    headers: Headers,
    body: bytes,
    now_ms: int,
    message_path: str | None = None,
    conversation_key_path: str | None = None,
) -> Inbound | Challenge:
    """Return what a delivery to the hook with this id asks for.

    Raises `BadSignature`, and `InvalidInput` for a body that is no JSON object.
    """
    headers = headers if isinstance(headers, Mapping) else list(headers)
    verify(scheme, secret, headers, body, now_ms)
    payload = _decode(body)
    if scheme == "slack" and payload.get("type") == "url_verification":
        return Challenge(str(payload.get("challenge", "")))
    delivery = delivery_id(scheme, headers, payload)
    return Inbound(
        content=message(payload, message_path),
        session_key=conversation_key(hook, payload, conversation_key_path),
        idempotency_key=delivery and f"hook_{hook}_{digest(delivery.encode())}",
    )


def find(payload: Any, path: str) -> Any:
    """Return the value at a path such as `event.items.0.text`; None if there is none."""
    for name in path.split("."):
        if isinstance(payload, dict):
            payload = payload.get(name)
        elif isinstance(payload, list) and name.isascii() and name.isdigit() and len(name) < 10:
            payload = payload[int(name)] if int(name) < len(payload) else None
        else:
            return None
    return payload


def message(payload: Any, path: str | None) -> str:
    """Return the text or number at `path` as text; the whole payload, indented, if there is none.

    A hook that finds nothing where it was told to look still says what came.
    """
    value = find(payload, path) if path else None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return json.dumps(payload, indent=2, ensure_ascii=False)


def conversation_key(hook: int, payload: Any, path: str | None) -> str | None:
    """Return the session that the text or number at `path` stands for: `hook_<id>_<text>`.

    None if there is none.

    A text that cannot be part of a session key is represented by its digest.
    """
    value = find(payload, path) if path else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        return None
    if len(value) > CONVERSATION_CHARS_MAX or not value.isprintable():
        value = digest(value.encode(errors="surrogatepass"))
    return f"hook_{hook}_{value}"


def _decode(body: bytes) -> dict[str, Any]:
    try:
        payload = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not a JSON object: {error}") from None
    except RecursionError:
        payload = None
    if payload is None or (may_be_too_deep(body) and too_deep(payload)):
        raise InvalidInput(f"the body is nested deeper than {JSON_DEPTH_MAX}")
    return payload
