"""What an operation of the REST API is, and short ways to say so: the table is in `operations`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from perdure.api.limits import BODY_BYTES_MAX, BODY_SECONDS_MAX

PREFIX = "/api/v1"
JSON = "application/json"
EVENT_STREAM = "text/event-stream"
HTML = "text/html"

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Scope = Literal["read", "run", "admin"]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be asked of the server.

    `scope` is what the key must allow, None if no key is needed (`admin` may do what `run` may, and
    `run` what `read` may). `query` and `body` are shapes to decode with; a `body` of `object` is
    any JSON object. `answer` is the shape of the answer, None if it has no body, and `media` its
    types. `conflicts` and `refusals` are sentences of 409 and 422 that are this operation's own.
    With `idempotent` an `Idempotency-Key` makes a repetition harmless. Of the fields of the body,
    `admin_fields` are for keys of the scope `admin` alone. With `operators` the key has to be one
    of the tenant whose admins look after the server itself.
    """

    id: str
    methods: tuple[Method, ...]
    path: str
    summary: str
    scope: Scope | None = "read"
    query: type[msgspec.Struct] | None = None
    body: Any = None
    status: int = 200
    answer: Any = None
    media: tuple[str, ...] = (JSON,)
    conflicts: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    idempotent: bool = False
    admin_fields: tuple[str, ...] = ()
    operators: bool = False
    other_errors: Mapping[int, str] = {}

    @property
    def tag(self) -> str:
        """The noun that the operation is about."""
        return self.path.removeprefix(PREFIX).split("/")[1].removesuffix(".json")

    @property
    def path_parameters(self) -> tuple[str, ...]:
        """The names in the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def integers(self) -> tuple[str, ...]:
        """Those of the names in the path that stand for an integer: ids, but no tokens or keys."""
        return () if self.scope is None else tuple({"id"} & set(self.path_parameters))

    def errors(self) -> dict[int, str]:
        """Return everything that may go wrong: status -> what is said. The shape is `Failure`."""
        plain: dict[int, list[str]] = {}
        if self.path.startswith(PREFIX):
            plain[406] = ["The answer is JSON, and `Accept` does not allow it."]
            plain[429] = [
                "Too many requests, or runs: `Retry-After` says how many seconds to wait."
            ]
            plain[503] = ["The server cannot carry this out now; nothing was done."]
        if self.scope is not None:
            plain[401] = ["unauthorized"]
            plain[403] = [f"The key does not allow this: it needs the scope `{self.scope}`."]
            if self.operators:
                plain[403].append("it needs one of the tenant that looks after the server")
            if self.admin_fields:
                plain[403].append(f"`admin` is needed for {' and '.join(self.admin_fields)}")
        if self.path_parameters:
            plain[404] = ["not found: there is none with this id, or it is not yours"]
        if self.integers:
            plain[400] = ["Bad Request: the id in the path is not an integer."]
        if self.body is not None:
            plain[400] = [*plain.get(400, []), "Bad Request: the body is not a JSON object."]
            plain[408] = [f"The body was not there within {BODY_SECONDS_MAX} s."]
            plain[413] = [f"Too many bytes: {BODY_BYTES_MAX}, if not set otherwise, are taken."]
            plain[415] = ["The body is not JSON."]
        if self.conflicts or self.idempotent:
            under_way = "a request with this Idempotency-Key is under way; try again"
            plain[409] = [*self.conflicts, *([under_way] if self.idempotent else ())]
        for status, sentence in self.other_errors.items():
            plain[status] = [*plain.get(status, []), sentence]
        if self.query is not None or self.body is not None or self.idempotent or self.refusals:
            plain[422] = ["What is wrong, field by field.", *self.refusals]
        return {status: _joined(said) for status, said in sorted(plain.items())}


def _joined(said: Iterable[str]) -> str:
    """Return sentences, and what a server may say instead, as one text."""
    return "; ".join(said).replace(".; ", ". ")


def get(id: str, path: str, answer: Any, summary: str, **more: Any) -> Operation:
    """Return an operation that reads."""
    return Operation(
        id=id, methods=("GET",), path=PREFIX + path, answer=answer, summary=summary, **more
    )


def post(id: str, path: str, answer: Any, summary: str, **more: Any) -> Operation:
    """Return an operation that makes or does something."""
    more = {"scope": "run", **more}
    return Operation(
        id=id, methods=("POST",), path=PREFIX + path, answer=answer, summary=summary, **more
    )


def update(id: str, path: str, body: Any, answer: Any, summary: str, **more: Any) -> Operation:
    """Return an operation that changes something."""
    return Operation(
        id=id,
        methods=("PUT", "PATCH"),
        path=PREFIX + path,
        body=body,
        answer=answer,
        summary=summary,
        **{"scope": "admin", **more},
    )


def delete(id: str, path: str, summary: str, **more: Any) -> Operation:
    """Return an operation that ends something."""
    more = {"scope": "admin", "status": 204, **more}
    return Operation(id=id, methods=("DELETE",), path=PREFIX + path, summary=summary, **more)
