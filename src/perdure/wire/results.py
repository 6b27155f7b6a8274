"""What became of a task, as frames carry it and as the core takes it.

Results of model calls and of tool calls come under one event; which one it is, whoever holds the
task knows. Peers send anything, so that every field is read with care: what makes no sense is an
`invalid result payload`, and never harms more than its task.
"""

from __future__ import annotations

from typing import Any, cast, get_args

import msgspec
from msgspec import UNSET

from perdure.core import commands as c
from perdure.core.events import ErrorClass
from perdure.core.limits import (
    JSON_DEPTH_MAX,
    REPLY_BYTES_MAX,
    RESULT_BYTES_MAX,
    clip,
    may_be_too_deep,
    too_deep,
)
from perdure.core.messages import ModelReply, ToolRequest, Usage
from perdure.core.retry import classify

INVALID = "invalid result payload"
CACHE_MISS = "message_cache_miss"
_VERDICTS = ("happened", "did_not_happen", "undecided")
_USAGE = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_encode = msgspec.json.Encoder().encode


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The payload of `tool_result`, unread: any field may hold anything.

    The fields from `kind` on are spoken by native workers: they say what Norns has no words for.
    """

    task_id: Any = None
    status: Any = None
    content: Any = UNSET
    finish_reason: Any = None
    usage: Any = None
    model: Any = None
    tool_calls: Any = None
    final_output: Any = None
    result: Any = UNSET
    error: Any = UNSET
    duplicate: Any = False
    kind: Any = None
    lost: Any = False
    verdict: Any = None
    error_class: Any = None
    code: Any = None
    retry_after_ms: Any = None
    extra: Any = None


class CacheMiss(msgspec.Struct, frozen=True):
    """A worker does not have the messages that a delta was based on: send them all."""


# ------------------------------------------------------------------------------- taken by a server


def model_report(result: Result, call: str) -> c.ReportReply | c.ReportModelError | CacheMiss:
    """Return what a result says about the model call `call`."""
    if result.status == "error" and result.error is not UNSET:
        if result.error == CACHE_MISS:
            return CacheMiss()
        return _model_error(result, call)
    calls = _tool_requests(result.tool_calls)
    if result.status != "ok" or calls is None or (result.content is UNSET and not calls):
        return _refused(call, "internal", "invalid_result", INVALID)
    if wrong := _unrecordable(result, REPLY_BYTES_MAX):
        return _refused(call, "validation", f"reply_{wrong[0]}", f"the model's reply {wrong[1]}")
    content = "" if result.content in (UNSET, None) else result.content
    if not content and not calls and result.final_output:
        content = result.final_output
    finish, model = result.finish_reason, result.model
    reply = ModelReply(
        content=content,
        tool_calls=calls,
        finish=finish if isinstance(finish, str) and finish else "stop",
        usage=_usage(result.usage),
        model=model if isinstance(model, str) else None,
        extra=result.extra,
    )
    return c.ReportReply(call=call, reply=reply)


def tool_report(result: Result, call: str, attempt: int) -> c.ReportToolResult | c.ReportToolLost:
    """Return what a result says about the tool call `call`."""
    if result.status == "error" and result.error is not UNSET:
        if result.lost is True:
            return c.ReportToolLost(call=call, attempt=attempt, reason=_text(result.error))
        content, ok = result.error, False
    elif result.status == "ok" and result.result is not UNSET:
        content, ok = result.result, True
    else:
        content, ok = INVALID, False
    kind = result.kind if isinstance(result.kind, str) and not ok else "result"
    if wrong := _unrecordable(result, RESULT_BYTES_MAX):
        content = f"The tool ran, but its result {wrong[1]}."
        ok, kind = False, f"result_{wrong[0]}"
    remembered = ok and result.duplicate is True
    return c.ReportToolResult(
        call=call, attempt=attempt, ok=ok, content=content, kind=kind, remembered=remembered
    )


def probe_report(result: Result, call: str, attempt: int) -> c.ReportProbe:
    """Return what a result says about a call whose outcome was unknown; nonsense leaves it open."""
    verdict = result.verdict if result.status == "ok" else None
    if verdict not in _VERDICTS or _unrecordable(result, RESULT_BYTES_MAX):
        return c.ReportProbe(call=call, attempt=attempt, verdict="undecided")
    content = None if result.result is UNSET else result.result
    return c.ReportProbe(call=call, attempt=attempt, verdict=verdict, content=content)


def _model_error(result: Result, call: str) -> c.ReportModelError:
    """Return what a failure means: what a native worker says of it wins over what its text says."""
    message = _text(result.error)
    failure = classify(message)
    error_class, code, after = failure.error_class, failure.code, failure.retry_after_ms
    if result.error_class in get_args(ErrorClass) and isinstance(result.code, str):
        error_class, code = cast("ErrorClass", result.error_class), result.code
    if type(result.retry_after_ms) is int and result.retry_after_ms >= 0:
        after = result.retry_after_ms
    return c.ReportModelError(
        call=call, error_class=error_class, code=code, message=message, retry_after_ms=after
    )


def _refused(call: str, error_class: ErrorClass, code: str, message: str) -> c.ReportModelError:
    return c.ReportModelError(call=call, error_class=error_class, code=code, message=message)


def _tool_requests(value: Any) -> tuple[ToolRequest, ...] | None:
    """Return the tool calls in a reply; None if they cannot be read."""
    if value is None:
        return ()
    if not isinstance(value, list):
        return None
    found = []
    for number, request in enumerate(value):
        if not isinstance(request, dict) or not isinstance(request.get("name"), str):
            return None
        own = request.get("id")
        arguments = request.get("arguments", {})
        undecodable = request.get("undecodable")
        if not isinstance(arguments, dict):
            arguments, undecodable = {}, _text(arguments)
        found.append(
            ToolRequest(
                id=own if isinstance(own, str) and own else f"call_{number}",
                name=request["name"],
                arguments=arguments,
                undecodable=undecodable if isinstance(undecodable, str) else None,
            )
        )
    return tuple(found)


def _usage(value: Any) -> Usage:
    told = value if isinstance(value, dict) else {}
    counts = ((name, told.get(name)) for name in _USAGE)
    return Usage(**{name: n for name, n in counts if type(n) is int and 0 <= n < 2**53})


def _unrecordable(result: Result, bytes_max: int) -> tuple[str, str] | None:
    """Return why a result cannot be kept, as part of a code and of a sentence; None if it can."""
    body = _encode(result)
    if len(body) > bytes_max:
        return "too_large", f"has {len(body)} bytes, more than the limit of {bytes_max}"
    if may_be_too_deep(body) and too_deep(msgspec.to_builtins(result), JSON_DEPTH_MAX + 1):
        return "too_deep", f"is nested deeper than {JSON_DEPTH_MAX} levels"
    return None


def _text(value: Any) -> str:
    return clip(value if isinstance(value, str) else _encode(value).decode())


# ------------------------------------------------------------------------------- made by a worker


def of_report(report: c.Report, task_id: str) -> Result:
    """Return the result that tells a report of an outcome; `ReportToolBegin` is none."""
    match report:
        case c.ReportReply(reply=reply):
            return _of_reply(reply, task_id)
        case c.ReportModelError():
            return Result(
                task_id=task_id,
                status="error",
                error=report.message,
                error_class=report.error_class,
                code=report.code,
                retry_after_ms=report.retry_after_ms,
            )
        case c.ReportToolResult(ok=True, content=content, remembered=remembered):
            return Result(task_id=task_id, status="ok", result=content, duplicate=remembered)
        case c.ReportToolResult():
            return Result(task_id=task_id, status="error", error=report.content, kind=report.kind)
        case c.ReportToolLost():
            return Result(task_id=task_id, status="error", error=report.reason, lost=True)
        case c.ReportProbe():
            return Result(
                task_id=task_id, status="ok", verdict=report.verdict, result=report.content
            )
        case _:
            raise TypeError(f"{type(report).__name__} is not an outcome: send a begin for it")


def _of_reply(reply: ModelReply, task_id: str) -> Result:
    calls = [msgspec.to_builtins(request) for request in reply.tool_calls]
    for request in calls:
        request.setdefault("arguments", {})
    return Result(
        task_id=task_id,
        status="ok",
        content=reply.content,
        finish_reason=reply.finish,
        usage={name: getattr(reply.usage, name) for name in _USAGE},
        model=reply.model,
        tool_calls=calls or None,
        extra=reply.extra,
    )
