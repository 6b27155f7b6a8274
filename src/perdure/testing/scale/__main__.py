"""The command: `python -m perdure.testing.scale --seed N`, and `--unshared` for the storm."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from perdure.testing.scale.figures import HEADER
from perdure.testing.scale.scenarios import SCENARIOS, Cluster, run
from perdure.testing.scale.store import Costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; 0 when every session that was lost is run again."""
    parser = argparse.ArgumentParser(prog="python -m perdure.testing.scale")
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS], help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--sessions", type=int, default=20_000, help="active ones")
    parser.add_argument("--wakes", type=int, default=0, help="parked sessions due each second")
    parser.add_argument("--limit", type=int, default=900, help="seconds of virtual time at most")
    parser.add_argument("--unshared", action="store_true", help="whoever sees a session claims it")
    parser.add_argument("--costs", type=Path, help="a JSON file of a store's costs")
    options = parser.parse_args(arguments)
    costs = Costs()
    if options.costs:
        costs = msgspec.json.decode(options.costs.read_bytes(), type=Costs)
    cluster = Cluster(
        nodes=options.nodes,
        sessions=options.sessions,
        wakes_s=options.wakes,
        costs=costs,
        limit_s=options.limit,
    )
    if options.unshared:
        cluster = replace(cluster, policy=replace(cluster.policy, shared=False))
    print(f"seed {options.seed}, {options.nodes} nodes, {options.sessions} sessions, {costs}")
    print(HEADER)
    good = True
    for name in [options.scenario] if options.scenario else SCENARIOS:
        begun_s = time.monotonic()
        figures = run(name, cluster, options.seed)
        good = good and figures.recovered == figures.lost
        print(figures.told(), f"  ({time.monotonic() - begun_s:.0f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
