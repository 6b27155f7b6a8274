"""A file with prices: what is in it comes first, and what is wrong with it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.api.price_files import read_prices
from perdure.bootstrap import prices_of
from perdure.core.errors import InvalidInput

GOOD = b"""
as_of = "2026-12-01"
[models.mine]
input = "0.5"
output = "2"
output_tokens_max = 32000
[models."gpt-5"]
input = "7"
output = "8"
"""


def test_own_prices_come_first_and_the_others_stay() -> None:
    prices = read_prices(GOOD, "prices.toml")
    mine, other = prices.rate("mine"), prices.rate("openai:gpt-5")
    assert mine is not None
    assert other is not None
    assert (mine.input, mine.output_tokens_max) == (500_000_000, 32_000)
    assert other.input == 7_000_000_000
    assert prices.rate("claude-opus-4-5") is not None
    assert (prices.as_of, repr(prices)) == ("2026-12-01", "<Prices of 2026-12-01>")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"[", "prices.toml: this is no price list"),
        (b"\xff", "this is no price list"),
        (b'as_of = "today"\nmodels = {}', "as_of"),
        (b"models = {}", "as_of"),
        (GOOD.replace(b'"0.5"', b"0.5"), "Expected `str`"),
        (GOOD.replace(b'"0.5"', b'"-1"'), "models.mine: prices are decimal numbers"),
        (GOOD.replace(b"output_tokens_max", b"max_output"), "max_output"),
        (GOOD.replace(b"32000", b"0"), "output_tokens_max"),
    ],
)
def test_a_file_that_is_no_price_list_is_refused(text: bytes, wrong: str) -> None:
    with pytest.raises(InvalidInput, match=wrong):
        read_prices(text, "prices.toml")


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    with pytest.raises(InvalidInput, match="PERDURE_PRICES: .* cannot be read"):
        prices_of({"PERDURE_PRICES": str(path)})
    path.write_bytes(GOOD)
    assert prices_of({"PERDURE_PRICES": str(path)}).rate("mine") is not None
    assert prices_of({}).rate("mine") is None
