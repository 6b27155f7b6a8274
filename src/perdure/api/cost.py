"""What models cost: tokens times prices, in decimals. What has no price is listed, never guessed.

A model is found by the longest known name that its id holds: in any case, after a provider's prefix
(`/`, `:`, `.`), and before a date, a version (`-v1`), or a mark (`@`, `:`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from perdure.api.prices import AS_OF, OUTPUT_TOKENS_MAX, PRICES
from perdure.api.shapes.runs import Cost, Unpriced
from perdure.core.errors import InvalidInput
from perdure.core.messages import Usage
from perdure.core.prices import BILLION, Rate

MILLION = Decimal(1_000_000)
SIXTH = Decimal("0.000001")
WRITE_FACTOR = Decimal("1.25")
_BEFORE = r"(?:^|[/:.])"
_AFTER = r"(?:-\d{8})?(?:$|[@:]|-v\d)"


class Price(NamedTuple):
    """US dollars for a million tokens. Without a price for reading a cache, input's counts.

    `output_tokens_max` is how long a reply of the model may be, if that is documented.
    """

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    output_tokens_max: int | None = None

    def of(self, usage: Usage) -> Decimal:
        """Return what this usage costs, in dollars."""
        fresh = max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens)
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input * WRITE_FACTOR if self.cache_write is None else self.cache_write
        whole = (
            fresh * self.input
            + usage.cache_read_tokens * read
            + usage.cache_write_tokens * write
            + usage.output_tokens * self.output
        )
        return whole / MILLION

    def rate(self) -> Rate:
        """Return the same in whole numbers, for the core."""
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input * WRITE_FACTOR if self.cache_write is None else self.cache_write
        return Rate(
            input=int(self.input * BILLION),
            output=int(self.output * BILLION),
            cache_read=int(read * BILLION),
            cache_write=int(write * BILLION),
            output_tokens_max=self.output_tokens_max,
        )


class Prices:
    """A price list: model name -> price. `as_of` is the day on which they were valid."""

    def __init__(self, prices: Mapping[str, Price], as_of: str = "") -> None:
        self.as_of = as_of
        self._prices = {name.lower(): price for name, price in prices.items()}
        names = sorted(self._prices, key=lambda name: (-len(name), name))
        self._patterns = [(re.compile(_BEFORE + re.escape(one) + _AFTER), one) for one in names]
        self.find = lru_cache(maxsize=1_000)(self._find)

    def __repr__(self) -> str:
        return f"<Prices of {self.as_of or 'no day'}>"

    def with_overrides(self, prices: Mapping[str, Price], as_of: str = "") -> Prices:
        """Return this list with other prices for some models, or with further models."""
        merged = {**self._prices, **{name.lower(): one for name, one in prices.items()}}
        return Prices(merged, as_of or self.as_of)

    def rate(self, model: str) -> Rate | None:
        """Return what a model costs, for the core; None if it is not in the list."""
        found = self.find(model)
        return None if found is None else found.rate()

    def _find(self, model: str) -> Price | None:
        lowered = model.lower()
        for pattern, name in self._patterns:
            if pattern.search(lowered):
                return self._prices[name]
        return None


def price(
    input: str,
    output: str,
    cache_read: str | None = None,
    cache_write: str | None = None,
    *,
    output_tokens_max: int | None = None,
) -> Price:
    """Return a price from decimal numbers as text; raise `InvalidInput` if one is none."""
    given = (input, output, cache_read, cache_write)
    if not all(one is None or re.fullmatch(r"\d{1,6}(\.\d{1,9})?", one) for one in given):
        raise InvalidInput(f"prices are decimal numbers, dollars for a million tokens; not {given}")
    numbers = [None if one is None else Decimal(one) for one in given]
    assert numbers[0] is not None
    assert numbers[1] is not None
    return Price(numbers[0], numbers[1], numbers[2], numbers[3], output_tokens_max)


DEFAULT_PRICES = Prices(
    {
        name: price(*row, output_tokens_max=OUTPUT_TOKENS_MAX.get(name))
        for name, row in PRICES.items()
    },
    AS_OF,
)


def cost_of(use: Iterable[tuple[str, Usage]], prices: Prices = DEFAULT_PRICES) -> Cost:
    """Return what models cost that were used like this, rounded to a millionth of a dollar."""
    total = Decimal(0)
    unpriced: dict[str, tuple[int, int]] = {}
    for model, usage in use:
        found = prices.find(model)
        if found is not None:
            total += found.of(usage)
        elif usage.input_tokens or usage.output_tokens:
            read, written = unpriced.get(model, (0, 0))
            unpriced[model] = (read + usage.input_tokens, written + usage.output_tokens)
    return _cost(total, unpriced)


def sum_of(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs: of a run and its sub-agents, of all runs of an agent."""
    total = Decimal(0)
    unpriced: dict[str, tuple[int, int]] = {}
    for cost in costs:
        total += Decimal(cost.usd)
        for one in cost.unpriced:
            read, written = unpriced.get(one.model, (0, 0))
            unpriced[one.model] = (read + one.input_tokens, written + one.output_tokens)
    return _cost(total, unpriced)


def _cost(total: Decimal, unpriced: Mapping[str, tuple[int, int]]) -> Cost:
    listed = (
        Unpriced(model=model, input_tokens=read, output_tokens=written)
        for model, (read, written) in sorted(unpriced.items())
    )
    return Cost(usd=f"{total.quantize(SIXTH):f}", unpriced=tuple(listed))
