"""A purse as the command line shows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.api.budgets import purse_object
from perdure.bootstrap import prices_of
from perdure.cli.output import plain
from perdure.core.budget import Purse


def shown(purse: Purse | None) -> dict[str, Any] | None:
    """Return a purse of a store as a server shows it."""
    if purse is None:
        return None
    as_of = prices_of(os.environ).as_of
    found: dict[str, Any] = msgspec.to_builtins(purse_object(purse, as_of))
    return found


def described(purse: Mapping[str, Any]) -> str:
    """Return a purse for people, one thing in a line."""
    allotted, spent, reserved = purse["allotted"], purse["spent"], purse["reserved"]
    lines = []
    for name, unit in (("tokens", "tokens"), ("cost", purse["currency"])):
        most = allotted[name]
        of = "no limit" if most is None else f"{purse['left'][name]} left of {most}"
        line = f"{name:<9} {spent[name]} {unit} spent, {reserved[name]} reserved, {of}"
        doubtful = purse["doubtful"][name]
        in_doubt = f"; {doubtful} of what is spent may not have been billed"
        lines.append(line + (in_doubt if float(doubtful) else ""))
    if allotted["wall_ms"] is not None:
        lines.append(f"{'wall':<9} {allotted['wall_ms'] / 1000:g} s from its start")
    for tool, calls in {**dict.fromkeys(allotted["calls"], 0), **spent["calls"]}.items():
        most = allotted["calls"].get(tool)
        of = "no limit" if most is None else f"of {most}"
        lines.append(f"{'calls':<9} {plain(tool)}: {calls}, {of}")
    if purse["roles"]:
        lines.append(f"{'raised by':<9} {plain(', '.join(purse['roles']))}")
    return "\n".join([*lines, f"{'prices':<9} of {purse['prices_as_of'] or 'no day'}"])
