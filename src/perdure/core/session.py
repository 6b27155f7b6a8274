"""decide, evolve, owed: what happens, what is true, and what the outside must still do.

All three are total and deterministic. A command that cannot apply is refused with a reason; one
that cannot apply *yet* is postponed and stays in the inbox. Every open call is answered before its
run ends, so no committed history ever has a tool call without its result. There is no resume: a
session that was interrupted is folded, and what `owed` returns is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core import ids
from perdure.core.decision import Context, Decision, Draft, Refusal
from perdure.core.evolve import evolve
from perdure.core.limits import ATTEMPTS_PER_TOOL_CALL_MAX, clip
from perdure.core.plan import act, next_run, next_step, start_run
from perdure.core.retry import Failure, delay_before_retry
from perdure.core.state import Call, State

__all__ = ["Context", "Decision", "Refusal", "decide", "evolve", "owed", "wake_at"]

UNKNOWN_TEXT = (
    "The outcome of this call is unknown: it began, and no result of it came back. "
    "It may or may not have taken effect. Do not repeat it."
)


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
    if answer is not None:
        return Decision(state, consumed=own, refusal=answer)
    next_run(draft)
    return draft.decision(own)


def owed(state: State) -> tuple[Call, ...]:
    """Return the calls that the outside must still do, in the order they were intended."""
    return tuple(state.calls.values())


def wake_at(state: State) -> int | None:
    """Return the time of the earliest timer, retry or deadline of the session, if it has one."""
    earliest = None
    if state.run is not None and state.status != "idle":
        earliest = state.run.deadline_at
    for call in state.calls.values():
        if call.due_at is not None and (earliest is None or call.due_at < earliest):
            earliest = call.due_at
    return earliest


POSTPONED = object()

MODEL = ("model", "compaction")
TOOL = ("tool",)


def _call(
    draft: Draft,
    call_id: str,
    kinds: tuple[str, ...],
    *statuses: str,
    attempt: int | None = None,
) -> Call | Refusal:
    call = draft.state.calls.get(call_id)
    if call is None or call.kind not in kinds:
        return Refusal("not_owed", f"call {call_id!r} is not owed: it was answered or given up")
    if call.status not in statuses:
        return Refusal(
            "not_owed", f"call {call_id!r} is {call.status}, not {' or '.join(statuses)}"
        )
    if attempt is not None and call.attempt != attempt:
        return Refusal("stale_attempt", f"call {call_id!r} is at attempt {call.attempt} by now")
    return call


def _send_message(draft: Draft, command: c.SendMessage) -> Any:
    if command.fork_of is not None and draft.state.version > 0:
        return Refusal("not_fresh", "a fork begins a session of its own, and this one has begun")
    if draft.state.status == "idle":
        start_run(draft, command)
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
        draft.add(
            e.RunWithdrawn(at=draft.now, run=command.run, reason=command.reason, by=command.by)
        )
        return None
    run = draft.state.run
    if draft.state.status == "idle" or run is None or run.id != command.run:
        return Refusal("not_running", f"run {command.run!r} is not in progress")
    _end_run(draft, "cancelled", command.reason, command.by)
    return None


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


def _resolve_call(draft: Draft, command: c.ResolveCall) -> Any:
    call = _call(draft, command.call, TOOL, "unknown", "undecided", attempt=command.attempt)
    if isinstance(call, Refusal):
        return call
    by = f"person:{command.by}"
    if command.resolution == "happened":
        content = command.content if command.content is not None else "It took effect."
        draft.add(e.ToolCallSucceeded(at=draft.now, call=call.id, content=content, by=by))
    elif command.resolution == "did_not_happen":
        _reopen(draft, call, by)
    else:
        draft.add(
            e.ToolCallFailed(
                at=draft.now, call=call.id, kind="unknown", content=UNKNOWN_TEXT, by=by
            )
        )
    next_step(draft)
    return None


def _report_reply(draft: Draft, command: c.ReportReply) -> Any:
    call = _call(draft, command.call, MODEL, "intended")
    if isinstance(call, Refusal):
        return call
    reply = command.reply
    if call.kind == "compaction" and not _says_something(reply.content):
        told: Any = {"error_class": "validation", "code": "empty_summary"}
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
            )
        )
    else:
        draft.add(
            e.ModelReplied(
                at=draft.now,
                call=call.id,
                content=reply.content,
                tool_calls=reply.tool_calls,
                finish=reply.finish,
                usage=reply.usage,
                model=reply.model,
                extra=reply.extra,
            )
        )
        act(draft, call.id, reply.tool_calls)
    next_step(draft)
    return None


def _says_something(content: Any) -> bool:
    return bool(content.strip() if isinstance(content, str) else content)


def _report_model_error(draft: Draft, command: c.ReportModelError) -> Any:
    call = _call(draft, command.call, MODEL, "intended")
    if isinstance(call, Refusal):
        return call
    run = draft.state.run
    assert run is not None
    told: Any = {"error_class": command.error_class, "code": command.code}
    message = clip(command.message)
    if call.kind == "compaction":
        draft.add(e.CompactionFailed(at=draft.now, call=call.id, message=message, **told))
        next_step(draft)
        return None
    draft.add(e.ModelCallFailed(at=draft.now, call=call.id, message=message, **told))
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


def _report_tool_begin(draft: Draft, command: c.ReportToolBegin) -> Any:
    before = "intended" if command.instead_of is None else "begun"
    call = _call(draft, command.call, TOOL, before, attempt=command.attempt)
    if isinstance(call, Refusal):
        return call
    if command.instead_of is not None and call.worker != command.instead_of:
        return Refusal("not_owed", f"call {call.id!r} was begun by {call.worker!r}")
    if call.effect != "once":
        return Refusal("not_once", f"call {call.id!r} is {call.effect}: it just runs")
    draft.add(
        e.ToolCallBegun(at=draft.now, call=call.id, attempt=call.attempt, worker=command.worker)
    )
    return None


def _report_tool_result(draft: Draft, command: c.ReportToolResult) -> Any:
    open_as = ("intended", "begun", "unknown", "undecided")  # late, it settles the doubt
    call = _call(draft, command.call, TOOL, *open_as, attempt=command.attempt)
    if isinstance(call, Refusal):
        return call
    if command.ok:
        by = "memory" if command.remembered else "worker"
        draft.add(e.ToolCallSucceeded(at=draft.now, call=call.id, content=command.content, by=by))
    else:
        draft.add(
            e.ToolCallFailed(at=draft.now, call=call.id, kind=command.kind, content=command.content)
        )
    next_step(draft)
    return None


def _report_tool_lost(draft: Draft, command: c.ReportToolLost) -> Any:
    call = _call(draft, command.call, TOOL, "intended", "begun", attempt=command.attempt)
    if isinstance(call, Refusal):
        return call
    attempt, reason = command.attempt, clip(command.reason)
    if call.status == "begun":
        draft.add(e.ToolCallUnknown(at=draft.now, call=call.id, attempt=attempt, reason=reason))
        _settle_unknown(draft, draft.state.calls[call.id])
    elif attempt < ATTEMPTS_PER_TOOL_CALL_MAX:
        draft.add(e.ToolCallLost(at=draft.now, call=call.id, attempt=attempt, reason=reason))
    else:
        text = f"Given up after {attempt} attempts: {reason}"
        draft.add(e.ToolCallFailed(at=draft.now, call=call.id, kind="lost", content=text))
    next_step(draft)
    return None


def _settle_unknown(draft: Draft, call: Call, probed: bool = False) -> None:
    """Decide who is asked about an unknown outcome: the tool's probe, a person, or nobody."""
    tool = draft.context.agent.tools_by_name.get(call.name)
    if tool is not None and tool.probe and not probed:
        return
    if tool is not None and tool.on_unknown == "ask":
        question = f"Did {call.name} (key {call.key}) take effect?"
        draft.add(e.DecisionRequested(at=draft.now, call=call.id, question=question))
    else:
        draft.add(
            e.ToolCallFailed(at=draft.now, call=call.id, kind="unknown", content=UNKNOWN_TEXT)
        )


