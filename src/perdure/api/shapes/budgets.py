"""Budgets: what a run may spend, what it spent, and what somebody adds to it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from perdure.api.limits import KEY_CHARS_MAX, LINE_CHARS_MAX
from perdure.api.shapes.common import Name, Shape
from perdure.core.limits import ROLES_MAX

Amount = Annotated[int, Meta(ge=0, le=10**15)]
Money = Annotated[
    str,
    Meta(
        pattern=r"^\d{1,9}(\.\d{1,6})?$",
        description="A decimal number with at most six decimals, in US dollars.",
    ),
]


class BudgetCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run may spend: what is left out has no limit.

    `cost_max` is money, `calls_max` how often each tool may be called. On a breach the run waits,
    and asks those with one of the `roles`, or fails.
    """

    tokens_max: Amount | None = None
    cost_max: Money | None = None
    currency: str = "USD"
    wall_ms_max: Amount | None = None
    calls_max: dict[str, Amount] | None = None
    on_breach: Literal["ask", "fail"] = "ask"
    roles: Annotated[tuple[Name, ...], Meta(max_length=ROLES_MAX)] = ()


class RaiseCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is added to a run's budget. With `deny` nothing is: what waits for more is given up.

    With `call` only if that one still waits. A run that waits is looked at again, also if nothing
    is added: its model may have a price by now.
    """

    call: Annotated[str, Meta(max_length=KEY_CHARS_MAX)] | None = None
    deny: bool = False
    tokens: Amount = 0
    cost: Money = "0"
    wall_ms: Amount = 0
    calls: dict[str, Amount] | None = None
    reason: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | None = None


class Amounts(Shape, frozen=True, kw_only=True):
    """Amounts of a budget; null is without limit."""

    tokens: int | None = None
    cost: str | None = None
    wall_ms: int | None = None
    calls: dict[str, int]


class Reserved(Shape, frozen=True, kw_only=True):
    """Tokens and money of open calls, or of calls of which nobody knows what they took."""

    tokens: int
    cost: str


class Purse(Shape, frozen=True, kw_only=True):
    """What a run has of its budget.

    `allotted` is with what was added; of what was `spent`, `doubtful` are worst cases of calls that
    may never have been billed. Time runs from the run's start. `prices_as_of` is the day of the
    prices that are in force.
    """

    currency: str
    on_breach: Literal["ask", "fail"]
    roles: tuple[str, ...]
    allotted: Amounts
    spent: Amounts
    doubtful: Reserved
    reserved: Reserved
    left: Amounts
    prices_as_of: str
