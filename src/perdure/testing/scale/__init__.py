"""How a large cluster behaves: hundreds of nodes and up to a million sessions in virtual time.

Of a node the real `Heartbeat`, `Recovery` and `Presence` run, over a store that is a model: rows,
and how long it takes for what. What they do to the store together is counted.

figures = run(SCENARIOS["kill-20"], Cluster(nodes=200, sessions=100_000), seed=1)
python -m perdure.testing.scale --seed 1
"""

from __future__ import annotations

from perdure.testing.scale.figures import Figures
from perdure.testing.scale.scenarios import SCENARIOS, Cluster, run
from perdure.testing.scale.store import Costs

__all__ = ["SCENARIOS", "Cluster", "Costs", "Figures", "run"]
