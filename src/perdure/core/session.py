"""decide, evolve, owed: what happens, what is true, and what the outside must still do.

All three are total and deterministic. A command that cannot apply is refused with a reason; one
that cannot apply *yet* is postponed and stays in the inbox. Every open call is answered before its
run ends, so no committed history ever has a tool call without its result. There is no resume: a
session that was interrupted is folded, and what `owed` returns is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from perdure.core import children, ids, ledger
from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.approvals import decide_approval, expire
from perdure.core.decision import Context, Decision, Draft, Refusal
from perdure.core.evolve import evolve
from perdure.core.ledger import forget_key
from perdure.core.limits import clip
from perdure.core.messages import recordable
from perdure.core.plan import act, next_run, next_step, start_run
from perdure.core.raising import deny_budget, raise_budget
from perdure.core.reminding import make_heard
from perdure.core.reserving import may_be_billed, priced, resend
from perdure.core.retry import Failure, delay_before_retry
from perdure.core.state import Call, State

__all__ = ["Context", "Decision", "Refusal", "decide", "due", "evolve", "owed", "wake_at"]

SUSPECT_TEXT = (
    "the store was restored to an earlier state, or lost what it had acknowledged: this may have "
    "been done already. See what took effect; then retry the run, or send the message again"
)


def decide(state: State, command: c.AnyCommand, context: Context) -> Decision:
    """Return the events that `command` causes, or why it causes none."""
    draft = Draft(state, context)
    answer = _HANDLERS[type(command)](draft, command)
    if answer is POSTPONED:
        return Decision(state, postponed=True)
    own = (command.id,) if isinstance(command, c.Accepted) else ()
    if answer is not None and not draft.events:
        return Decision(state, consumed=own, refusal=answer)
    next_run(draft)
    return replace(draft.decision(own), refusal=answer)


def owed(state: State) -> tuple[Call, ...]:
    """Return the calls that the outside must still do, in the order they were intended."""
    return tuple(state.calls.values())


def wake_at(state: State) -> int | None:
    """Return the time of the earliest timer, retry or deadline of the session, if it has one."""
    earliest = None
    if state.run is not None and state.status != "idle":
        earliest = state.run.deadline_at
    for call in state.calls.values():
        at = call.next_at()
        if at is not None and (earliest is None or at < earliest):
            earliest = at
    return earliest


def due(state: State, now: int) -> list[str]:
    """Return the calls of which the clock has something to say, and the run that is out of time."""
    found = [c.id for c in state.calls.values() if (at := c.next_at()) is not None and at <= now]
    run = state.run
    if run is not None and run.deadline_at is not None and run.deadline_at <= now:
        found.append(run.id)
    return found


POSTPONED = object()

MODEL = ("model", "compaction")
_TIMED = ("timer", "backoff", "tool", "question")
_FOR_PEOPLE = ("pending", "asking", "undecided")


def _send_message(draft: Draft, command: c.SendMessage) -> Any:
    if command.fork_of is not None and draft.state.version > 0:
        return Refusal("not_fresh", "a fork begins a session of its own, and this one has begun")
    if draft.state.status == "idle":
        start_run(draft, command)
        return None
    if command.parent is not None:
        draft.consumed.append(command.id)
        _withdraw(draft, command, "another run is in progress in its session", code=children.BUSY)
        return None
    if command.mode == "interrupt":
        _end_run(draft, "cancelled", f"interrupted by message {command.id}", command.sender)
        start_run(draft, command)
        return None
    if command.mode == "steer" and draft.state.status == "acting" and not draft.state.calls:
        draft.waiting.append(command)
        next_step(draft)
        return None
    return POSTPONED


def _cancel_run(draft: Draft, command: c.CancelRun) -> Any:
    waiting = next((m for m in draft.waiting if m.id == command.run), None)
    if waiting is not None:
        draft.waiting.remove(waiting)
        draft.consumed.append(waiting.id)
        _withdraw(draft, waiting, command.reason, command.by)
        return None
    run = draft.state.run
    if draft.state.status == "idle" or run is None or run.id != command.run:
        return Refusal("not_running", f"run {command.run!r} is not in progress")
    _end_run(draft, "cancelled", command.reason, command.by)
    return None


def _withdraw(
    draft: Draft,
    message: c.SendMessage,
    reason: str,
    by: str | None = None,
    code: str = "cancelled",
) -> None:
    draft.add(
        e.RunWithdrawn(
            at=draft.now, run=message.id, reason=reason, by=by, code=code, parent=message.parent
        )
    )


def _end_run(
    draft: Draft,
    how: str,
    reason: str,
    by: str | None = None,
    code: str = "",
    error_class: e.ErrorClass = "policy",
) -> None:
    run = draft.state.run
    assert run is not None
    draft.close_calls("Cancelled." if how == "cancelled" else f"Given up: {reason}.")
    if how == "cancelled":
        draft.add(e.RunCancelled(at=draft.now, run=run.id, reason=reason, by=by))
    else:
        draft.add(
            e.RunFailed(
                at=draft.now, run=run.id, error_class=error_class, code=code, message=reason
            )
        )


def _answer_question(draft: Draft, command: c.AnswerQuestion) -> Any:
    run = draft.state.run
    if run is None or run.id != command.run or draft.state.status == "idle":
        return Refusal("not_running", f"run {command.run!r} is not in progress")
    asking = [call for call in draft.state.calls.values() if call.status == "asking"]
    wanted = [call for call in asking if command.call in (None, call.id)]
    if not wanted:
        return Refusal("not_asked", f"run {command.run!r} has no such open question")
    content, by = command.content, command.by
    draft.add(e.QuestionAnswered(at=draft.now, call=wanted[0].id, content=content, by=by))
    next_step(draft)
    return None


def _decide_approval(draft: Draft, command: c.DecideApproval) -> Any:
    refusal = decide_approval(draft, command)
    if draft.events:
        next_step(draft)
    return refusal


def _report_reply(draft: Draft, command: c.ReportReply) -> Any:
    call = draft.call(command.call, MODEL, "intended")
    if isinstance(call, Refusal):
        return call
    reply = command.reply
    if call.kind == "compaction" and not _says_something(reply.content):
        told: Any = {"error_class": "validation", "code": "empty_summary", "doubtful": True}
        draft.add(
            e.CompactionFailed(at=draft.now, call=call.id, message="the summary is empty", **told)
        )
    elif call.kind == "compaction":
        draft.add(
            e.ContextCompacted(
                at=draft.now,
                call=call.id,
                content=reply.content,
                keep_from=call.keep_from,
                usage=reply.usage,
                cost_micros=priced(draft, call.id, reply.model, reply.usage),
            )
        )
    else:
        requests = tuple(map(recordable, reply.tool_calls))
        draft.add(
            e.ModelReplied(
                at=draft.now,
                call=call.id,
                content=reply.content,
                tool_calls=requests,
                finish=reply.finish,
                usage=reply.usage,
                model=reply.model,
                extra=reply.extra,
                cost_micros=priced(draft, call.id, reply.model, reply.usage),
            )
        )
        act(draft, call.id, requests)
    next_step(draft)
    return None


def _says_something(content: Any) -> bool:
    return bool(content.strip() if isinstance(content, str) else content)


def _report_model_error(draft: Draft, command: c.ReportModelError) -> Any:
    call = draft.call(command.call, MODEL, "intended")
    if isinstance(call, Refusal):
        return call
    run = draft.state.run
    assert run is not None
    told: Any = {"error_class": command.error_class, "code": command.code}
    doubtful = may_be_billed(draft, command)
    message = clip(command.message)
    if call.kind == "compaction":
        draft.add(
            e.CompactionFailed(
                at=draft.now, call=call.id, message=message, doubtful=doubtful, **told
            )
        )
        next_step(draft)
        return None
    draft.add(
        e.ModelCallFailed(at=draft.now, call=call.id, message=message, doubtful=doubtful, **told)
    )
    failure = Failure(command.error_class, command.code, message, command.retry_after_ms)
    delay_ms = None
    if draft.context.agent.spec.on_failure == "retry":
        delay_ms = delay_before_retry(failure, run.retries, draft.context.chance)
    if delay_ms is None:
        draft.add(e.RunFailed(at=draft.now, run=run.id, message=message, **told))
    else:
        attempt = run.retries + 2
        draft.add(
            e.RetryScheduled(
                at=draft.now,
                call=ids.backoff_call(run.number, run.step, attempt),
                attempt=attempt,
                delay_ms=delay_ms,
                due_at=draft.context.now + delay_ms,
            )
        )
    return None


def _end_child(draft: Draft, command: c.EndChild) -> Any:
    how = children.end(draft, command)
    if isinstance(how, Refusal):
        return how
    if how in ("escalate", "abort"):
        code = children.ABORTED if how == "abort" else children.FAILED
        _end_run(draft, "failed", f"a run that it launched failed: {command.message}", code=code)
    next_step(draft)
    return None


def _report_no_child(draft: Draft, command: c.ReportNoChild) -> Any:
    told: Any = {"id": "", "run": "", "call": command.call, "child": command.child}
    return _end_child(
        draft,
        c.EndChild(**told, status="cancelled", code="not_started", message=command.message),
    )


def _report_delivered(draft: Draft, command: c.ReportDelivered) -> Any:
    owed_here = {letter.id for letter in draft.state.outbox}
    delivered = tuple(one for one in command.letters if one in owed_here)
    if not delivered:
        return Refusal("not_owed", "these letters were delivered before")
    draft.add(e.LettersDelivered(at=draft.now, letters=delivered))
    return None


def _bring_report(draft: Draft, command: c.BringReport) -> Any:
    return _HANDLERS[type(command.report)](draft, command.report)


def _doubt(draft: Draft, command: c.Doubt) -> Any:
    for message in tuple(draft.waiting):
        if message.accepted_at < command.since:
            draft.waiting.remove(message)
            draft.consumed.append(message.id)
            _withdraw(draft, message, SUSPECT_TEXT)
    if draft.state.status != "idle":
        _end_run(draft, "failed", SUSPECT_TEXT, code="suspect", error_class="internal")
    return None


def _resend(draft: Draft, command: c.ResendModelCall) -> Any:
    refusal = resend(draft, command)
    if draft.events:
        next_step(draft)
    return refusal


def _fire_timer(draft: Draft, command: c.FireTimer) -> Any:
    state, now = draft.state, draft.context.now
    run = state.run
    if state.status != "idle" and run is not None and command.call == run.id:
        if run.deadline_at is None or now < run.deadline_at:
            return Refusal("not_due", f"the deadline of run {run.id!r} has not come")
        _end_run(draft, "failed", "the run's wall time is over", code="wall_time_exceeded")
        return None
    call = draft.call(command.call, _TIMED, "timing", "intended", *_FOR_PEOPLE)
    if isinstance(call, Refusal):
        return call
    if call.due_at is None or now < call.due_at:
        return make_heard(draft, call)
    if call.status == "pending":
        expire(draft, call)
    elif call.kind == "tool":
        forget_key(draft, call)
    else:
        draft.add(
            (e.RetryFellDue if call.kind == "backoff" else e.TimerFired)(at=draft.now, call=call.id)
        )
    next_step(draft)
    return None


_HANDLERS: Mapping[type, Callable[[Draft, Any], Any]] = {
    c.SendMessage: _send_message,
    c.CancelRun: _cancel_run,
    c.AnswerQuestion: _answer_question,
    c.DecideApproval: _decide_approval,
    c.RaiseBudget: raise_budget,
    c.DenyBudget: deny_budget,
    c.ResendModelCall: _resend,
    c.ResolveCall: ledger.resolve,
    c.ReportReply: _report_reply,
    c.ReportModelError: _report_model_error,
    c.ReportToolBegin: ledger.begin,
    c.ReportToolResult: ledger.result,
    c.ReportToolLost: ledger.lost,
    c.ReportProbe: ledger.probed,
    c.EndChild: _end_child,
    c.ReportNoChild: _report_no_child,
    c.ReportDelivered: _report_delivered,
    c.BringReport: _bring_report,
    c.Doubt: _doubt,
    c.FireTimer: _fire_timer,
}
