"""A run as others see it: one row, derived from the state, written in the same commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from perdure.core import events as e
from perdure.core.budget import Purse
from perdure.core.commands import SendMessage
from perdure.core.evolve import evolve
from perdure.core.ids import SessionId
from perdure.core.state import Call, ModelUse, State, size_of

RowStatus = Literal["queued", "running", "waiting", "completed", "failed", "cancelled", "merged"]
SHOWN_BYTES_MAX = 16 * 1024
"""Arguments up to this size are in the row of a run that waits for their approval."""
TERMINAL = frozenset({"completed", "failed", "cancelled"})
WAITING = frozenset({"pending", "exceeded", "asking", "undecided", "timing", "launched"})


class RunRow(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The row of a run. `merged_into` names the run that a steering message joined.

    `answer` is the position of the `model_replied` event whose content is the run's output;
    `first_seq` that of the first event that came with what asked for the run. `use` is what models
    were used for, and `messages`, `content_bytes` and `summary` are those of the session's state,
    as of position `seq`, when the row was written; a run that has not begun has none of these, nor
    has a row that is older than these fields. `waiting_for` lists what a person, the clock
    or another run must give before the run can go on. `purse` is that of a run with a budget.
    """

    id: str
    session: SessionId
    status: RowStatus
    created_at: int
    first_seq: int | None = None
    started_seq: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    steps: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    use: tuple[ModelUse, ...] | None = None
    seq: int | None = None
    messages: int = 0
    content_bytes: int = 0
    summary: int | None = None
    answer: int | None = None
    merged_into: str | None = None
    error_class: str | None = None
    code: str | None = None
    message: str | None = None
    waiting_for: tuple[dict[str, Any], ...] = ()
    purse: Purse | None = None


def queued_row(session: SessionId, message: SendMessage, now: int) -> RunRow:
    """Return the row of a run whose message was just accepted."""
    return RunRow(id=message.id, session=session, status="queued", created_at=now)


def rows_of(
    session: SessionId, before: State, events: Sequence[e.Event], after: State
) -> tuple[RunRow, ...]:
    """Return the rows that a commit changes: ended, started, parked, merged and withdrawn runs.

    A run that merely goes on has no new row: its row tells its status, not its progress.
    """
    if not (_tells(events) or _waits(before) or _waits(after)):
        return ()
    rows: dict[str, RunRow] = {}
    kinds = {type(event) for event in events}
    if e.RunStarted in kinds and not kinds.isdisjoint(_ENDINGS):
        state = before
        for event in events:
            state = evolve(state, event)
            if isinstance(event, _ENDINGS):
                rows[event.run] = run_row(session, state)
    started = {event.run for event in events if isinstance(event, e.RunStarted)}
    current = before.run.id if before.run else ""
    for event in events:
        if isinstance(event, e.RunStarted):
            current = event.run
        elif isinstance(event, e.MessageReceived) and event.message not in started:
            rows[event.message] = _steered(session, event, current)
        elif isinstance(event, e.RunWithdrawn):
            rows[event.run] = _withdrawn(session, event)
    if after.run is not None and _standing(before) != _standing(after):
        rows[after.run.id] = run_row(session, after)
    return tuple(rows.values())


_ENDINGS = (e.RunCompleted, e.RunFailed, e.RunCancelled)
_TELLING = frozenset({*_ENDINGS, e.MessageReceived, e.RunStarted, e.RunWithdrawn})


def _tells(events: Sequence[e.Event]) -> bool:
    return not _TELLING.isdisjoint(map(type, events))


def _waits(state: State) -> bool:
    return not WAITING.isdisjoint([call.status for call in state.calls.values()])


def _standing(state: State) -> tuple[Any, ...]:
    """Return what a row tells of a state: which run, how it stands, and what it waits for."""
    run = state.run
    if run is None:
        return ()
    calls = state.calls.values()
    waits = tuple(
        (
            *(call.id, call.status, call.digest, call.approval, call.reminded),
            call.child and call.child.run,
        )
        for call in calls
        if call.status in WAITING
    )
    return run.id, run.status, waits, len(waits) == len(calls)


