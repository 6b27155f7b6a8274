"""What becomes of calls: the handlers of their events, which look up the table of calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from perdure.core import events as e
from perdure.core import family
from perdure.core.errors import IllegalTransition
from perdure.core.family import Child
from perdure.core.gate import STANDING
from perdure.core.limits import DECIDED_MAX, RESTARTS_MAX, USES_MAX
from perdure.core.state import Approval, Call, Decided, Doubtful, State
from perdure.core.transitions import CALL

EXPIRED = "approval_expired"
"""The rule by which a call is denied that nobody approved in time."""
Calls = dict[str, Call]
Handler = Callable[[State, Any, int, Any], State]


def column(table: Mapping[str, Mapping[str, str]], kind: str) -> dict[str, str]:
    """Return what a table says of one type of event: status before -> status after."""
    return {before: row[kind] for before, row in table.items() if kind in row}


_MOVES = {cls: column(CALL, kind) for cls, kind in e.TYPE_NAMES.items()}


def _move(state: State, call_id: str, event: e.Event) -> str:
    """Return what becomes of a call; raise `IllegalTransition` if nothing may."""
    call = state.calls.get(call_id)
    before = call.status if call is not None else "absent"
    after = _MOVES[type(event)].get(before)
    if after is None:
        raise IllegalTransition(
            f"event {state.version + 1} is {e.type_of(event)!r} for call {call_id!r}, which is "
            f"{before!r}; expected one of {', '.join(CALL[before])}"
        )
    return after


def opened(state: State, call: Call, event: e.Event) -> Calls:
    """Return the open calls with a new one."""
    _move(state, call.id, event)
    return {**state.calls, call.id: call} if state.calls else {call.id: call}


def without(state: State, event: Any) -> Calls:
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


def _opens(make: Callable[[State, Any], Call]) -> Handler:
    """Return the handler of an event that opens the call that `make` makes of it."""

    def handler(state: State, event: Any, version: int, status: Any) -> State:
        calls = opened(state, make(state, event), event)
        return replace(state, version=version, status=status, calls=calls)

    return handler


def _intended(state: State, event: e.ToolCallIntended, version: int, status: Any) -> State:
    waited = state.calls.get(event.call)
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
        due_at=event.unsure_at,
        intended_at=event.at,
        version=event.version,
        digest=event.digest,
    )
    decided = state.decided
    if waited is not None:
        call = replace(call, reply=waited.reply)
    if waited is not None and (approval := waited.approval) is not None:
        edited = waited.arguments if approval.edited_by else None
        call = replace(call, arguments=edited)
        decided = _decided(state, Decided(call.id, "approved", ", ".join(approval.by), event.at))
    calls = opened(state, call, event)
    uses = _used(state.uses, event.rule)
    return replace(state, version=version, status=status, calls=calls, decided=decided, uses=uses)


def _used(uses: dict[str, int], rule: str) -> dict[str, int]:
    """Return the uses of standing approvals, with one more if the rule names one."""
    if not rule.startswith(STANDING):
        return uses
    name = rule.removeprefix(STANDING)
    if name not in uses and len(uses) >= USES_MAX:
        return uses
    return {**uses, name: uses.get(name, 0) + 1}


def _decided(state: State, one: Decided) -> tuple[Decided, ...]:
    return (*state.decided, one)[-DECIDED_MAX:]


def _denied(state: State, event: e.ToolCallDenied, version: int, status: Any) -> State:
    waited = state.calls.get(event.call)
    if waited is None:
        _move(state, event.call, event)
        return replace(state, version=version, status=status)
    outcome: Any = "expired" if event.rule == EXPIRED else "denied"
    return replace(
        state,
        version=version,
        status=status,
        calls=without(state, event),
        decided=_decided(state, Decided(event.call, outcome, event.by or event.rule, event.at)),
    )


def _pending(state: State, event: e.ApprovalRequested) -> Call:
    waited = state.calls.get(event.call)
    edited = "" if waited is None or waited.approval is None else waited.approval.edited_by
    return Call(
        id=event.call,
        kind="tool",
        status="pending",
        step=event.step,
        ordinal=event.ordinal,
        name=event.name,
        reply=(state.reply or 0) if waited is None else waited.reply,
        effect=event.effect,
        key=event.key,
        due_at=event.expires_at,
        intended_at=event.at,
        version=event.version,
        digest=event.digest,
        arguments=event.arguments,
        approval=Approval(
            rule=event.rule,
            reason=event.reason,
            policy=event.policy,
            needed=event.needed,
            roles=event.roles,
            edited_by=edited,
            escalate_at=event.escalate_at,
            escalate_to=event.escalate_to,
        ),
        remind_at=event.remind_at,
    )


def _approval(state: State, event: Any) -> Approval:
    call = state.calls.get(event.call)
    if call is None or call.approval is None:
        raise IllegalTransition(
            f"event {state.version + 1} is {e.type_of(event)!r} for call {event.call!r}, which "
            "waits for no approval"
        )
    return call.approval


def _approved(state: State, event: e.ApprovalGiven, version: int, status: Any) -> State:
    approval = _approval(state, event)
    calls = _changed(state, event, approval=replace(approval, by=(*approval.by, event.by)))
    return replace(state, version=version, status=status, calls=calls)


def _reassigned(state: State, event: e.ApprovalReassigned, version: int, status: Any) -> State:
    approval = replace(_approval(state, event), roles=event.roles, escalate_at=None)
    calls = _changed(state, event, approval=approval)
    return replace(state, version=version, status=status, calls=calls)


def _edited(state: State, event: e.ArgumentsEdited, version: int, status: Any) -> State:
    approval = replace(_approval(state, event), by=(), edited_by=event.by)
    now = {"arguments": event.arguments, "digest": event.digest}
    calls = _changed(state, event, approval=approval, **now)
    return replace(state, version=version, status=status, calls=calls)


def _exceeded(state: State, event: e.BudgetExceeded) -> Call:
    is_tool = event.ordinal is not None
    return Call(
        id=event.call,
        kind="tool" if is_tool else "budget",
        status="exceeded",
        step=event.step,
        ordinal=event.ordinal or 0,
        name=event.name,
        reply=(state.reply or 0) if is_tool else 0,
        effect=event.effect,
        key=event.key,
        intended_at=event.at,
        version=event.version,
        arguments=event.arguments,
        short=event.short,
    )


def _raised(state: State, event: e.BudgetRaised, version: int, status: Any) -> State:
    if event.call is None:
        return replace(state, version=version, status=status)
    decided = _decided(state, Decided(event.call, "raised", event.by, event.at))
    calls = without(state, event)
    return replace(state, version=version, status=status, calls=calls, decided=decided)


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
        remind_at=event.remind_at,
    )


def closed(state: State, event: Any, version: int, status: Any) -> State:
    """Close the event's call."""
    return replace(state, version=version, status=status, calls=without(state, event))


