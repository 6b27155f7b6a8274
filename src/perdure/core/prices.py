"""What a call of a model costs, as the core is told it: data, with the day it was valid.

A rate is in billionths of a millionth of a dollar for a token, so that every price that can be
written with nine decimals is a whole number, and every sum exact.
"""

from __future__ import annotations

import re
from typing import Protocol

import msgspec

from perdure.core.errors import InvalidInput
from perdure.core.messages import Usage

BILLION = 10**9
MONEY = re.compile(r"(\d{1,9})(?:\.(\d{1,6}))?")


class Rate(msgspec.Struct, frozen=True, gc=False):
    """What a token of a model costs; `output_tokens_max` is how long its replies may be at most.

    That is None where it is not documented.
    """

    input: int
    output: int
    cache_read: int
    cache_write: int
    output_tokens_max: int | None = None


class PriceList(Protocol):
    """Prices in force. `as_of` is the day they were valid, as `2026-11-20`."""

    as_of: str

    def rate(self, model: str) -> Rate | None:
        """Return what a model costs; None if nobody knows."""
        ...


class NoPrices:
    """A price list with nothing in it."""

    as_of = ""

    def rate(self, model: str) -> Rate | None:
        """Know no price."""
        return None


NO_PRICES = NoPrices()


def cost_micros(rate: Rate, usage: Usage) -> int:
    """Return what this usage costs, in millionths, rounded up."""
    fresh = max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens)
    whole = (
        fresh * rate.input
        + usage.cache_read_tokens * rate.cache_read
        + usage.cache_write_tokens * rate.cache_write
        + usage.output_tokens * rate.output
    )
    return -(-whole // BILLION)


def worst_micros(rate: Rate, input_tokens: int, output_tokens: int) -> int:
    """Return the most that so many tokens can cost, in millionths, rounded up."""
    dearest = max(rate.input, rate.cache_read, rate.cache_write)
    return -(-(input_tokens * dearest + output_tokens * rate.output) // BILLION)


def money(micros: int) -> str:
    """Return millionths as a decimal number."""
    sign = "-" if micros < 0 else ""
    return f"{sign}{abs(micros) // 10**6}.{abs(micros) % 10**6:06d}"


def micros_of(text: str) -> int:
    """Return a decimal number with at most six decimals as millionths. Raises `InvalidInput`."""
    found = MONEY.fullmatch(text)
    if found is None:
        raise InvalidInput(
            f"an amount of money is a decimal number with at most six decimals, not {text!r}"
        )
    return int(found[1]) * 10**6 + int((found[2] or "").ljust(6, "0"))
