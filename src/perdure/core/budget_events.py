"""The facts of budgets: what did not fit, who added to it, and what may have been paid twice.

See `events` for what all events have in common.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core.agent import Effect
from perdure.core.budget import Shortfall
from perdure.core.call_events import Event


class BudgetExceeded(Event, frozen=True, tag="budget_exceeded"):
    """A call of a model or a tool does not fit into the run's budget: somebody is asked for more.

    A call of a model waits under an id of its own. A call of a tool waits itself, at its place in
    the reply, with its `arguments`, and has not been put to the policy yet.
    """

    call: str
    step: int
    short: Shortfall
    ordinal: int | None = None
    name: str = ""
    effect: Effect = "read"
    key: str = ""
    arguments: dict[str, Any] | None = None
    version: str = ""


class BudgetRaised(Event, frozen=True, tag="budget_raised"):
    """Somebody added to what the run may spend; `call` is the model call that waited for it.

    `wall_ms` is what the limit grew by: time that is over already is made good.
    """

    call: str | None = None
    tokens: int = 0
    cost_micros: int = 0
    wall_ms: int = 0
    calls: dict[str, int] = msgspec.field(default_factory=dict)
    by: str = ""
    reason: str = ""


class ModelCallResent(Event, frozen=True, tag="model_call_resent"):
    """A model may have been asked by a node that is gone, and is asked again.

    What was reserved counts as spent, in doubt, and is reserved once more.
    """

    call: str
