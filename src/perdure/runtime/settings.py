"""How a node behaves: every setting with its unit in its name."""

from __future__ import annotations

import msgspec

from perdure.api.cost import DEFAULT_PRICES, Prices
from perdure.core.limits import STRIKES_MAX


class NodeSettings(msgspec.Struct, frozen=True):
    """The settings of a node; the defaults suit one process on one machine."""

    lease_ms: int = 5_000
    scan_interval_ms: int = 5_000
    scan_batch_sessions: int = 256
    prefer_ms: int = 1_500
    """How long a due session is left to the node that should take it, where there are several."""
    activations_max: int = 512
    linger_ms: int = 1_000
    """How long a session with nothing to do stays loaded."""
    strikes_max: int = STRIKES_MAX
    """How often in a row a session's host may die, while it gets nowhere, before it is set aside.
    """
    probation_ms: int = 600_000
    """How long a session that may be what killed its host keeps others like it waiting."""
    drain_ms: int = 10_000
    """How long a drain waits for `once` calls that have begun."""
    read_batch_records: int = 500
    prices: Prices = DEFAULT_PRICES
    """What models cost, for budgets of money."""


SERVED_STRIKES_MAX = 30
"""The same on a server. It executes nothing: when it dies, it is hardly a session's fault."""
CLUSTERED = NodeSettings(scan_interval_ms=1_000)
"""The settings of a node that is not alone: it looks more often for what others left."""


def served(*, alone: bool) -> NodeSettings:
    """Return the settings of a server's node, which may be alone."""
    settings = NodeSettings() if alone else CLUSTERED
    return msgspec.structs.replace(settings, strikes_max=SERVED_STRIKES_MAX)
