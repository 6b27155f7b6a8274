"""What fits into a budget: the worst case is reserved before a call, or somebody is asked for more.

A breach is asked about once for each call that does not fit. When the budget is raised, the run
goes on at exactly the step where it stopped, and what does not fit still is asked about again.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core import ids
from perdure.core.agent import ToolSpec
from perdure.core.budget import (
    Budget,
    Purse,
    Reserve,
    Shortfall,
    micros_left,
    tightest,
    tokens_left,
)
from perdure.core.decision import Draft, Refusal
from perdure.core.limits import clip
from perdure.core.measure import PROMPT_FRAME_TOKENS, input_tokens_max
from perdure.core.messages import Usage
from perdure.core.prices import cost_micros, money, worst_micros
from perdure.core.state import Run

EXCEEDED = "budget_exceeded"
"""The code and the rule by which a run fails, or a call is denied, that its budget does not hold.
"""
_REFUSED = re.compile(r"\b(?:429|503|529)\b|overloaded|service ?unavailable", re.IGNORECASE)
_NEVER_ASKED = frozenset({"rate_limited", "missing_api_key", "model_differs"})
_TOO_LONG = frozenset({"reply_too_large", "invalid_reply", "unexpected_encoding"})


def budget_of(draft: Draft, message: c.SendMessage) -> Budget | None:
    """Return what a run may spend that a message asks for; a run that goes on has what is given."""
    before = draft.state.run
    if message.retry_of is not None and before is not None and before.id == message.retry_of:
        return None if before.purse is None else before.purse.allotted
    return tightest(draft.context.agent.spec.budget, message.budget)


def reserve(draft: Draft, run: Run, *, compacting: bool = False) -> Reserve | Literal[False] | None:
    """Return what to reserve for a call of a model, None for nothing, False if it does not fit.

    Then the run waits for somebody, or has failed.
    """
    purse = run.purse
    if purse is None:
        return None
    worst = _worst_case(draft, run, purse, compacting=compacting)
    if not isinstance(worst, Shortfall):
        return worst
    if purse.allotted.on_breach == "fail":
        fail(draft, in_words(worst, purse))
        return False
    step = run.step if run.retries else run.step + 1
    draft.add(
        e.BudgetExceeded(
            at=draft.now,
            call=ids.budget_call(run.number, step, purse.breaches + 1),
            step=step,
            short=worst,
        )
    )
    return False


def _worst_case(
    draft: Draft, run: Run, purse: Purse, *, compacting: bool
) -> Reserve | Shortfall | None:
    """Return the most that the next call of a model can take, or what it is short of."""
    budget, context = purse.allotted, draft.context
    elapsed_ms = draft.now - run.started_at
    if budget.wall_ms_max is not None and elapsed_ms >= budget.wall_ms_max:
        return Shortfall("wall", elapsed_ms - budget.wall_ms_max + 1, 0)
    if budget.tokens_max is None and budget.cost_micros_max is None:
        return None
    spec = context.agent.spec
    rate = context.prices.rate(spec.model)
    if rate is None and budget.cost_micros_max is not None:
        return Shortfall("unpriced", 0, micros_left(purse) or 0, spec.model)
    reply_max = spec.max_tokens or (None if rate is None else rate.output_tokens_max)
    if reply_max is None:
        return Shortfall("unbounded", 0, tokens_left(purse) or 0, spec.model)
    shown_max = input_tokens_max(draft.state, spec, context.agent.digest, context.gate.version) + (
        PROMPT_FRAME_TOKENS if compacting else 0
    )
    tokens = shown_max + reply_max
    left = tokens_left(purse)
    if left is not None and tokens > left:
        return Shortfall("tokens", tokens, left, spec.model)
    if rate is None:
        return Reserve(tokens, None, spec.model)
    cost, left = worst_micros(rate, shown_max, reply_max), micros_left(purse)
    if left is not None and cost > left:
        return Shortfall("cost", cost, left, spec.model)
    return Reserve(tokens, cost, spec.model, context.prices.as_of)


def hold(
    draft: Draft, place: dict[str, Any], tool: ToolSpec, arguments: dict[str, Any], key: str
) -> Shortfall | None:
    """Let a call of a tool wait, or deny it, if it is one more than the budget has calls of it."""
    purse = None if draft.state.run is None else draft.state.run.purse
    short = None if purse is None else _short_of_calls(draft, purse, tool.name)
    if purse is None or short is None or tool.builtin is not None:
        return None
    if purse.allotted.on_breach == "fail":
        told = f"This call was not made: {in_words(short, purse)}."
        draft.add(
            e.ToolCallDenied(at=draft.now, **place, name=tool.name, rule=EXCEEDED, content=told)
        )
        return short
    draft.add(
        e.BudgetExceeded(
            at=draft.now,
            **place,
            short=short,
            name=tool.name,
            effect=tool.effect,
            key=key,
            arguments=arguments,
            version=tool.version,
        )
    )
    return short


def _short_of_calls(draft: Draft, purse: Purse, tool: str) -> Shortfall | None:
    """Return that there is no call of a tool left: those that wait for approval are spoken for."""
    most = purse.allotted.calls_max.get(tool)
    if most is None:
        return None
    pending = sum(
        call.status == "pending" and call.name == tool for call in draft.state.calls.values()
    )
    left = most - purse.calls.get(tool, 0) - pending
    return Shortfall("calls", 1, left, tool) if left < 1 else None


def fits(draft: Draft, tool: str) -> bool:
    """Say whether the budget has a call of a tool left."""
    purse = None if draft.state.run is None else draft.state.run.purse
    return purse is None or _short_of_calls(draft, purse, tool) is None


def fail(draft: Draft, why: str, by: str = "") -> None:
    """End the run for want of a budget."""
    run = draft.state.run
    assert run is not None
    draft.close_calls(f"Given up: {why}.")
    message = f"{why}; {by} gave no more" if by else why
    draft.add(
        e.RunFailed(
            at=draft.now, run=run.id, error_class="policy", code=EXCEEDED, message=clip(message)
        )
    )


def resend(draft: Draft, command: c.ResendModelCall) -> Refusal | None:
    """Ask a model again that may have been asked by a node that is gone: it may bill both."""
    call = draft.call(command.call, ("model", "compaction"), "intended")
    if isinstance(call, Refusal):
        return call
    run = draft.state.run
    purse = None if run is None else run.purse
    reserved = None if purse is None else purse.reserved.get(call.id)
    if run is None or purse is None or reserved is None:
        return Refusal("not_reserved", f"nothing is reserved for call {call.id!r}")
    tokens, micros = tokens_left(purse), micros_left(purse)
    if (tokens is None or reserved.tokens <= tokens) and (
        micros is None or (reserved.cost_micros or 0) <= micros
    ):
        draft.add(e.ModelCallResent(at=draft.now, call=call.id))
        return None
    told: Any = {
        "error_class": "transient",
        "code": "node_lost",
        "message": "the node that asked the model is gone, and the budget does not hold twice",
        "doubtful": True,
    }
    if call.kind == "compaction":
        draft.add(e.CompactionFailed(at=draft.now, call=call.id, **told))
        return None
    draft.add(e.ModelCallFailed(at=draft.now, call=call.id, **told))
    attempt = run.retries + 2
    again = ids.backoff_call(run.number, run.step, attempt)
    draft.add(
        e.RetryScheduled(at=draft.now, call=again, attempt=attempt, delay_ms=0, due_at=draft.now)
    )
    return None


def priced(draft: Draft, call: str, model: str | None, usage: Usage) -> int | None:
    """Return what a call cost, in millionths; None without a budget, or a price."""
    purse = None if draft.state.run is None else draft.state.run.purse
    if purse is None:
        return None
    reserved = purse.reserved.get(call)
    asked = draft.context.agent.spec.model if reserved is None else reserved.model
    prices = draft.context.prices
    rate = (prices.rate(model) if model else None) or prices.rate(asked)
    return None if rate is None else cost_micros(rate, usage)


def may_be_billed(draft: Draft, failed: c.ReportModelError) -> bool:
    """Say whether a provider may bill a call that failed; what it refused, it does not bill."""
    purse = None if draft.state.run is None else draft.state.run.purse
    if purse is None or failed.call not in purse.reserved:
        return False
    if failed.code in _TOO_LONG:
        return True
    if failed.code in _NEVER_ASKED or failed.error_class in ("validation", "policy"):
        return False
    return failed.code != "upstream_unavailable" or not _REFUSED.search(failed.message)


def in_words(short: Shortfall, purse: Purse) -> str:
    """Return what a budget lacks, in a sentence without its end."""
    match short.what:
        case "tokens":
            said = f"the next call may take {short.needed} tokens, and {short.left} are left"
        case "cost":
            unit = purse.allotted.currency
            said = (
                f"the next call may cost {money(short.needed)} {unit}, and "
                f"{money(short.left)} is left"
            )
        case "wall":
            said = f"its time was over {short.needed} ms ago"
        case "calls":
            said = f"there is no call of {short.name!r} left"
        case "unpriced":
            said = (
                f"the model {short.name!r} has no price, and the budget is of money: give the "
                "server its price"
            )
        case _:
            said = (
                f"nobody knows how long a reply of {short.name!r} can be: set the agent's "
                "max_tokens"
            )
    return f"the budget does not suffice: {said}"