def _steered(session: SessionId, event: e.MessageReceived, current: str) -> RunRow:
    return RunRow(
        id=event.message,
        session=session,
        status="merged",
        created_at=event.at,
        merged_into=current,
    )


def _withdrawn(session: SessionId, event: e.RunWithdrawn) -> RunRow:
    return RunRow(
        id=event.run,
        session=session,
        status="cancelled",
        created_at=event.at,
        ended_at=event.at,
        message=event.reason,
    )


def run_row(session: SessionId, state: State) -> RunRow:
    """Return the row of the session's current or last run; there must have been one."""
    run = state.run
    assert run is not None
    waits = waiting_for(state) if run.status == "running" else ()
    status: RowStatus = run.status
    if waits and len(waits) == len(state.calls):
        status = "waiting"
    return RunRow(
        id=run.id,
        session=session,
        status=status,
        created_at=run.accepted_at or run.started_at,
        first_seq=run.first_seq,
        started_seq=run.started_seq,
        started_at=run.started_at,
        ended_at=run.ended_at,
        steps=run.step,
        input_tokens=run.input_tokens,
        output_tokens=run.output_tokens,
        use=run.use,
        seq=state.version,
        messages=state.messages,
        content_bytes=state.content_bytes,
        summary=state.summary,
        answer=run.answer,
        error_class=run.error_class,
        code=run.code,
        message=run.message,
        waiting_for=waits,
        purse=run.purse,
    )


def waiting_for(state: State) -> tuple[dict[str, Any], ...]:
    """Return what the session's open calls wait for: answers, decisions, times, other runs."""
    found: list[dict[str, Any]] = []
    for call in state.calls.values():
        more: dict[str, Any] = {"reminded": call.reminded} if call.reminded else {}
        if call.status == "asking":
            found.append({"call": call.id, "what": "answer", "question": call.name, **more})
        elif call.status == "undecided":
            asked = {"tool": call.name, "key": call.key, "attempt": call.attempt, **more}
            found.append({"call": call.id, "what": "decision", **asked})
        elif call.status == "pending":
            found.append({"call": call.id, "what": "approval", **_asked(call), **more})
        elif call.child is not None:
            child = call.child
            found.append({"call": call.id, "what": "child", "agent": child.name, "run": child.run})
        elif call.status == "exceeded":
            found.append({"call": call.id, "what": "budget", **_lacking(call)})
        elif call.status == "timing":
            what = "retry" if call.kind == "backoff" else "time"
            found.append({"call": call.id, "what": what, "due_at": call.due_at})
    return tuple(found)


def _lacking(call: Call) -> dict[str, Any]:
    """Return what people have to know of what does not fit into a budget, to add to it."""
    short = call.short
    assert short is not None
    named = {"tool": short.name} if call.kind == "tool" else {}
    return {"short_of": short.what, "needed": short.needed, "left": short.left, **named}


def _asked(call: Call) -> dict[str, Any]:
    """Return what people have to know of a call to approve it; large arguments are left out."""
    approval, arguments = call.approval, call.arguments
    assert approval is not None
    shown = arguments is not None and size_of(arguments) <= SHOWN_BYTES_MAX
    return {
        "tool": call.name,
        "effect": call.effect,
        "arguments": arguments if shown else None,
        "digest": call.digest,
        "rule": approval.rule,
        "reason": approval.reason,
        "policy": approval.policy,
        "needed": approval.needed,
        "approved_by": approval.by,
        "roles": approval.roles,
        "edited_by": approval.edited_by,
        "requested_at": call.intended_at,
        "expires_at": call.due_at,
        "escalate_at": approval.escalate_at,
        "escalate_to": approval.escalate_to,
    }
