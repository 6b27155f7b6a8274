"""What somebody says of a budget that does not suffice: here is more, or there is no more.

It may be raised at any time, also before it is exceeded. Whoever answers late is told who was
first, and nothing is added twice.
"""

from __future__ import annotations

from typing import Any

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.approvals import propose
from perdure.core.budget import AMOUNT_MAX, Budget, Purse
from perdure.core.decision import Draft, Refusal
from perdure.core.limits import clip
from perdure.core.plan import next_step
from perdure.core.reserving import EXCEEDED, fail, fits, in_words
from perdure.core.state import Call, Run


def raise_budget(draft: Draft, command: c.RaiseBudget) -> Refusal | None:
    """Add to what a run may spend, and go on with what waits for it."""
    found = _answered(draft, command)
    if isinstance(found, Refusal):
        return found
    run, purse, waits = found
    refusal = _amiss(purse.allotted, command, waits)
    if refusal is not None:
        return refusal
    asks = next((call.id for call in waits if call.kind == "budget"), None)
    draft.add(
        e.BudgetRaised(
            at=draft.now,
            call=asks,
            tokens=command.tokens,
            cost_micros=command.cost_micros,
            wall_ms=_from_now(draft, run, purse.allotted, command.wall_ms),
            calls=command.calls,
            by=command.by,
            reason=clip(command.reason),
        )
    )
    for call in waits:
        if call.kind == "tool" and fits(draft, call.name):
            _go_on(draft, call)
    next_step(draft)
    return None


def deny_budget(draft: Draft, command: c.DenyBudget) -> Refusal | None:
    """Give no more: a call of a tool is denied, and a run that cannot ask its model fails."""
    found = _answered(draft, command)
    if isinstance(found, Refusal):
        return found
    _, purse, waits = found
    if not waits:
        return Refusal("not_waiting", f"run {command.run!r} does not wait for its budget")
    said = f"{command.by} gave no more" + (f": {clip(command.reason)}" if command.reason else "")
    for call in waits:
        if command.call not in (None, call.id):
            continue
        assert call.short is not None
        if call.kind == "budget":
            fail(draft, in_words(call.short, purse), said.partition(" gave")[0])
            break
        _deny(draft, call, f"This call was not made: {in_words(call.short, purse)}. {said}.")
    next_step(draft)
    return None


def _answered(
    draft: Draft, command: c.RaiseBudget | c.DenyBudget
) -> tuple[Run, Purse, list[Call]] | Refusal:
    """Return the run, its purse and the calls that wait for more, or why it cannot be answered."""
    state, run = draft.state, draft.state.run
    if run is None or run.id != command.run or state.status == "idle":
        return Refusal(
            "not_running",
            f"run {command.run!r} is not in progress: only the budget of one that is can be raised",
        )
    if run.purse is None:
        return Refusal("no_budget", f"run {run.id!r} has no budget: nothing limits it but limits")
    roles = run.purse.allotted.roles
    if command.held is not None and roles and not set(command.held) & set(roles):
        return Refusal("not_entitled", f"{command.by} has none of the roles {', '.join(roles)}")
    waits = [call for call in state.calls.values() if call.status == "exceeded"]
    if command.call is not None and command.call not in [call.id for call in waits]:
        return _too_late(draft, command.call)
    return run, run.purse, waits


def _too_late(draft: Draft, call: str) -> Refusal:
    decided = {one.call: one for one in draft.state.decided}.get(call)
    if decided is None:
        return Refusal("not_waiting", f"call {call!r} does not wait for a budget")
    said = f"{decided.outcome} by {decided.by} at {decided.at}"
    return Refusal("already_decided", f"the budget that call {call!r} waited for was {said}")


def _amiss(budget: Budget, command: c.RaiseBudget, waits: list[Call]) -> Refusal | None:
    """Say what is wrong with the amounts that are to be added."""
    given = {
        "tokens": (command.tokens, budget.tokens_max),
        "cost_micros": (command.cost_micros, budget.cost_micros_max),
        "wall_ms": (command.wall_ms, budget.wall_ms_max),
    }
    for tool, more in command.calls.items():
        given[f"calls of {tool!r}"] = (more, budget.calls_max.get(tool))
    for what, (more, most) in given.items():
        if more < 0 or (most or 0) + more > AMOUNT_MAX:
            return Refusal(
                "invalid_amount",
                f"what is added to a budget is between 0 and {AMOUNT_MAX}; {what}: {more}",
            )
        if more and most is None:
            return Refusal("not_limited", f"the budget has no limit of {what}: nothing to raise")
    if not waits and not any(more for more, _ in given.values()):
        return Refusal("nothing_raised", "say how much is to be added, and to what")
    return None


def _from_now(draft: Draft, run: Run, budget: Budget, more_ms: int) -> int:
    """Return by how much the limit of time grows, so that there is so much of it from now on."""
    if not more_ms or budget.wall_ms_max is None:
        return 0
    over_ms = draft.now - run.started_at - budget.wall_ms_max
    return more_ms + max(0, over_ms)


def _go_on(draft: Draft, call: Call) -> None:
    """Put a call of a tool to the policy, now that there is room for it."""
    tool = draft.context.agent.tools_by_name.get(call.name)
    if tool is None:
        _deny(draft, call, f"This call was not made. There is no tool {call.name!r} any more.")
    else:
        propose(draft, _place(call), tool, call.arguments or {}, call.key)


def _deny(draft: Draft, call: Call, told: str) -> None:
    draft.add(
        e.ToolCallDenied(at=draft.now, **_place(call), name=call.name, rule=EXCEEDED, content=told)
    )


def _place(call: Call) -> dict[str, Any]:
    return {"call": call.id, "step": call.step, "ordinal": call.ordinal}
