"""A server's own prices, from a file: for models that the list does not have, or has otherwise.

as_of = "2026-11-22"

[models.my-model]
input = "0.5"                # dollars for a million tokens, as text
output = "2"
cache_read = "0.05"          # may be left out, as may cache_write
output_tokens_max = 32000    # how long a reply may be, for budgets
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from perdure.api.cost import DEFAULT_PRICES, Prices, price
from perdure.core.errors import InvalidInput


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input: str
    output: str
    cache_read: str | None = None
    cache_write: str | None = None
    output_tokens_max: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    as_of: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    models: dict[str, _Row]


def read_prices(text: bytes, where: str, known: Prices = DEFAULT_PRICES) -> Prices:
    """Return the known prices with those of a file, in TOML. Raises `InvalidInput`."""
    try:
        file = msgspec.toml.decode(text, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise InvalidInput(f"{where}: this is no price list: {error}") from None
    own = {}
    for name, row in file.models.items():
        amounts = (row.input, row.output, row.cache_read, row.cache_write)
        try:
            own[name] = price(*amounts, output_tokens_max=row.output_tokens_max)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: models.{name}: {error}") from None
    return known.with_overrides(own, file.as_of)
