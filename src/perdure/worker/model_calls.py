"""Model calls: one request, one reply or one failure that says whether to try again."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, cast, get_args

import msgspec
from msgspec.structs import replace

from perdure.core.commands import Report, ReportModelError, ReportReply
from perdure.core.errors import InvalidInput
from perdure.core.events import ErrorClass
from perdure.core.limits import JSON_DEPTH_MAX, REPLY_BYTES_MAX, may_be_too_deep, too_deep
from perdure.core.messages import ModelReply, recordable
from perdure.core.retry import classify
from perdure.ports import faults
from perdure.ports.models import Model, ModelError, ModelRequest, OnText
from perdure.ports.workers import ModelTask
from perdure.ports.workers import OnText as OnTaskText
from perdure.worker.outcome import describe, printable
from perdure.worker.redaction import hidden, hidden_in, is_known_in
from perdure.worker.running import Running, is_cancelled
from perdure.worker.threads import Threads

_KNOWN: tuple[tuple[type[BaseException], ErrorClass, str], ...] = (
    (InvalidInput, "validation", "invalid_input"),
    (TimeoutError, "transient", "timeout"),
    (ConnectionError, "transient", "connection_lost"),
)
_reply_decoder = msgspec.json.Decoder(ModelReply)


class FunctionModel:
    """A function from a request to a reply, or to its text, as a model. A sync one may block."""

    def __init__(self, function: Callable[[ModelRequest], Any], threads: Threads) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        self._threads = threads

    async def reply(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return what the function returns; text becomes a reply, and is told."""
        if self._is_async:
            reply = await self._function(request)
        else:
            answer = self._threads.submit(lambda: _attempt(self._function, request))
            reply, error = await asyncio.wrap_future(answer)
            if error is not None:
                raise error
            if inspect.isawaitable(reply):
                reply = await reply
        if isinstance(reply, str):
            reply = ModelReply(content=reply)
        content = getattr(reply, "content", None)
        if isinstance(content, str):
            on_text(content)
        return cast(ModelReply, reply)


def _attempt(
    function: Callable[[ModelRequest], Any], request: ModelRequest
) -> tuple[Any, BaseException | None]:
    # A future refuses StopIteration, so that the error travels as a value.
    try:
        return function(request), None
    except BaseException as error:  # noqa: BLE001  raised again by whoever waits
        return None, error


async def ask(
    running: Running,
    task: ModelTask,
    find: Callable[[], Model],
    on_text: OnTaskText,
    timeout_ms: int,
) -> None:
    """Ask the model that `find` returns; end the call with its reply or with what went wrong."""

    def tell(piece: str) -> None:
        if not running.over:
            on_text(task, hidden(piece))

    running.limit(timeout_ms, lambda: timed_out(task.call, timeout_ms))
    faults.reach("model.before")
    try:
        reply = await find().reply(task.request, tell)
    except GeneratorExit:
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        running.end(failed(task.call, error))
        return
    faults.reach("model.after")
    running.end(checked(task.call, reply))


def timed_out(call: str, timeout_ms: int) -> Report:
    """Return the report of a model that did not reply in time."""
    message = f"the model did not reply within {timeout_ms / 1000:g} s"
    return _error(call, "transient", "timeout", message)


def checked(call: str, reply: object) -> Report:
    """Return the report of what a model returned, which need not be a reply."""
    if not isinstance(reply, ModelReply):
        message = f"the model returned {reply!r:.200}, which is not a ModelReply"
        return _error(call, "internal", "not_a_reply", message)
    try:
        if reply.tool_calls:
            reply = replace(reply, tool_calls=tuple(map(recordable, reply.tool_calls)))
        body = msgspec.json.encode(reply)
        as_recorded = _reply_decoder.decode(body)
    except Exception as error:  # noqa: BLE001  a reply may hold anything
        message = f"the model's reply cannot be recorded: {describe(error)}"
        return _error(call, "internal", "not_a_reply", message)
    if len(body) > REPLY_BYTES_MAX:
        message = (
            f"the model's reply has {len(body)} bytes, more than the limit of {REPLY_BYTES_MAX}"
        )
        return _error(call, "validation", "reply_too_large", message)
    told = (as_recorded.content, as_recorded.extra, [r.arguments for r in as_recorded.tool_calls])
    if may_be_too_deep(body) and too_deep(told):
        message = f"the model's reply is nested deeper than {JSON_DEPTH_MAX} levels"
        return _error(call, "validation", "reply_too_deep", message)
    if is_known_in(body):
        clean = hidden_in(msgspec.json.decode(body), body)
        as_recorded = msgspec.convert(clean, ModelReply)
    return ReportReply(call=call, reply=as_recorded)


def failed(call: str, error: BaseException) -> Report:
    """Return the report of a failure. What an error says of itself wins over what its text says."""
    if isinstance(error, ModelError):
        return _failed_by_itself(call, error)
    message = describe(error)
    for kind, error_class, code in _KNOWN:
        if isinstance(error, kind):
            return _error(call, error_class, code, message)
    status = getattr(error, "status_code", None)
    failure = classify(str(error), status if isinstance(status, int) else None)
    if failure.code == "unexpected_failure":
        # Some errors have their only word in the name of their class.
        failure = classify(message)
    return _error(call, failure.error_class, failure.code, message, failure.retry_after_ms)


def _failed_by_itself(call: str, error: ModelError) -> Report:
    failure = classify(str(error), error.status, error.retry_after_ms)
    error_class = failure.error_class
    if error.error_class in get_args(ErrorClass):
        error_class = cast("ErrorClass", error.error_class)
    code = error.code or failure.code
    return _error(call, error_class, code, str(error), failure.retry_after_ms)


def _error(
    call: str,
    error_class: ErrorClass,
    code: str,
    message: str,
    retry_after_ms: int | None = None,
) -> Report:
    return ReportModelError(
        call=call,
        error_class=error_class,
        code=code,
        message=printable(message),
        retry_after_ms=retry_after_ms,
    )
