"""The ASGI application: requests in by the table of operations, answers out, nothing else.

A request is let in by its key and its limits, decoded by the shapes that the table names, and
handed to the handler of the operation's id. Handlers see one tenant's desk and know no HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from perdure.api.decoding import decode_body, decode_query
from perdure.api.errors import BLANK, TAKEN, Failure, Rejected
from perdure.api.limits import BODY_BYTES_MAX, KEY_CHARS_MAX
from perdure.api.operations import EVENT_STREAM, JSON, OPERATIONS, Operation
from perdure.core.errors import (
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    PerdureError,
    Refused,
    Unavailable,
)
from perdure.ports.catalog import NameTaken, Stale
from perdure.server.desk import Answer, Request
from perdure.server.handlers import HANDLERS, PUBLIC
from perdure.server.keys import refusal
from perdure.server.service import Service
from perdure.server.sockets import agent_socket, worker_socket
from perdure.server.streams import stream_events

_log = logging.getLogger("perdure.server")
_encode = msgspec.json.Encoder().encode

STATUSES: tuple[tuple[type[PerdureError], int], ...] = (
    (NotFound, 404),
    (LimitExceeded, 413),
    (KeyReused, 422),
    (InvalidInput, 422),
    (Refused, 409),
    (Stale, 409),
    (Unavailable, 503),
)
"""What answers an error that no handler has put into words of its own."""

NEEDS: Mapping[str | None, Any] = {"read": "read", "run": "run", "admin": "manage"}


def application(service: Service) -> Starlette:
    """Return the application that serves `service`, which it starts and stops with itself."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    routes: list[Any] = [
        Route(_path(operation), _endpoint(service, operation), methods=list(operation.methods))
        for operation in OPERATIONS
    ]
    routes += [
        WebSocketRoute("/worker/websocket", worker_socket(service)),
        WebSocketRoute("/socket/websocket", agent_socket(service)),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _unforeseen}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


def _path(operation: Operation) -> str:
    """Return the route's path; a conversation's key may hold slashes."""
    return operation.path.replace("{key}", "{key:path}")


def _endpoint(
    service: Service, operation: Operation
) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def endpoint(http: HttpRequest) -> Response:
        try:
            return await _answer(service, operation, http)
        except Rejected as rejected:
            return _json(rejected.body(), rejected.status)
        except NameTaken as taken:
            return _json(Failure({taken.field: [TAKEN]}), 422)
        except ClientDisconnect:
            return Response(status_code=400)
        except PerdureError as error:
            return _json(Failure(str(error)), _status(error))

    return endpoint


async def _answer(service: Service, operation: Operation, http: HttpRequest) -> Response:
    if operation.scope is None:
        request = await _request(operation, http)
        return _response(await PUBLIC[operation.id](service, request, http), operation)
    token = _token(http)
    principal = await service.keys.authenticate(token, service.clock.now_ms()) if token else None
    status = refusal(principal, NEEDS[operation.scope])
    if principal is None or status == 401:
        raise Rejected(401, "unauthorized")
    if status is not None:
        raise Rejected(403, f"the key does not allow this: it needs the scope {operation.scope}")
    wait_ms = service.requests.wait_ms(principal.tenant, service.clock.monotonic_ms())
    if wait_ms:
        seconds = -(-wait_ms // 1000)
        answer = _json(Failure(f"too many requests: try again in {seconds} s"), 429)
        answer.headers["Retry-After"] = str(seconds)
        return answer
    streamed = EVENT_STREAM in operation.media and _accepts(http, EVENT_STREAM, exactly=True)
    if not streamed and not _accepts(http, JSON):
        raise Rejected(406, "the answer is JSON, and Accept does not allow it")
    desk = service.desk(principal.tenant)
    request = await _request(operation, http)
    if streamed:
        return await stream_events(desk, request, http)
    return _response(await HANDLERS[operation.id](desk, request), operation)


async def _request(operation: Operation, http: HttpRequest) -> Request:
    body: Any = None
    query: Any = None
    if operation.query is not None:
        query = decode_query(http.query_params.multi_items(), operation.query)
    if operation.body is not None:
        raw = await _body(http)
        if isinstance(operation.body, type) and issubclass(operation.body, msgspec.Struct):
            body = decode_body(raw, operation.body)
        else:
            body = raw
    key = http.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= KEY_CHARS_MAX):
        wrong = BLANK if not key else f"should be at most {KEY_CHARS_MAX} character(s)"
        raise Rejected(422, {"Idempotency-Key": [wrong]})
    return Request(http.path_params, query, body, key)


async def _body(http: HttpRequest) -> bytes:
    """Return the body; what is too long is refused before it is read."""
    pieces, size = [], 0
    async for piece in http.stream():
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise Rejected(413, f"the body has more than {BODY_BYTES_MAX} bytes")
        pieces.append(piece)
    kind = http.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if size and not (kind == JSON or kind.endswith("+json")):
        raise Rejected(415, f"the body is {kind[:80]!r}; expected {JSON}")
    return b"".join(pieces)


def _token(http: HttpRequest) -> str | None:
    scheme, _, token = http.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _accepts(http: HttpRequest, media: str, *, exactly: bool = False) -> bool:
    """Say whether the client takes this media type; `exactly` leaves wildcards out."""
    header = http.headers.get("accept")
    if header is None:
        return not exactly
    kinds = {part.partition(";")[0].strip().lower() for part in header.split(",")}
    wild = set() if exactly else {"*/*", f"{media.partition('/')[0]}/*"}
    return not kinds.isdisjoint({media, *wild})


def _response(answer: Answer | Response, operation: Operation) -> Response:
    if isinstance(answer, Response):
        return answer
    if answer.body is None:
        return Response(status_code=answer.status)
    return _json(answer.body, answer.status)


def _json(body: Any, status: int = 200) -> Response:
    return Response(_encode(body), status, media_type=JSON)


def _status(error: PerdureError) -> int:
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 503)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "not found", 405: "method not allowed"}.get(error.status_code, error.detail)
    answer = _json(Failure(said), error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _unforeseen(http: HttpRequest, error: Exception) -> Response:
    _log.error("%s %s failed", http.method, http.url.path, exc_info=error)
    return _json(Failure("internal server error"), 500)
