"""evolve(state, event) -> state: the one reducer, for life, recovery, replay and every view.

It looks up the transition tables, refuses what they do not list, and otherwise only copies: each
handler returns the state at the new version and status, with what else its event changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from perdure.core import events as e
from perdure.core import family
from perdure.core.errors import IllegalTransition
from perdure.core.evolve_calls import CALL_HANDLERS, Handler, closed, column, opened, without
from perdure.core.history import said_by
from perdure.core.limits import WINDOW_MESSAGES_MAX
from perdure.core.measure import measured, summarised
from perdure.core.spending import with_purse
from perdure.core.state import Call, Mark, Run, State, spent
from perdure.core.transitions import SESSION


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
    run = after.run
    if run is not None and (run.purse is not None or type(event) is e.RunStarted):
        after = with_purse(after, event)
    contents = said_by(event)
    return measured(state, after, event, contents) if contents else after


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
        parent=event.parent,
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


def _run_withdrawn(state: State, event: e.RunWithdrawn, version: int, status: Any) -> State:
    outbox = state.outbox
    if event.parent is not None:
        outbox = (*outbox, family.end(event.parent, event.run, version))
    return replace(state, version=version, status=status, outbox=outbox)


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
        policy=state.policy if event.policy is None else event.policy,
        calls=opened(state, call, event),
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
        calls=without(state, event),
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
        calls=opened(state, call, event),
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
        calls=opened(state, call, event),
        compaction_tried=True,
    )


def _context_compacted(state: State, event: e.ContextCompacted, version: int, status: Any) -> State:
    run, usage = _run(state), event.usage
    return replace(
        state,
        version=version,
        status=status,
        calls=without(state, event),
        run=spent(run, None, state.agent, usage),
        base=event.keep_from,
        summary=version,
        context_tokens=0,
        said_tokens_max=summarised(state, event.content),
    )


_ENDED_WITH_RUN = frozenset({"model", "compaction", "backoff", "budget"})
"""The kinds of calls that nobody is shown an answer of."""


def _ended(how: str) -> Handler:
    def handler(state: State, event: Any, version: int, status: Any) -> State:
        run = _run(state)
        if event.run != run.id:
            raise IllegalTransition(
                f"event {version} ends run {event.run!r}, but {run.id!r} is in progress"
            )
        if any(call.kind not in _ENDED_WITH_RUN for call in state.calls.values()):
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
        outbox = state.outbox
        if run.parent is not None:
            outbox = (*outbox, family.end(run.parent, run.id, version))
        return replace(state, version=version, status=status, run=ended, calls={}, outbox=outbox)

    return handler


_HANDLERS: Mapping[type[e.Event], Handler] = {
    e.MessageReceived: _message_received,
    e.SessionForked: _session_forked,
    e.HistoryInherited: _history_inherited,
    e.RunStarted: _run_started,
    e.RunWithdrawn: _run_withdrawn,
    e.ModelCallIntended: _model_call_intended,
    e.ModelReplied: _model_replied,
    e.ModelCallFailed: closed,
    e.RetryScheduled: _retry_scheduled,
    e.RetryFellDue: closed,
    e.CompactionIntended: _compaction_intended,
    e.ContextCompacted: _context_compacted,
    e.CompactionFailed: closed,
    e.RunCompleted: _ended("completed"),
    e.RunFailed: _ended("failed"),
    e.RunCancelled: _ended("cancelled"),
    **CALL_HANDLERS,
}


class _Rule(NamedTuple):
    """What the table says of one type of event: status before -> status after."""

    kind: str
    session: Mapping[str, str]
    handler: Handler


_RULES: Mapping[type[e.Event], _Rule] = {
    cls: _Rule(kind, column(SESSION, kind), _HANDLERS[cls]) for cls, kind in e.TYPE_NAMES.items()
}