def _reopen(draft: Draft, call: Call, by: str) -> None:
    if call.attempt < ATTEMPTS_PER_TOOL_CALL_MAX:
        draft.add(e.ToolCallReopened(at=draft.now, call=call.id, by=by))
    else:
        text = f"Given up after {call.attempt} attempts. It did not take effect."
        draft.add(e.ToolCallFailed(at=draft.now, call=call.id, kind="lost", content=text, by=by))


def _report_probe(draft: Draft, command: c.ReportProbe) -> Any:
    call = _call(draft, command.call, TOOL, "unknown", attempt=command.attempt)
    if isinstance(call, Refusal):
        return call
    if command.verdict == "happened":
        draft.add(
            e.ToolCallSucceeded(at=draft.now, call=call.id, content=command.content, by="probe")
        )
    elif command.verdict == "did_not_happen":
        _reopen(draft, call, "probe")
    else:
        _settle_unknown(draft, call, probed=True)
    next_step(draft)
    return None


def _bring_report(draft: Draft, command: c.BringReport) -> Any:
    return _HANDLERS[type(command.report)](draft, command.report)


def _doubt(draft: Draft, command: c.Doubt) -> Any:
    for message in tuple(draft.waiting):
        if message.accepted_at < command.since:
            draft.waiting.remove(message)
            draft.consumed.append(message.id)
            draft.add(e.RunWithdrawn(at=draft.now, run=message.id, reason=SUSPECT_TEXT))
    if draft.state.status != "idle":
        _end_run(draft, "failed", SUSPECT_TEXT, code="suspect", error_class="internal")
    return None


def _fire_timer(draft: Draft, command: c.FireTimer) -> Any:
    state, now = draft.state, draft.context.now
    run = state.run
    if state.status != "idle" and run is not None and command.call == run.id:
        if run.deadline_at is None or now < run.deadline_at:
            return Refusal("not_due", f"the deadline of run {run.id!r} has not come")
        _end_run(draft, "failed", "the run's wall time is over", code="wall_time_exceeded")
        return None
    call = _call(draft, command.call, ("timer", "backoff"), "timing")
    if isinstance(call, Refusal):
        return call
    if call.due_at is None or now < call.due_at:
        return Refusal("not_due", f"call {call.id!r} is due at {call.due_at}, and it is {now}")
    draft.add(
        (e.RetryFellDue if call.kind == "backoff" else e.TimerFired)(at=draft.now, call=call.id)
    )
    next_step(draft)
    return None


_HANDLERS: Mapping[type, Callable[[Draft, Any], Any]] = {
    c.SendMessage: _send_message,
    c.CancelRun: _cancel_run,
    c.AnswerQuestion: _answer_question,
    c.ResolveCall: _resolve_call,
    c.ReportReply: _report_reply,
    c.ReportModelError: _report_model_error,
    c.ReportToolBegin: _report_tool_begin,
    c.ReportToolResult: _report_tool_result,
    c.ReportToolLost: _report_tool_lost,
    c.ReportProbe: _report_probe,
    c.BringReport: _bring_report,
    c.Doubt: _doubt,
    c.FireTimer: _fire_timer,
}
