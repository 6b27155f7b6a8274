"""evolve(state, event) -> state: the one reducer, for life, recovery, replay and every view.

It looks up the transition tables, refuses what they do not list, and otherwise only copies: each
handler returns the state at the new version and status, with what else its event changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from perdure.core import events as e
from perdure.core.errors import IllegalTransition
from perdure.core.history import said_by
from perdure.core.limits import WINDOW_MESSAGES_MAX
from perdure.core.state import Call, Mark, Run, State, heard, spent
from perdure.core.transitions import CALL, SESSION

Calls = dict[str, Call]


def evolve(state: State, event: e.Event) -> State:
    """Return the state after `event`.

    Raises `IllegalTransition` when the tables have no row for it; `state` is never touched.
    """
    rule = _RULES[type(event)]
    status = rule.session.get(state.status)
    if status is None:
        raise IllegalTransition(
            f"event {state.version + 1} is {rule.kind!r}, which cannot happen while the session is "
            f"{state.status!r}; expected one of {', '.join(SESSION[state.status])}"
        )
    after = rule.handler(state, event, state.version + 1, status)
    contents = said_by(event)
    return heard(after, contents) if contents else after


def _move(state: State, call_id: str, event: e.Event) -> str:
    """Return what becomes of a call; raise `IllegalTransition` if nothing may."""
    call = state.calls.get(call_id)
    before = call.status if call is not None else "absent"
    rule = _RULES[type(event)]
    after = rule.call.get(before)
    if after is None:
        raise IllegalTransition(
            f"event {state.version + 1} is {rule.kind!r} for call {call_id!r}, which is "
            f"{before!r}; expected one of {', '.join(CALL[before])}"
        )
    return after


def _with(state: State, call: Call, event: e.Event) -> Calls:
    """Return the open calls with a new one."""
    _move(state, call.id, event)
    return {**state.calls, call.id: call} if state.calls else {call.id: call}


def _without(state: State, event: Any) -> Calls:
    """Return the open calls without the one that the event closes."""
    _move(state, event.call, event)
    calls = dict(state.calls)
    del calls[event.call]
    return calls


def _changed(state: State, event: Any, **fields: Any) -> Calls:
    """Return the open calls with the event's one in its new status."""
    after = _move(state, event.call, event)
    call = replace(state.calls[event.call], status=after, **fields)
    return {**state.calls, call.id: call}


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


def _mark(state: State, seq: int, size: int) -> tuple[Mark, ...]:
    marks = state.marks
    if len(marks) >= WINDOW_MESSAGES_MAX:
        marks = marks[1 - WINDOW_MESSAGES_MAX :]
    return (*marks, Mark(seq, size))


def _asked(state: State, version: int) -> int:
    """Return where what asks for the next run begins; in a run, nothing does."""
    return (state.asked_seq or version) if state.status == "idle" else 0


def _noted(state: State, event: e.Event, version: int, status: Any) -> State:
    return replace(state, version=version, status=status)


def _message_received(state: State, event: e.MessageReceived, version: int, status: Any) -> State:
    return replace(
        state,
        version=version,
        status=status,
        marks=_mark(state, version, 1),
        meta=event.meta,
        asked_seq=_asked(state, version),
        reply=None,
        reply_wants_tools=False,
    )


def _session_forked(state: State, event: e.SessionForked, version: int, status: Any) -> State:
    if state.version:
        raise IllegalTransition(f"event {version} forks a session that has begun already")
    return replace(state, version=version, status=status, meta=event.meta, asked_seq=version)


def _history_inherited(state: State, event: e.HistoryInherited, version: int, status: Any) -> State:
    marks, asked = _mark(state, version, len(event.messages)), _asked(state, version)
    return replace(state, version=version, status=status, marks=marks, asked_seq=asked)


def _run_started(state: State, event: e.RunStarted, version: int, status: Any) -> State:
    run = Run(
        id=event.run,
        number=event.number,
        started_seq=version,
        started_at=event.at,
        first_seq=state.asked_seq or version,
        accepted_at=event.accepted_at,
        deadline_at=event.deadline_at,
        meta=state.run.meta if event.retry_of is not None and state.run else state.meta,
    )
    return replace(
        state,
        version=version,
        status=status,
        agent=event.agent,
        run=run,
        runs_started=event.number,
        asked_seq=0,
        reply=None,
        reply_wants_tools=False,
    )


def _model_call_intended(
    state: State, event: e.ModelCallIntended, version: int, status: Any
) -> State:
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
    return replace(
        state,
        version=version,
        status=status,
        agent=event.agent or state.agent,
        calls=_with(state, call, event),
        run=replace(_run(state), step=event.step),
        reply=None,
        reply_wants_tools=False,
    )


def _model_replied(state: State, event: e.ModelReplied, version: int, status: Any) -> State:
    run, usage = _run(state), event.usage
    return replace(
        state,
        version=version,
        status=status,
        calls=_without(state, event),
        run=spent(run, event.model, state.agent, usage, retries=0),
        marks=_mark(state, version, 1 + len(event.tool_calls)),
        context_tokens=usage.input_tokens,
        compaction_tried=False,
        reply=version,
        reply_wants_tools=bool(event.tool_calls),
    )


def _retry_scheduled(state: State, event: e.RetryScheduled, version: int, status: Any) -> State:
    run = _run(state)
    call = Call(id=event.call, kind="backoff", status="timing", step=run.step, due_at=event.due_at)
    return replace(
        state,
        version=version,
        status=status,
        calls=_with(state, call, event),
        run=replace(run, retries=event.attempt - 1),
    )


