"""What an acknowledgement is worth: the ladder of durability, weakest first.

`memory` goes with the process, `os` with the power, `fsynced` with the disk. `replicated(n)` is
fsynced, or held in memory by machines that do not fail together, on `n` machines before it is
acknowledged.
"""

from __future__ import annotations

import re

from perdure.core.errors import InvalidInput

Durability = str
"""`memory`, `os`, `fsynced` or `replicated(n)` with n of 2 or more."""

_LADDER = {"memory": 0, "os": 1, "fsynced": 2}
_REPLICATED = re.compile(r"replicated\(([2-9]|[1-9][0-9]{1,2})\)")


def replicated(copies: int) -> Durability:
    """Return the durability of what so many machines have: of one, it is `fsynced`."""
    return f"replicated({copies})" if copies > 1 else "fsynced"


def rung(durability: Durability) -> int:
    """Return how high a durability is on the ladder. Raises `InvalidInput` for none of ours."""
    if durability in _LADDER:
        return _LADDER[durability]
    copies = _REPLICATED.fullmatch(durability)
    if copies is None:
        raise InvalidInput(
            f"{durability!r} is no durability: expected memory, os, fsynced or replicated(n) with "
            "n from 2 to 999"
        )
    return _LADDER["fsynced"] + int(copies[1]) - 1


def suffices(given: Durability, wanted: Durability) -> bool:
    """Say whether a store with one durability may be used where another one is demanded."""
    return rung(given) >= rung(wanted)
