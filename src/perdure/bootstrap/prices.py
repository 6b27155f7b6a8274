"""What models cost here: the list that comes with perdure, and the file that this machine names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perdure.api.cost import DEFAULT_PRICES, Prices
from perdure.api.price_files import read_prices
from perdure.core.errors import InvalidInput

PRICES_VARIABLE = "PERDURE_PRICES"


def prices_of(environment: Mapping[str, str]) -> Prices:
    """Return the prices in force. Raises `InvalidInput` for a file that cannot be read."""
    path = environment.get(PRICES_VARIABLE)
    if not path:
        return DEFAULT_PRICES
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{PRICES_VARIABLE}: the prices {path} cannot be read: {error.strerror}"
        ) from None
    return read_prices(text, path)
