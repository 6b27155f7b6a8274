"""evolve(state, event) -> state: the one reducer, for life, recovery, replay and every view.

It looks up the transition tables, refuses what they do not list, and otherwise only copies: each
handler returns the fields that an event changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from perdure.core import events as e
from perdure.core.errors import IllegalTransition
from perdure.core.limits import WINDOW_MESSAGES_MAX
from perdure.core.state import Call, Mark, Run, State
from perdure.core.transitions import CALL, SESSION

Changes = dict[str, Any]


def evolve(state: State, event: e.Event) -> State:
    """Return the state after `event`.

    Raises `IllegalTransition` when the tables have no row for it; `state` is never touched.
    """
    kind = e.TYPE_NAMES[type(event)]
    status = SESSION[state.status].get(kind)
    if status is None:
        raise IllegalTransition(
            f"event {state.version + 1} is {kind!r}, which cannot happen while the session is "
            f"{state.status!r}; expected one of {', '.join(SESSION[state.status])}"
        )
    handler = _HANDLERS.get(type(event))
    changes = handler(state, event) if handler else {}
    return replace(state, version=state.version + 1, status=status, **changes)


def _move(state: State, call_id: str, event: e.Event) -> tuple[Call | None, str]:
    """Look up what becomes of a call; raise `IllegalTransition` if nothing may."""
    call = state.calls.get(call_id)
    kind = e.TYPE_NAMES[type(event)]
    before = call.status if call else "absent"
    after = CALL[before].get(kind)
    if after is None:
        raise IllegalTransition(
            f"event {state.version + 1} is {kind!r} for call {call_id!r}, which is {before!r}; "
            f"expected one of {', '.join(CALL[before])}"
        )
    return call, after


def _open(state: State, call: Call, event: e.Event) -> Changes:
    _move(state, call.id, event)
    return {"calls": {**state.calls, call.id: call}}


def _change(state: State, call_id: str, event: e.Event, **fields: Any) -> Changes:
    call, after = _move(state, call_id, event)
    assert call is not None
    return {"calls": {**state.calls, call_id: replace(call, status=after, **fields)}}


def _close(state: State, event: Any) -> Changes:
    _move(state, event.call, event)
    return {"calls": {key: call for key, call in state.calls.items() if key != event.call}}


def _run(state: State) -> Run:
    if state.run is None or state.run.status != "running":
        raise IllegalTransition(f"event {state.version + 1} needs a run in progress")
    return state.run


def _no_open_call(state: State, event: e.Event) -> None:
    if state.calls:
        raise IllegalTransition(
            f"event {state.version + 1} is {e.type_of(event)!r}, but these calls are still open: "
            f"{', '.join(state.calls)}"
        )


def _mark(state: State, size: int) -> tuple[Mark, ...]:
    return (*state.marks[-(WINDOW_MESSAGES_MAX - 1) :], Mark(state.version + 1, size))


def _message_received(state: State, event: e.MessageReceived) -> Changes:
    return {"marks": _mark(state, 1), "reply": None, "reply_wants_tools": False}


def _run_started(state: State, event: e.RunStarted) -> Changes:
    run = Run(
        id=event.run,
        number=event.number,
        started_seq=state.version + 1,
        started_at=event.at,
        accepted_at=event.accepted_at,
        deadline_at=event.deadline_at,
    )
    return {"run": run, "runs_started": event.number, "reply": None, "reply_wants_tools": False}


def _model_call_intended(state: State, event: e.ModelCallIntended) -> Changes:
    _no_open_call(state, event)
    call = Call(
        id=event.call,
        kind="model",
        status="intended",
        step=event.step,
        first=event.first,
        upto=event.upto,
        summary=event.summary,
        intended_at=event.at,
    )
    return {
        **_open(state, call, event),
        "run": replace(_run(state), step=event.step),
        "reply": None,
        "reply_wants_tools": False,
    }


def _model_replied(state: State, event: e.ModelReplied) -> Changes:
    run, usage = _run(state), event.usage
    return {
        **_close(state, event),
        "run": replace(
            run,
            retries=0,
            input_tokens=run.input_tokens + usage.input_tokens,
            output_tokens=run.output_tokens + usage.output_tokens,
        ),
        "marks": _mark(state, 1 + len(event.tool_calls)),
        "context_tokens": usage.input_tokens,
        "compaction_tried": False,
        "reply": state.version + 1,
        "reply_wants_tools": bool(event.tool_calls),
    }


def _retry_scheduled(state: State, event: e.RetryScheduled) -> Changes:
    run = _run(state)
    call = Call(id=event.call, kind="backoff", status="timing", step=run.step, due_at=event.due_at)
    return {**_open(state, call, event), "run": replace(run, retries=event.attempt - 1)}


def _compaction_intended(state: State, event: e.CompactionIntended) -> Changes:
    _no_open_call(state, event)
    call = Call(
        id=event.call,
        kind="compaction",
        status="intended",
        step=event.step,
        first=event.first,
        upto=event.upto,
        keep_from=event.keep_from,
        summary=event.summary,
        intended_at=event.at,
    )
    return {**_open(state, call, event), "compaction_tried": True}


def _context_compacted(state: State, event: e.ContextCompacted) -> Changes:
    run, usage = _run(state), event.usage
    return {
        **_close(state, event),
        "run": replace(
            run,
            input_tokens=run.input_tokens + usage.input_tokens,
            output_tokens=run.output_tokens + usage.output_tokens,
        ),
        "base": event.keep_from,
        "summary": state.version + 1,
        "context_tokens": 0,
    }


def _tool_call_intended(state: State, event: e.ToolCallIntended) -> Changes:
    call = Call(
        id=event.call,
        kind="tool",
        status="intended",
        step=event.step,
        ordinal=event.ordinal,
        name=event.name,
        reply=state.reply or 0,
        effect=event.effect,
        key=event.key,
        intended_at=event.at,
    )
    return _open(state, call, event)


def _tool_call_denied(state: State, event: e.ToolCallDenied) -> Changes:
    _move(state, event.call, event)
    return {}


def _timer_started(state: State, event: e.TimerStarted) -> Changes:
    call = Call(
        id=event.call,
        kind="timer",
        status="timing",
        step=event.step,
        ordinal=event.ordinal,
        name="wait",
        due_at=event.due_at,
        intended_at=event.at,
    )
    return _open(state, call, event)


def _question_asked(state: State, event: e.QuestionAsked) -> Changes:
    call = Call(
        id=event.call,
        kind="question",
        status="asking",
        step=event.step,
        ordinal=event.ordinal,
        name=event.question,
        intended_at=event.at,
    )
    return _open(state, call, event)


def _moved(state: State, event: Any) -> Changes:
    return _change(state, event.call, event)


def _sent_again(state: State, event: Any) -> Changes:
    attempt = state.calls[event.call].attempt + 1 if event.call in state.calls else 1
    return _change(state, event.call, event, attempt=attempt)


def _ended(status: str) -> Callable[[State, Any], Changes]:
    def handler(state: State, event: Any) -> Changes:
        run = _run(state)
        if event.run != run.id:
            raise IllegalTransition(
                f"event {state.version + 1} ends run {event.run!r}, but {run.id!r} is in progress"
            )
        if any(
            call.kind not in ("model", "compaction", "backoff") for call in state.calls.values()
        ):
            _no_open_call(state, event)
        ended = replace(
            run,
            status=status,
            answer=getattr(event, "answer", None),
            error_class=getattr(event, "error_class", None),
            code=getattr(event, "code", None),
            message=getattr(event, "message", None) or getattr(event, "reason", None),
            ended_at=event.at,
        )
        return {"run": ended, "calls": {}}

    return handler


_HANDLERS: Mapping[type[e.Event], Callable[[State, Any], Changes]] = {
    e.MessageReceived: _message_received,
    e.RunStarted: _run_started,
    e.ModelCallIntended: _model_call_intended,
    e.ModelReplied: _model_replied,
    e.ModelCallFailed: _close,
    e.RetryScheduled: _retry_scheduled,
    e.RetryFellDue: _close,
    e.CompactionIntended: _compaction_intended,
    e.ContextCompacted: _context_compacted,
    e.CompactionFailed: _close,
    e.ToolCallIntended: _tool_call_intended,
    e.ToolCallDenied: _tool_call_denied,
    e.ToolCallBegun: _moved,
    e.ToolCallSucceeded: _close,
    e.ToolCallFailed: _close,
    e.ToolCallLost: _sent_again,
    e.ToolCallUnknown: _moved,
    e.ToolCallReopened: _sent_again,
    e.DecisionRequested: _moved,
    e.ToolCallCancelled: _close,
    e.TimerStarted: _timer_started,
    e.TimerFired: _close,
    e.QuestionAsked: _question_asked,
    e.QuestionAnswered: _close,
    e.RunCompleted: _ended("completed"),
    e.RunFailed: _ended("failed"),
    e.RunCancelled: _ended("cancelled"),
}
