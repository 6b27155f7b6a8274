"""A budget is what a run may spend, and its purse what of that is spent and spoken for.

Both are data. A purse is folded from the log by `spending`; `reserving` decides what fits into it.
Money is in millionths of the currency, time in milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec.structs import replace

from perdure.core.errors import InvalidInput

CURRENCY = "USD"
"""The only currency that prices are known in."""
AMOUNT_MAX = 10**15
"""No amount is larger, so that sums stay exact in every JSON reader."""
TOOLS_MAX = 128

Kind = Literal["tokens", "cost", "wall", "calls", "unpriced", "unbounded"]
"""What a run is short of; `unpriced` and `unbounded` are calls whose worst case nobody knows."""


class Budget(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a run may spend before somebody is asked for more; None is without limit.

    `tokens_max` are tokens of models, in and out; `cost_micros_max` is what models cost, in
    millionths of the `currency`; `wall_ms_max` is the time since the run began, and `calls_max`
    how often a tool may be called: tool -> calls. On a breach the run parks and asks those with
    one of the `roles` (anybody, if none is named), or fails.
    """

    tokens_max: int | None = None
    cost_micros_max: int | None = None
    currency: str = CURRENCY
    wall_ms_max: int | None = None
    calls_max: dict[str, int] = {}
    on_breach: Literal["ask", "fail"] = "ask"
    roles: tuple[str, ...] = ()


class Reserve(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The worst case of one call of a model: so many tokens, which cost so many millionths.

    The cost is that of the `model` by the prices of the day `priced`; None where it has no price.
    """

    tokens: int
    cost_micros: int | None = None
    model: str = ""
    priced: str = ""


class Purse(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a run has of its budget: `allotted`, with what was added, spent, and spoken for.

    `reserved` are the worst cases of open calls, by the call. Of what was spent, `doubtful_tokens`
    and `doubtful_micros` are worst cases that may never have been billed. `calls` are the calls of
    tools; `breaches` counts how often somebody had to be asked.
    """

    allotted: Budget
    tokens: int = 0
    cost_micros: int = 0
    doubtful_tokens: int = 0
    doubtful_micros: int = 0
    reserved: dict[str, Reserve] = {}
    calls: dict[str, int] = {}
    breaches: int = 0


class Shortfall(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a budget lacks: `needed` are as many as the next call may take, `left` what there is.

    `name` is the tool or the model that is to be called.
    """

    what: Kind
    needed: int
    left: int
    name: str = ""


def tokens_left(purse: Purse) -> int | None:
    """Return how many tokens are neither spent nor spoken for; None if there is no limit."""
    most = purse.allotted.tokens_max
    return None if most is None else most - purse.tokens - reserved_tokens(purse)


def micros_left(purse: Purse) -> int | None:
    """Return how much money is neither spent nor spoken for; None if there is no limit."""
    most = purse.allotted.cost_micros_max
    return None if most is None else most - purse.cost_micros - reserved_micros(purse)


def reserved_tokens(purse: Purse) -> int:
    """Return how many tokens are spoken for."""
    return sum(one.tokens for one in purse.reserved.values())


def reserved_micros(purse: Purse) -> int:
    """Return how much money is spoken for."""
    return sum(one.cost_micros or 0 for one in purse.reserved.values())


def raised(
    budget: Budget, tokens: int, cost_micros: int, wall_ms: int, calls: dict[str, int]
) -> Budget:
    """Return a budget with more of what it limits; what it does not limit stays without limit."""
    more = {name: most + calls.get(name, 0) for name, most in budget.calls_max.items()}
    return replace(
        budget,
        tokens_max=_plus(budget.tokens_max, tokens),
        cost_micros_max=_plus(budget.cost_micros_max, cost_micros),
        wall_ms_max=_plus(budget.wall_ms_max, wall_ms),
        calls_max=more,
    )


def tightest(one: Budget | None, other: Budget | None) -> Budget | None:
    """Return the budget that keeps both: the smaller amounts, and it fails if one of them does.

    The roles are those of the first that names some.
    """
    if one is None or other is None:
        return one or other
    calls = dict(one.calls_max)
    for name, most in other.calls_max.items():
        calls[name] = min(most, calls.get(name, most))
    return replace(
        one,
        tokens_max=_smaller(one.tokens_max, other.tokens_max),
        cost_micros_max=_smaller(one.cost_micros_max, other.cost_micros_max),
        wall_ms_max=_smaller(one.wall_ms_max, other.wall_ms_max),
        calls_max=calls,
        on_breach="fail" if "fail" in (one.on_breach, other.on_breach) else "ask",
        roles=one.roles or other.roles,
    )


def check_budget(budget: Budget, tools: Collection[str] | None, where: str) -> None:
    """Raise `InvalidInput` for a budget that cannot be kept.

    `tools` are those that can be counted, if they are known.
    """
    if budget.currency != CURRENCY:
        raise InvalidInput(
            f"{where}: budget.currency is {budget.currency!r}; prices are known in {CURRENCY} "
            f"alone: leave it out, or give the amount in {CURRENCY}"
        )
    for name in ("tokens_max", "cost_micros_max", "wall_ms_max"):
        check_amount(getattr(budget, name), f"{where}: budget.{name}")
    if len(budget.calls_max) > TOOLS_MAX:
        raise InvalidInput(f"{where}: budget.calls_max names at most {TOOLS_MAX} tools")
    for tool, most in budget.calls_max.items():
        check_amount(most, f"{where}: budget.calls_max[{tool!r}]")
        if tools is not None and tool not in tools:
            known = ", ".join(sorted(tools)) or "none"
            raise InvalidInput(
                f"{where}: budget.calls_max names {tool!r}, which is no tool whose calls can be "
                f"counted; those are: {known}"
            )


def check_amount(amount: int | None, what: str) -> None:
    """Raise `InvalidInput` for an amount that is negative or beyond all reason."""
    if amount is not None and not 0 <= amount <= AMOUNT_MAX:
        raise InvalidInput(f"{what} is between 0 and {AMOUNT_MAX}, not {amount}")


def _plus(most: int | None, more: int) -> int | None:
    return None if most is None else most + more


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)
