"""From rows and logs to the objects of the API: runs, conversations, sessions.

What the log does not know, the catalog does: numbers, who asked for a run, titles. It comes as
`RunFacts` and `SessionFacts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from perdure.api.budgets import purse_object
from perdure.api.cost import DEFAULT_PRICES, Prices, cost_of, sum_of
from perdure.api.shapes.budgets import Purse
from perdure.api.shapes.common import timestamp, timestamp_or_none
from perdure.api.shapes.runs import (
    Approval,
    AskedStatus,
    Cost,
    Event,
    EventGlimpse,
    FailureInspector,
    Question,
    Run,
    RunStatus,
    TriggerType,
    Wait,
)
from perdure.api.shapes.sessions import Conversation, RunGlimpse, Session, SessionWhole
from perdure.api.timeline import EVENTS_PER_FACT, Timeline, failure
from perdure.api.transcript import Outline, Transcript
from perdure.core.runs import RowStatus, RunRow

_STATUS: Mapping[RowStatus, RunStatus] = {
    "queued": "pending",
    "running": "running",
    "waiting": "waiting",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
    "merged": "running",
}
_ROWS: Mapping[AskedStatus, tuple[RowStatus, ...]] = {
    "pending": ("queued",),
    "running": ("running", "waiting"),
    "waiting": ("waiting",),
    "completed": ("completed",),
    "failed": ("failed", "cancelled"),
    "queued": ("queued",),
    "cancelled": ("cancelled",),
    "merged": ("merged",),
}
_FINER = frozenset({"queued", "cancelled", "merged"})
_FOR_SOMEBODY = frozenset({"answer", "decision", "approval", "budget"})


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog knows of a run.

    `content` is what was asked, if the log is not read; `context` and `fork` what came with it.
    """

    id: int
    agent_id: int
    conversation_id: int | None = None
    parent_run_id: int | None = None
    gard_id: int | None = None
    depth: int = 0
    trigger_type: TriggerType = "message"
    content: Any = None
    context: dict[str, Any] | None = None
    fork: dict[str, Any] | None = None


class SessionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog knows of a session; times are in milliseconds since 1970."""

    id: int
    agent_id: int
    agent_name: str
    key: str
    inserted_at: int
    updated_at: int
    title: str | None = None
    archived_at: int | None = None
    gard_id: int | None = None


def run_object(
    row: RunRow,
    facts: RunFacts,
    *,
    timeline: Timeline | None = None,
    output: Any = None,
    children: Iterable[Cost] = (),
    joined: RunRow | None = None,
    prices: Prices = DEFAULT_PRICES,
) -> Run:
    """Return a run as the API shows it.

    `timeline` is the fold of its log, if it was read; without it the content of the answer has to
    be given as `output`, and cost, last event and the progress of a run in the middle are not told.
    `children` are the total costs of its sub-agents' runs. For a merged run, `joined` is the row of
    the run that it joined, and `timeline` that run's: its outcome is told, its spending is not.
    """
    merged = joined is not None and row.status == "merged"
    told = joined if joined is not None and merged else row
    failed = failure_metadata(told)
    cost = Cost()
    if timeline is not None:
        output = timeline.output
        if not merged:
            use = ((model, one.usage) for model, one in timeline.use.items())
            cost = cost_of(use, prices)
    last = timeline.last if timeline is not None else None
    return Run(
        id=facts.id,
        agent_id=facts.agent_id,
        conversation_id=facts.conversation_id,
        parent_run_id=facts.parent_run_id,
        gard_id=facts.gard_id,
        depth=facts.depth,
        status=run_status(told),
        row_status=row.status,
        trigger_type=facts.trigger_type,
        input=_input(facts, None if merged else timeline),
        output=output_text(output) if told.status == "completed" else None,
        failure_metadata=failed,
        failure_inspector=FailureInspector(
            error_class=failed.get("error_class"),
            error_code=failed.get("error_code"),
            retry_decision=failed.get("retry_decision"),
            last_event=None if last is None else glimpse(last),
        ),
        waiting_for=_question(told, timeline),
        waits=waits_of(told),
        steps=max(told.steps, timeline.step if timeline is not None else 0),
        **_tokens(row, None if merged else timeline),
        cost=cost,
        total_cost=sum_of([cost, *children]),
        purse=UNSET if merged else _purse(row, timeline, prices),
        inserted_at=timestamp(row.created_at),
        updated_at=_updated_at(told, last),
    )


def _purse(row: RunRow, timeline: Timeline | None, prices: Prices) -> Purse | UnsetType:
    """Return what a run has of its budget, as it stands if its log was read."""
    purse = row.purse if timeline is None or timeline.purse is None else timeline.purse
    return UNSET if purse is None else purse_object(purse, prices.as_of)


def run_status(row: RunRow) -> RunStatus:
    """Return a run's status as Norns has it.

    A run that only time can move is running there: `waiting` means that somebody has to do
    something, and clients stop polling at it.
    """
    if row.status == "waiting" and all(one["what"] not in _FOR_SOMEBODY for one in row.waiting_for):
        return "running"
    return _STATUS[row.status]


def row_statuses(status: AskedStatus) -> tuple[RowStatus, ...]:
    """Return the statuses of rows that may be meant by `status`; `is_asked` has the last word."""
    return _ROWS[status]


def is_asked(row: RunRow, status: AskedStatus) -> bool:
    """Say whether a run is among those that are asked for by a status."""
    return status == (row.status if status in _FINER else run_status(row))


def output_text(content: Any) -> str | None:
    """Return an answer's content as a run's output: what is no string, as JSON."""
    if content is None or isinstance(content, str):
        return content
    return msgspec.json.encode(content).decode()


def failure_metadata(row: RunRow) -> dict[str, Any]:
    """Return what a run's object says of its failure; an empty object without one."""
    if row.status == "cancelled":
        told = failure(row.message or "", "policy", "cancelled")
    elif row.status == "failed":
        told = failure(row.message or "", row.error_class or "internal", row.code or "")
    else:
        return {}
    return {**told, "schema_version": 1}


