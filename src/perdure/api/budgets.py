"""Budgets as the API shows them: what a run was short of, who gave more, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from perdure.api.shapes.budgets import Amounts, BudgetCreate, Reserved
from perdure.api.shapes.budgets import Purse as PurseShape
from perdure.api.shapes.runs import Source
from perdure.core import budget as b
from perdure.core import events as e
from perdure.core.errors import InvalidInput
from perdure.core.prices import micros_of, money
from perdure.core.spending import spend

__all__ = ["ROWS", "Kept", "budget_of", "configured", "purse_object", "spend"]

Kept = b.Purse | None
"""What a run has of its budget; None without one."""
Told = Iterator[tuple[str, dict[str, Any], Source]]


def budget_of(shape: BudgetCreate) -> b.Budget:
    """Return the budget that a request asks for."""
    return b.Budget(
        tokens_max=shape.tokens_max,
        cost_micros_max=None if shape.cost_max is None else micros_of(shape.cost_max),
        currency=shape.currency,
        wall_ms_max=shape.wall_ms_max,
        calls_max=shape.calls_max or {},
        on_breach=shape.on_breach,
        roles=shape.roles,
    )


def configured(config: Any, where: str) -> b.Budget | None:
    """Return the budget that an agent's configuration holds. Raises `InvalidInput`."""
    if config is None:
        return None
    try:
        budget = budget_of(msgspec.convert(config, BudgetCreate))
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{where}: budget cannot be read: {error}") from None
    b.check_budget(budget, None, where)
    return budget


def exceeded(timeline: Any, seq: int, event: e.BudgetExceeded) -> Told:
    """Tell of a call that did not fit."""
    short = event.short
    told: dict[str, Any] = {
        "call": event.call,
        "step": event.step,
        "short_of": short.what,
        "needed": short.needed,
        "left": short.left,
    }
    if event.ordinal is not None:
        told |= {"name": event.name, "arguments": event.arguments}
    elif short.name:
        told["model"] = short.name
    yield "budget_exceeded", told, "system"


def raised(timeline: Any, seq: int, event: e.BudgetRaised) -> Told:
    """Tell of a budget that was raised: what was added, and by whom."""
    amounts = ("call", "tokens", "cost_micros", "wall_ms", "calls", "reason")
    told = {name: getattr(event, name) for name in amounts}
    more = {name: value for name, value in told.items() if value}
    yield "budget_raised", {"by": event.by, **more}, "user"


def resent(timeline: Any, seq: int, event: e.ModelCallResent) -> Told:
    """Tell of a model that is asked again, since the node that asked it is gone."""
    yield "llm_resent", {"call": event.call, "step": timeline.step}, "system"


ROWS: Mapping[type[e.Event], tuple[Any, tuple[str, ...]]] = {
    e.BudgetExceeded: (exceeded, ("budget_exceeded",)),
    e.BudgetRaised: (raised, ("budget_raised",)),
    e.ModelCallResent: (resent, ("llm_resent",)),
}
"""The events of budgets: the function that tells one, and what it becomes in a timeline."""


def purse_object(purse: b.Purse, priced: str) -> PurseShape:
    """Return a purse as a run shows it; `priced` is the day of the prices in force."""
    budget = purse.allotted
    return PurseShape(
        currency=budget.currency,
        on_breach=budget.on_breach,
        roles=budget.roles,
        allotted=Amounts(
            tokens=budget.tokens_max,
            cost=_money(budget.cost_micros_max),
            wall_ms=budget.wall_ms_max,
            calls=budget.calls_max,
        ),
        spent=Amounts(tokens=purse.tokens, cost=money(purse.cost_micros), calls=purse.calls),
        doubtful=Reserved(tokens=purse.doubtful_tokens, cost=money(purse.doubtful_micros)),
        reserved=Reserved(tokens=b.reserved_tokens(purse), cost=money(b.reserved_micros(purse))),
        left=Amounts(
            tokens=b.tokens_left(purse),
            cost=_money(b.micros_left(purse)),
            calls={
                tool: most - purse.calls.get(tool, 0) for tool, most in budget.calls_max.items()
            },
        ),
        prices_as_of=priced,
    )


def _money(micros: int | None) -> str | None:
    return None if micros is None else money(micros)