def _launched(state: State, event: e.ChildLaunched, version: int, status: Any) -> State:
    child = Child(event.child, event.agent, event.key, event.agent_name, version)
    waited = state.calls.get(event.call)
    decided = state.decided
    if waited is not None and (approval := waited.approval) is not None:
        one = Decided(event.call, "approved", ", ".join(approval.by), event.at)
        decided = _decided(state, one)
    call = Call(
        id=event.call,
        kind="child",
        status="launched",
        step=event.step,
        ordinal=event.ordinal,
        name=event.name,
        intended_at=event.at,
        child=child,
    )
    run = state.run
    return replace(
        state,
        version=version,
        status=status,
        calls=opened(state, call, event),
        run=run and replace(run, children=run.children + 1),
        decided=decided,
        outbox=(*state.outbox, family.start(child)),
    )


def _restarted(state: State, event: e.ChildRestarted, version: int, status: Any) -> State:
    call = state.calls.get(event.call)
    before = call.child if call is not None else None
    if before is None:
        raise IllegalTransition(
            f"event {version} restarts the child of call {event.call!r}, which has none"
        )
    restarts = (*before.restarts, event.at)[-RESTARTS_MAX:]
    child = replace(before, run=event.child, key=event.key, restarts=restarts)
    calls = _changed(state, event, child=child)
    outbox = (*state.outbox, family.start(child))
    return replace(state, version=version, status=status, calls=calls, outbox=outbox)


def _delivered(state: State, event: e.LettersDelivered, version: int, status: Any) -> State:
    outbox = tuple(letter for letter in state.outbox if letter.id not in event.letters)
    return replace(state, version=version, status=status, outbox=outbox)


