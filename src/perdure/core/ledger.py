"""The ledger of calls: what becomes of an effect, from being begun to what is known of it.

A call that may have acted is never repeated blindly. Its outcome is asked of the tool's probe, then
of a person, or the model is told that it is unknown; then the same call again needs approval, until
what became of the first one is known.
"""

from __future__ import annotations

from typing import Any

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.decision import Draft, Refusal
from perdure.core.limits import ATTEMPTS_PER_TOOL_CALL_MAX, clip
from perdure.core.plan import next_step
from perdure.core.reminding import first_reminder
from perdure.core.state import Call, Doubtful

TOOL = ("tool",)
UNKNOWN_TEXT = (
    "The outcome of this call is unknown: it began, and no result of it came back. "
    "It may or may not have taken effect. Do not repeat it."
)


def resolve(draft: Draft, command: c.ResolveCall) -> Any:
    """Take what a person says of a call whose outcome is unknown, also of one that was given up."""
    by = f"person:{command.by}"
    if (doubt := _doubt(draft, command.call)) is not None:
        return _resolve_later(draft, doubt, command, by)
    call = draft.call(command.call, TOOL, "unknown", "undecided", attempt=command.attempt)
    if isinstance(call, Refusal):
        return call
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


def _doubt(draft: Draft, call: str) -> Doubtful | None:
    return next((one for one in draft.state.doubts if one.call == call), None)


def _resolve_later(
    draft: Draft, doubt: Doubtful, command: c.ResolveCall, by: str
) -> Refusal | None:
    """Say what became of a call of which the model was told that its outcome is unknown."""
    if command.attempt not in (None, doubt.attempt):
        return Refusal("stale_attempt", f"call {doubt.call!r} was at attempt {doubt.attempt}")
    if command.resolution == "tell_model":
        return Refusal("told", f"the model was told that call {doubt.call!r} is in doubt")
    happened = command.resolution == "happened"
    content = command.content if happened else None
    draft.add(
        e.ToolCallResolved(at=draft.now, call=doubt.call, happened=happened, by=by, content=content)
    )
    return None


def begin(draft: Draft, command: c.ReportToolBegin) -> Any:
    """Let a worker begin a `once` call: it is never sent again after this."""
    before = "intended" if command.instead_of is None else "begun"
    call = draft.call(command.call, TOOL, before, attempt=command.attempt)
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


def result(draft: Draft, command: c.ReportToolResult) -> Any:
    """Take the outcome of a call; a late one settles the doubt that the model was told of."""
    open_as = ("intended", "begun", "unknown", "undecided")  # late, it settles the doubt
    call = draft.call(command.call, TOOL, *open_as, attempt=command.attempt)
    if isinstance(call, Refusal):
        doubt = _doubt(draft, command.call)
        if doubt is None or not command.ok or command.attempt != doubt.attempt:
            return call
        told: Any = {"call": doubt.call, "by": "worker", "content": command.content}
        draft.add(e.ToolCallResolved(at=draft.now, happened=True, **told))
        return None
    if command.ok:
        by = "memory" if command.remembered else "worker"
        draft.add(e.ToolCallSucceeded(at=draft.now, call=call.id, content=command.content, by=by))
    else:
        draft.add(
            e.ToolCallFailed(at=draft.now, call=call.id, kind=command.kind, content=command.content)
        )
    next_step(draft)
    return None


def lost(draft: Draft, command: c.ReportToolLost) -> Any:
    """Take that a worker is gone: the call is sent again, given up, or in doubt."""
    call = draft.call(command.call, TOOL, "intended", "begun", attempt=command.attempt)
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


def forget_key(draft: Draft, call: Call) -> None:
    """Doubt a call that may have been sent, of which the far end may not know the key any more."""
    reason = "the far end may have forgotten its key: it cannot be sent again"
    unknown = e.ToolCallUnknown(at=draft.now, call=call.id, attempt=call.attempt, reason=reason)
    draft.add(unknown)
    _settle_unknown(draft, draft.state.calls[call.id])


def _settle_unknown(draft: Draft, call: Call, probed: bool = False) -> None:
    """Decide who is asked about an unknown outcome: the tool's probe, a person, or nobody."""
    tool = draft.context.agent.tools_by_name.get(call.name)
    if tool is not None and tool.probe and not probed:
        return
    if tool is not None and tool.on_unknown == "ask":
        question = f"Did {call.name} (key {call.key}) take effect?"
        at = first_reminder(draft)
        draft.add(e.DecisionRequested(at=draft.now, call=call.id, question=question, remind_at=at))
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


def probed(draft: Draft, command: c.ReportProbe) -> Any:
    """Take what a tool's probe says."""
    call = draft.call(command.call, TOOL, "unknown", attempt=command.attempt)
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