def _compaction_intended(
    state: State, event: e.CompactionIntended, version: int, status: Any
) -> State:
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
    return replace(
        state,
        version=version,
        status=status,
        agent=event.agent or state.agent,
        calls=_with(state, call, event),
        compaction_tried=True,
    )


def _context_compacted(state: State, event: e.ContextCompacted, version: int, status: Any) -> State:
    run, usage = _run(state), event.usage
    return replace(
        state,
        version=version,
        status=status,
        calls=_without(state, event),
        run=spent(run, None, state.agent, usage),
        base=event.keep_from,
        summary=version,
        context_tokens=0,
    )


def _opened(make: Callable[[State, Any], Call]) -> Handler:
    """Return the handler of an event that opens the call that `make` makes of it."""

    def handler(state: State, event: Any, version: int, status: Any) -> State:
        calls = _with(state, make(state, event), event)
        return replace(state, version=version, status=status, calls=calls)

    return handler


def _tool_call(state: State, event: e.ToolCallIntended) -> Call:
    return Call(
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
        version=event.version,
    )


def _timer(state: State, event: e.TimerStarted) -> Call:
    return Call(
        id=event.call,
        kind="timer",
        status="timing",
        step=event.step,
        ordinal=event.ordinal,
        name="wait",
        due_at=event.due_at,
        intended_at=event.at,
    )


def _question(state: State, event: e.QuestionAsked) -> Call:
    return Call(
        id=event.call,
        kind="question",
        status="asking",
        step=event.step,
        ordinal=event.ordinal,
        name=event.question,
        intended_at=event.at,
    )


def _tool_call_denied(state: State, event: e.ToolCallDenied, version: int, status: Any) -> State:
    _move(state, event.call, event)
    return replace(state, version=version, status=status)


def _closed(state: State, event: Any, version: int, status: Any) -> State:
    return replace(state, version=version, status=status, calls=_without(state, event))


def _moved(state: State, event: Any, version: int, status: Any) -> State:
    return replace(state, version=version, status=status, calls=_changed(state, event))


def _begun(state: State, event: e.ToolCallBegun, version: int, status: Any) -> State:
    calls = _changed(state, event, worker=event.worker)
    return replace(state, version=version, status=status, calls=calls)


def _sent_again(state: State, event: Any, version: int, status: Any) -> State:
    call = state.calls.get(event.call)
    attempt = call.attempt + 1 if call is not None else 1
    calls = _changed(state, event, attempt=attempt, worker="")
    return replace(state, version=version, status=status, calls=calls)


def _ended(how: str) -> Handler:
    def handler(state: State, event: Any, version: int, status: Any) -> State:
        run = _run(state)
        if event.run != run.id:
            raise IllegalTransition(
                f"event {version} ends run {event.run!r}, but {run.id!r} is in progress"
            )
        if any(
            call.kind not in ("model", "compaction", "backoff") for call in state.calls.values()
        ):
            _no_open_call(state, event)
        ended = replace(
            run,
            status=how,
            answer=getattr(event, "answer", None),
            error_class=getattr(event, "error_class", None),
            code=getattr(event, "code", None),
            message=getattr(event, "message", None) or getattr(event, "reason", None),
            ended_at=event.at,
        )
        return replace(state, version=version, status=status, run=ended, calls={})

    return handler


Handler = Callable[[State, Any, int, Any], State]

_HANDLERS: Mapping[type[e.Event], Handler] = {
    e.MessageReceived: _message_received,
    e.SessionForked: _session_forked,
    e.HistoryInherited: _history_inherited,
    e.RunStarted: _run_started,
    e.RunWithdrawn: _noted,
    e.ModelCallIntended: _model_call_intended,
    e.ModelReplied: _model_replied,
    e.ModelCallFailed: _closed,
    e.RetryScheduled: _retry_scheduled,
    e.RetryFellDue: _closed,
    e.CompactionIntended: _compaction_intended,
    e.ContextCompacted: _context_compacted,
    e.CompactionFailed: _closed,
    e.ToolCallIntended: _opened(_tool_call),
    e.ToolCallDenied: _tool_call_denied,
    e.ToolCallBegun: _begun,
    e.ToolCallSucceeded: _closed,
    e.ToolCallFailed: _closed,
    e.ToolCallLost: _sent_again,
    e.ToolCallUnknown: _moved,
    e.ToolCallReopened: _sent_again,
    e.DecisionRequested: _moved,
    e.ToolCallCancelled: _closed,
    e.TimerStarted: _opened(_timer),
    e.TimerFired: _closed,
    e.QuestionAsked: _opened(_question),
    e.QuestionAnswered: _closed,
    e.RunCompleted: _ended("completed"),
    e.RunFailed: _ended("failed"),
    e.RunCancelled: _ended("cancelled"),
}


class _Rule(NamedTuple):
    """The columns of the tables for one type of event: status before -> status after."""

    kind: str
    session: Mapping[str, str]
    call: Mapping[str, str]
    handler: Handler


def _column(table: Mapping[str, Mapping[str, str]], kind: str) -> dict[str, str]:
    return {before: row[kind] for before, row in table.items() if kind in row}


_RULES: Mapping[type[e.Event], _Rule] = {
    cls: _Rule(kind, _column(SESSION, kind), _column(CALL, kind), _HANDLERS[cls])
    for cls, kind in e.TYPE_NAMES.items()
}
