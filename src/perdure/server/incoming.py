"""A request as it comes over HTTP: who asks, what it may be answered with, what it holds.

Nothing here looks into the catalog or the store.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest

from perdure.api.decoding import decode_body, decode_query
from perdure.api.errors import BLANK, Rejected
from perdure.api.limits import BODY_SECONDS_MAX, KEY_CHARS_MAX
from perdure.api.operations import JSON, Operation
from perdure.server.desk import Request
from perdure.server.keys import Principal

_REFUSED = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")


async def read_request(
    operation: Operation, http: HttpRequest, body_bytes_max: int, by: Principal | None = None
) -> Request:
    """Return the request of whoever it is `by`, decoded by the shapes that the operation names.

    Raises `Rejected`: 400, 408, 413, 415 or 422.
    """
    query: Any = None
    body: Any = None
    unknown: list[str] = []
    if operation.query is not None:
        query = decode_query(http.query_params.multi_items(), operation.query, unknown)
    if operation.body is not None:
        raw = await read_body(http, body_bytes_max)
        if isinstance(operation.body, type) and issubclass(operation.body, msgspec.Struct):
            body = decode_body(raw, operation.body, body_bytes_max, unknown)
        else:
            body = raw
    key = _key(http) if operation.idempotent else None
    return Request(http.path_params, query, body, key, by, tuple(unknown))


async def read_body(
    http: HttpRequest, bytes_max: int, media: tuple[str, ...] = (JSON, "+json")
) -> bytes:
    """Return the body; what is too long, or of another type, is refused when that is seen.

    `media` are the ends of types. Raises `Rejected`: 408, 413, 415.
    """
    said = http.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > bytes_max:
        raise Rejected(413, f"the body has {said[:20]} bytes; at most {bytes_max} are taken")
    kind = http.headers.get("content-type", media[0]).partition(";")[0].strip().lower()
    pieces, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for piece in http.stream():
                size += len(piece)
                if size and not kind.endswith(media):
                    raise Rejected(415, f"the body is {kind[:80]!r}; expected {media[0]}")
                if size > bytes_max:
                    raise Rejected(413, f"the body has more than {bytes_max} bytes")
                pieces.append(piece)
    except TimeoutError:
        raise Rejected(408, f"the body was not there within {BODY_SECONDS_MAX} s") from None
    return b"".join(pieces)


def _key(http: HttpRequest) -> str | None:
    key = http.headers.get("idempotency-key")
    if key is not None and not 0 < len(key.strip()) <= KEY_CHARS_MAX:
        wrong = f"should be at most {KEY_CHARS_MAX} character(s)" if key.strip() else BLANK
        raise Rejected(422, {"Idempotency-Key": [wrong]})
    return key


def token_of(http: HttpRequest) -> str | None:
    """Return the key that a request shows; None if it shows none."""
    scheme, _, token = http.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def accepts(http: HttpRequest, media: str, *, exactly: bool = False) -> bool:
    """Say whether the client takes this media type; `exactly` leaves wildcards out.

    Several `Accept` headers are one, and the most specific entry decides.
    """
    header = ",".join(http.headers.getlist("accept"))
    if not header.strip(" ,"):
        return not exactly
    taken: dict[str, bool] = {}
    for part in header.lower().split(","):
        kind, semicolon, rest = part.strip().partition(";")
        taken[kind.strip()] = _REFUSED.search(semicolon + rest) is None
    wanted = (media,) if exactly else (media, f"{media.partition('/')[0]}/*", "*/*")
    return next((taken[kind] for kind in wanted if kind in taken), False)
