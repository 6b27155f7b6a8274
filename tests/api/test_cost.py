"""What models cost: in decimals, by the longest name that fits, and never a guess."""

from __future__ import annotations

import msgspec
import pytest

from perdure.api.cost import DEFAULT_PRICES, Prices, cost_of, price, sum_of
from perdure.api.prices import OUTPUT_TOKENS_MAX, PRICES
from perdure.api.shapes import Cost, Unpriced
from perdure.core.errors import InvalidInput
from perdure.core.messages import Usage

LIST = Prices({"m": price("3", "15", "0.3"), "m-large": price("10", "50", "1", "20")})


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(1_000_000, 0), "3.000000"),
        (Usage(0, 1_000_000), "15.000000"),
        (Usage(1, 0), "0.000003"),
        (Usage(1_000, 100, 1_000, 0), "0.001800"),
        (Usage(1_000, 0, 0, 1_000), "0.003750"),
        (Usage(1_000, 0, 400, 100), "0.001995"),
        (Usage(0, 0, 10, 0), "0.000003"),
        (Usage(), "0.000000"),
    ],
)
def test_tokens_times_prices(usage: Usage, usd: str) -> None:
    assert cost_of([("m", usage)], LIST) == Cost(usd=usd)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("m", "m"),
        ("M", "m"),
        ("anthropic/m", "m"),
        ("anthropic:m", "m"),
        ("eu.anthropic.m-v1:0", "m"),
        ("m-20260101", "m"),
        ("m@latest", "m"),
        ("m:free", "m"),
        ("anthropic/m-large-20260101", "m-large"),
        ("m-larger", None),
        ("m-2", None),
        ("gpt-m", None),
        ("", None),
    ],
)
def test_a_model_is_found_by_its_name(model: str, found: str | None) -> None:
    assert LIST.find(model) == (LIST.find(found) if found else None)


def test_what_has_no_price_is_listed_and_added_up() -> None:
    use = [("x", Usage(5, 6)), ("m", Usage(1_000_000, 0)), ("x", Usage(1, 1)), ("y", Usage())]
    unpriced = Unpriced(model="x", input_tokens=6, output_tokens=7)
    assert cost_of(use, LIST) == Cost(usd="3.000000", unpriced=(unpriced,))


def test_costs_add_up() -> None:
    unpriced = Unpriced(model="x", input_tokens=1, output_tokens=2)
    twice = Unpriced(model="x", input_tokens=2, output_tokens=4)
    costs = [Cost(usd="0.000001", unpriced=(unpriced,)), Cost(usd="1.5", unpriced=(unpriced,))]
    assert sum_of(costs) == Cost(usd="1.500001", unpriced=(twice,))
    assert msgspec.json.encode(sum_of([])) == b'{"usd":"0.000000","unpriced":[]}'


def test_a_server_may_have_prices_of_its_own() -> None:
    mine = LIST.with_overrides({"M": price("1", "1"), "own": price("2", "2")})
    assert (
        cost_of([("m", Usage(1_000_000, 0)), ("own", Usage(0, 1_000_000))], mine).usd == "3.000000"
    )
    assert mine.find("m-large") == LIST.find("m-large")


@pytest.mark.parametrize("model", PRICES)
def test_every_model_of_the_list_is_found_as_itself(model: str) -> None:
    expected = price(*PRICES[model], output_tokens_max=OUTPUT_TOKENS_MAX.get(model))
    assert DEFAULT_PRICES.find(model) == expected


@pytest.mark.parametrize("wrong", ["", "-1", "1e3", "x", "NaN", "1,5"])
def test_a_price_is_a_decimal_number(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="dollars for a million tokens"):
        price("1", wrong)
