"""Requests as values, and answers read: the table of operations put to use, without a socket."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET

from perdure.api.operations import BY_ID, Operation
from perdure.api.shapes import Data
from perdure.client.errors import ApiError
from perdure.core.errors import InvalidInput

IDEMPOTENCY_HEADER = "Idempotency-Key"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a server. With `hold_s` the server may take so long to answer on purpose."""

    operation: Operation
    path: str
    query: Mapping[str, str] = {}
    body: bytes | None = None
    key: str | None = None
    hold_s: float = 0

    @property
    def method(self) -> str:
        """The method to ask with."""
        return self.operation.methods[0]

    @property
    def is_repeatable(self) -> bool:
        """Whether asking twice does no more than asking once."""
        return self.method != "POST" or self.key is not None

    def headers(self) -> dict[str, str]:
        """Return the headers of this request alone."""
        found = {}
        if self.body is not None:
            found["Content-Type"] = "application/json"
        if self.key is not None:
            found[IDEMPOTENCY_HEADER] = self.key
        return found


class Pause(msgspec.Struct, frozen=True):
    """Time to let pass before the next request, in seconds."""

    seconds: float


def call(
    operation: str,
    *,
    query: msgspec.Struct | None = None,
    body: Any = None,
    key: str | None = None,
    hold_s: float = 0,
    path: Mapping[str, int | str] | None = None,
) -> Call:
    """Return the request that an operation of `perdure.api.operations` asks for.

    Raises `InvalidInput` for an operation or a path that does not exist.
    """
    known = BY_ID.get(operation)
    if known is None:
        raise InvalidInput(f"there is no operation {operation!r}; see perdure.api.operations")
    path = path or {}
    if set(path) != set(known.path_parameters):
        expected = ", ".join(known.path_parameters) or "nothing"
        raise InvalidInput(f"the path of {operation} takes {expected}, not {sorted(path)}")
    if key is not None and not known.idempotent:
        raise InvalidInput(f"{operation} takes no idempotency key")
    filled = {name: quote(str(value), safe="") for name, value in path.items()}
    return Call(
        operation=known,
        path=known.path.format(**filled),
        query={} if query is None else _query(query),
        body=None if body is None else msgspec.json.encode(_body(body)),
        key=key,
        hold_s=hold_s,
    )


def answer(asked: Call, status: int, headers: Mapping[str, str], body: bytes) -> Any:
    """Return what an answer says, out of its envelope. Raises `ApiError` if it is a refusal."""
    if status >= 300:
        raise refusal(asked, status, headers, body)
    shape = asked.operation.answer
    if shape is None:
        return None
    try:
        value = _decoder(shape).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        words = f"the answer is not what was expected: {error}"
        raise ApiError(_asked(asked), status, words) from None
    return value.data if isinstance(value, Data) else value


def refusal(asked: Call, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Return what a refusal says."""
    error: Any = None
    try:
        told = msgspec.json.decode(body)
        error = told.get("error") if isinstance(told, dict) else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    if isinstance(error, dict):
        error = {
            str(field): [str(word) for word in words] if isinstance(words, list) else [str(words)]
            for field, words in error.items()
        }
    elif not isinstance(error, str):
        error = body[:200].decode(errors="replace") or "without a word"
    after = headers.get("retry-after", "")
    return ApiError(_asked(asked), status, error, float(after) if after.isdecimal() else None)


def _asked(asked: Call) -> str:
    return f"{asked.method} {asked.path}"


def _body(body: Any) -> Any:
    """Return a body without what was not given: null would say that it is to be taken away."""
    if not isinstance(body, msgspec.Struct):
        return body
    fields = ((name, getattr(body, name)) for name in body.__struct_fields__)
    return {name: value for name, value in fields if value is not None and value is not UNSET}


def _query(query: msgspec.Struct) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in _body(query).items()
    }


@cache
def _decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)