def _cancelled(state: State, event: e.ToolCallCancelled, version: int, status: Any) -> State:
    """Close a call; a child that is waited for no more is cancelled with it."""
    call = state.calls.get(event.call)
    after = _closed_in_doubt(state, event, version, status)
    if call is None or call.child is None:
        return after
    return replace(after, outbox=(*after.outbox, family.cancel(call.child, version)))


def _closed_in_doubt(state: State, event: Any, version: int, status: Any) -> State:
    """Close a call, and remember it if it may have taken effect all the same."""
    call, doubts = state.calls.get(event.call), state.doubts
    if call is not None and call.status in ("begun", "unknown", "undecided"):
        told = isinstance(event, e.ToolCallCancelled) or event.kind == "unknown"
        if told:
            one = Doubtful(call.id, call.name, call.digest, call.key, call.attempt)
            doubts = (*doubts, one)  # so many calls a step may have, and none while they are many
    calls = without(state, event)
    return replace(state, version=version, status=status, calls=calls, doubts=doubts)


def _resolved(state: State, event: e.ToolCallResolved, version: int, status: Any) -> State:
    _move(state, event.call, event)
    doubts = tuple(one for one in state.doubts if one.call != event.call)
    return replace(state, version=version, status=status, doubts=doubts)


def _undecided(state: State, event: e.DecisionRequested, version: int, status: Any) -> State:
    calls = _changed(state, event, remind_at=event.remind_at)
    return replace(state, version=version, status=status, calls=calls)


def _reminded(state: State, event: e.PeopleReminded, version: int, status: Any) -> State:
    calls = _changed(state, event, remind_at=event.remind_at, reminded=event.count)
    return replace(state, version=version, status=status, calls=calls)


def _doubted(state: State, event: e.ToolCallUnknown, version: int, status: Any) -> State:
    call = state.calls.get(event.call)
    if call is not None and call.status == "intended" and call.effect != "idempotent":
        raise IllegalTransition(
            f"event {state.version + 1} doubts call {call.id!r}, which is {call.status!r} and "
            f"{call.effect}: expected it to have begun"
        )
    calls = _changed(state, event, due_at=None)
    return replace(state, version=version, status=status, calls=calls)


def _begun(state: State, event: e.ToolCallBegun, version: int, status: Any) -> State:
    calls = _changed(state, event, worker=event.worker)
    return replace(state, version=version, status=status, calls=calls)


def _sent_again(state: State, event: Any, version: int, status: Any) -> State:
    call = state.calls.get(event.call)
    attempt = call.attempt + 1 if call is not None else 1
    fields: dict[str, Any] = {"attempt": attempt, "worker": "", "remind_at": None, "reminded": 0}
    if isinstance(event, e.ToolCallReopened):
        fields["due_at"] = None  # whoever said so knows better than the clock
    calls = _changed(state, event, **fields)
    return replace(state, version=version, status=status, calls=calls)


def _moved(state: State, event: Any, version: int, status: Any) -> State:
    return replace(state, version=version, status=status, calls=_changed(state, event))


CALL_HANDLERS: Mapping[type[e.Event], Handler] = {
    e.ToolCallIntended: _intended,
    e.ToolCallDenied: _denied,
    e.ApprovalRequested: _opens(_pending),
    e.ApprovalGiven: _approved,
    e.ApprovalReassigned: _reassigned,
    e.ArgumentsEdited: _edited,
    e.ChildLaunched: _launched,
    e.ChildRestarted: _restarted,
    e.LettersDelivered: _delivered,
    e.ToolCallBegun: _begun,
    e.ToolCallSucceeded: closed,
    e.ToolCallFailed: _closed_in_doubt,
    e.ToolCallLost: _sent_again,
    e.ToolCallUnknown: _doubted,
    e.ToolCallReopened: _sent_again,
    e.BudgetExceeded: _opens(_exceeded),
    e.BudgetRaised: _raised,
    e.ModelCallResent: _moved,
    e.ToolCallCancelled: _cancelled,
    e.DecisionRequested: _undecided,
    e.PeopleReminded: _reminded,
    e.ToolCallResolved: _resolved,
    e.TimerStarted: _opens(_timer),
    e.TimerFired: closed,
    e.QuestionAsked: _opens(_question),
    e.QuestionAnswered: closed,
}
