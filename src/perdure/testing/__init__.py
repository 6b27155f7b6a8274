"""Shipped to users: fakes, faults and suites for testing agents and adapters.

    from perdure.testing import FakeClock, ScriptedModel, StubProvider, asks, call, says

Each name is imported when it is first used, so that `python -m perdure.testing.stub_provider` and
its like start with their own module only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.adapters.models.scripted import ScriptedModel, asks, call, says
    from perdure.testing.clock import FakeClock
    from perdure.testing.effects import Effects, check_effects
    from perdure.testing.stub_provider import StubProvider

__all__ = [
    "Effects",
    "FakeClock",
    "ScriptedModel",
    "StubProvider",
    "asks",
    "call",
    "check_effects",
    "says",
]

_HOMES = {
    "Effects": "perdure.testing.effects",
    "FakeClock": "perdure.testing.clock",
    "ScriptedModel": "perdure.adapters.models.scripted",
    "StubProvider": "perdure.testing.stub_provider",
    "asks": "perdure.adapters.models.scripted",
    "call": "perdure.adapters.models.scripted",
    "check_effects": "perdure.testing.effects",
    "says": "perdure.adapters.models.scripted",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