def withdrawn_events(row: RunRow) -> list[Event]:
    """Return the events of a run that was cancelled before it began, from its row alone."""
    if row.status != "cancelled" or row.started_seq is not None:
        return []
    payload = {"schema_version": 1, **failure(row.message or "", "policy", "cancelled")}
    at = timestamp(row.ended_at or row.created_at)
    told = Event(
        id=EVENTS_PER_FACT, sequence=1, event_type="run_failed", payload=payload, inserted_at=at
    )
    return [told]


def waits_of(row: RunRow) -> tuple[Wait, ...]:
    """Return what a run waits for."""
    return tuple(_wait(dict(wait)) for wait in row.waiting_for)


def _wait(wait: dict[str, Any]) -> Wait:
    if "due_at" in wait:
        wait["due_at"] = timestamp_or_none(wait["due_at"])
    wait.pop("run", None)  # a run's number is for the catalog to say
    if wait["what"] != "approval":
        return Wait(**wait)
    asked = {**wait, **{name: timestamp(wait[name]) for name in ("requested_at", "expires_at")}}
    asked["escalate_at"] = timestamp_or_none(wait.get("escalate_at"))
    about = {name: asked.pop(name) for name in ("call", "what", "reminded") if name in asked}
    return Wait(**about, approval=msgspec.convert(asked, Approval))


def glimpse(event: Event) -> EventGlimpse:
    """Return an event as a failure inspector shows it."""
    return EventGlimpse(
        sequence=event.sequence,
        event_type=event.event_type,
        payload=event.payload,
        inserted_at=event.inserted_at,
    )


def conversation_object(facts: SessionFacts, transcript: Transcript | Outline) -> Conversation:
    """Return a session as its agent's conversation."""
    return Conversation(
        id=facts.id,
        agent_id=facts.agent_id,
        key=facts.key,
        summary=transcript.summary,
        message_count=transcript.message_count,
        token_estimate=transcript.token_estimate,
        inserted_at=timestamp(facts.inserted_at),
        updated_at=timestamp(facts.updated_at),
    )


def session_object(
    facts: SessionFacts,
    transcript: Transcript | Outline,
    run: Run | None,
    status: str | None = None,
) -> Session:
    """Return a session with its latest run; `status` says how it stands, if somebody runs it."""
    return Session(**_session(facts, transcript, run, status))


def session_whole(
    facts: SessionFacts,
    transcript: Transcript,
    run: Run | None,
    runs: Iterable[RunGlimpse],
    numbers: Mapping[str, int],
    status: str | None = None,
) -> SessionWhole:
    """Return a session with its messages, its latest run and a glimpse of all (oldest first).

    `numbers` are the numbers of the runs by their ids: each message says which run it is of.
    """
    return SessionWhole(
        **_session(facts, transcript, run, status),
        messages=tuple(transcript.messages(numbers)),
        runs=tuple(runs),
    )


def _session(
    facts: SessionFacts, transcript: Transcript | Outline, run: Run | None, status: str | None
) -> dict[str, Any]:
    return {
        "id": facts.id,
        "key": facts.key,
        "agent_id": facts.agent_id,
        "agent_name": facts.agent_name,
        "gard_id": run.gard_id if run is not None else facts.gard_id,
        "message_count": transcript.message_count,
        "summary": transcript.summary,
        "title": facts.title,
        "status": status or "stopped",
        "run": run,
        "first_message": transcript.first_message,
        "archived_at": timestamp_or_none(facts.archived_at),
        "inserted_at": timestamp(facts.inserted_at),
        "updated_at": timestamp(facts.updated_at),
    }


def _input(facts: RunFacts, timeline: Timeline | None) -> dict[str, Any]:
    content = facts.content
    if timeline is not None and timeline.input is not None:
        content = timeline.input
    context = facts.context if timeline is None else timeline.context or facts.context
    more = {"context": context, "fork": facts.fork}
    given = {name: value for name, value in more.items() if value is not None}
    return {"user_message": content, **given}


def _question(row: RunRow, timeline: Timeline | None) -> Question | None:
    """Return the question that a person has to answer first, if the run waits for it."""
    asked = next((one for one in row.waiting_for if one["what"] == "answer"), None)
    if asked is None or row.status != "waiting":
        return None
    known = timeline.questions.get(asked["call"]) if timeline is not None else None
    return Question(
        question=asked["question"],
        tool_call_id=known.id if known is not None else asked["call"],
        asked_at=timestamp_or_none(known.asked_at if known is not None else None),
        call=asked["call"],
    )


def _tokens(row: RunRow, timeline: Timeline | None) -> dict[str, Any]:
    read, written = row.input_tokens, row.output_tokens
    if timeline is not None:
        read = sum(one.usage.input_tokens for one in timeline.use.values())
        written = sum(one.usage.output_tokens for one in timeline.use.values())
    return {"input_tokens": read, "output_tokens": written}


def _updated_at(row: RunRow, last: Event | None) -> str:
    known = timestamp(row.ended_at or row.started_at or row.created_at)
    return known if last is None else max(known, last.inserted_at)
