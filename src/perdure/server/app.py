"""The ASGI application: requests in by the table of operations, answers out, nothing else.

A request is let in by its key and its limits, decoded by the shapes that the table names, and
handed to the handler of the operation's id. Handlers see one tenant's desk and know no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from perdure.api.decoding import NAMED_CHARS_MAX
from perdure.api.errors import TAKEN, Failure, Rejected
from perdure.api.limits import BODY_BYTES_MAX
from perdure.api.operations import EVENT_STREAM, JSON, OPERATIONS, Operation
from perdure.core.errors import (
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    PerdureError,
    Quarantined,
    Refused,
    Unavailable,
)
from perdure.core.limits import clip
from perdure.ports.catalog import NameTaken, Stale
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers import HANDLERS, PUBLIC
from perdure.server.incoming import accepts, read_request, token_of
from perdure.server.keys import Principal, refusal
from perdure.server.repeats import Stored
from perdure.server.service import Service
from perdure.server.setup_page import PATH as SETUP
from perdure.server.setup_page import setup_page
from perdure.server.sockets import agent_socket, worker_socket
from perdure.server.streams import stream_events

_log = logging.getLogger("perdure.server")
_encode = msgspec.json.Encoder().encode
_ODD = re.compile(r"[^\w.-]", re.ASCII)

STATUSES: tuple[tuple[type[PerdureError], int], ...] = (
    (NotFound, 404),
    (LimitExceeded, 413),
    (KeyReused, 422),
    (InvalidInput, 422),
    (Refused, 409),
    (Quarantined, 409),
    (Stale, 409),
    (Unavailable, 503),
)
"""What answers an error that no handler has put into words of its own."""

KEYED_BY_THE_STORE = frozenset({"send_message", "fire_trigger"})
"""Their idempotency keys name runs, which the store knows for as long as it has them."""

LONG = frozenset({"wait_for_run"})
"""They may take a minute; they change nothing, and end when their key does."""

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

    routes: list[Any] = [_route(service, path, methods) for path, methods in PATHS.items()]
    routes += [
        Route(SETUP, setup_page(service), methods=["GET", "POST"]),
        WebSocketRoute("/worker/websocket", worker_socket(service)),
        WebSocketRoute("/socket/websocket", agent_socket(service)),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _unforeseen}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would name whatever host the request named
    return app


def _by_path() -> dict[str, dict[str, Operation]]:
    """Return what each path is good for, by method."""
    found: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        # A conversation's key may hold slashes.
        path = found.setdefault(operation.path.replace("{key}", "{key:path}"), {})
        path.update(dict.fromkeys(operation.methods, operation))
    return found


PATHS: Mapping[str, Mapping[str, Operation]] = _by_path()


def _route(service: Service, path: str, operations: Mapping[str, Operation]) -> Route:
    methods = (
        [*operations, "OPTIONS"] if "GET" not in operations else [*operations, "HEAD", "OPTIONS"]
    )

    async def endpoint(http: HttpRequest) -> Response:
        if http.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join(methods)})
        if http.method == "HEAD":
            answer = await _safely(service, operations["GET"], http)
            return Response(status_code=answer.status_code, headers=dict(answer.headers))
        return await _safely(service, operations[http.method], http)

    return Route(path, endpoint, methods=methods)


async def _safely(service: Service, operation: Operation, http: HttpRequest) -> Response:
    """Answer, also for what goes wrong."""
    try:
        return await _answer(service, operation, http)
    except Rejected as rejected:
        return _refused(rejected)
    except NameTaken as taken:
        return _json(Failure({taken.field: [TAKEN]}), 422)
    except ClientDisconnect:
        return Response(status_code=400)
    except PerdureError as error:
        return _json(Failure(str(error)), _status(error))


async def _answer(service: Service, operation: Operation, http: HttpRequest) -> Response:
    if operation.scope is None:
        request = await read_request(operation, http, BODY_BYTES_MAX)
        return _noting(request, _response(await PUBLIC[operation.id](service, request, http)))
    token = token_of(http)
    principal = await service.keys.authenticate(token, service.clock.now_ms()) if token else None
    status = refusal(principal, NEEDS[operation.scope])
    if principal is None or status == 401:
        raise Rejected(401, "unauthorized")
    if status is not None:
        raise Rejected(403, f"the key does not allow this: it needs the scope {operation.scope}")
    if operation.operators and principal.tenant != service.operator:
        said = f"the key does not allow this: it needs one of the tenant {service.operator}"
        raise Rejected(403, said)
    service.admit(principal.tenant)
    streamed = EVENT_STREAM in operation.media and accepts(http, EVENT_STREAM, exactly=True)
    if not streamed and not accepts(http, JSON):
        raise Rejected(406, "the answer is JSON, and Accept does not allow it")
    desk = service.desk(principal.tenant)
    bytes_max = service.limits(principal.tenant).body_bytes_max
    request = await read_request(operation, http, bytes_max, principal)
    for field in operation.admin_fields:
        if getattr(request.body, field) is not None and refusal(principal, NEEDS["admin"]):
            raise Rejected(403, f"the key does not allow {field}: it needs the scope admin")
    if streamed:
        if service.sockets["agent"].is_reached(principal.tenant):
            raise Rejected(429, "too many streams and sockets are open: close some")
        stream = await stream_events(desk, request, http)
        stream.body_iterator = _while_good(service, principal, stream.body_iterator)
        return _noting(request, stream)
    if request.key is not None and operation.id not in KEYED_BY_THE_STORE:
        answer = await _once(desk, operation, request)
    elif operation.id in LONG:
        work = HANDLERS[operation.id](desk, request)
        answer = _response(await _only_while_good(service, principal.key_id, work))
    else:
        answer = _response(await HANDLERS[operation.id](desk, request))
    return _noting(request, answer)


async def _once(desk: Desk, operation: Operation, request: Request) -> Response:
    """Carry out a request that has a key, or answer as it was answered before."""

    async def act() -> Stored:
        answer = await HANDLERS[operation.id](desk, request)
        return Stored(answer.status, _encode(answer.body))

    what = " ".join((operation.id, *map(str, request.path.values())))
    done = await desk.repeats.once(what, request.key or "", _encode(request.body), act)
    return Response(done.body, done.status, media_type=JSON)


async def _while_good(
    service: Service, principal: Principal, frames: AsyncIterable[Any]
) -> AsyncIterator[Any]:
    """Hand on what a stream says until its key is revoked or expires; count it meanwhile."""
    over = asyncio.Event()

    def end() -> None:
        over.set()
        service.leaving.wake()

    if not service.sockets["agent"].open(principal.tenant):
        return
    unwatch = service.keys.watch(principal.key_id, end)
    try:
        async for frame in frames:
            if over.is_set():
                return
            yield frame
    finally:
        unwatch()
        service.sockets["agent"].close(principal.tenant)


async def _only_while_good(service: Service, key_id: str, work: Awaitable[Answer]) -> Answer:
    """Return what a request that only looks comes to, or `Rejected` (401) once its key is none."""
    task = asyncio.ensure_future(work)

    def end() -> None:
        task.cancel()

    unwatch = service.keys.watch(key_id, end)
    try:
        await asyncio.wait({task})
        if task.cancelled():
            raise Rejected(401, "unauthorized")
        return task.result()
    finally:
        unwatch()
        task.cancel()


def _noting(request: Request, answer: Response) -> Response:
    """Say in a header which fields were left out, if some were."""
    if request.unknown:
        names = ", ".join(_ODD.sub("?", clip(name, NAMED_CHARS_MAX)) for name in request.unknown)
        answer.headers["Warning"] = f'299 - "left out, because nothing here knows it: {names}"'
    return answer


def _response(answer: Answer | Response) -> Response:
    if isinstance(answer, Response):
        return answer
    if answer.body is None:
        return Response(status_code=answer.status)
    if isinstance(answer.body, AsyncIterator):
        return StreamingResponse(answer.body, answer.status, media_type=JSON)
    return _json(answer.body, answer.status)


def _refused(rejected: Rejected) -> Response:
    answer = _json(rejected.body(), rejected.status)
    if rejected.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if rejected.retry_after_s is not None:
        answer.headers["Retry-After"] = str(rejected.retry_after_s)
    return answer


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
