"""Several real nodes on one store keep every promise in trouble; `make proof` runs all of it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from perdure.testing.mutants import MUTANTS
from perdure.testing.nodes.backends import BACKENDS
from perdure.testing.nodes.evidence import HUNTED, HUNTED_IN, Evidence, Hunt
from perdure.testing.nodes.frozen import Frozen
from perdure.testing.nodes.matrix import AGAIN
from perdure.testing.nodes.netfilter import run_in_private_network
from perdure.testing.nodes.page import many_nodes
from perdure.testing.nodes.scene import Cell
from perdure.testing.nodes.takeover import Takeover
from perdure.testing.nodes.troubles import ALL
from perdure.testing.servers import ServerMissing

ERRANDS = 9


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cells in a process of their own: a nursery forks, and so does the ledger."""
    command = [sys.executable, "-m", "perdure.testing.nodes.matrix", f"--errands={ERRANDS}"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=140, check=False
    )


def check_ran(done: subprocess.CompletedProcess[str]) -> None:
    """Skip what had no server; whatever else was written is shown when it failed."""
    missing = re.search("^NOT RUN  (.*)$", done.stdout, re.MULTILINE)
    if missing:
        pytest.skip(f"no server: {missing[1]}")
    assert not done.stderr, done.stderr


def test_nodes_that_are_killed_finish_what_they_began() -> None:
    done = run("--store", "redis", "--trouble", "kill", "--show")
    check_ran(done)
    assert (done.returncode, "8 kills" in done.stdout) == (0, True), done.stdout


def test_nodes_outlive_a_partition_by_the_packet_filter() -> None:
    arguments = ["--errands=6", "--filter", "--store=redis", "--trouble=half open"]
    try:
        code = run_in_private_network("perdure.testing.nodes.matrix", arguments)
    except ServerMissing as error:
        pytest.skip(f"no server: {error}")
    assert code == 0


def test_every_trouble_is_for_stores_that_there_are() -> None:
    assert {store for trouble in ALL.values() for store in trouble.stores} == set(BACKENDS)
    assert all(trouble.what.endswith(".") for trouble in ALL.values())
    assert {*HUNTED, *HUNTED_IN} <= MUTANTS.keys()
    assert set(HUNTED_IN.values()) <= ALL.keys()
    assert len({*HUNTED, *HUNTED_IN}) >= 8


def test_whatever_is_wrong_is_told_and_shown() -> None:
    fine = Cell("redis", "kill", 36, (), 8, 8, 0, 40, 0, 0, 1.5, 5.0)
    bad = fine._replace(trouble="freeze", violations=("1 effects happened twice",))
    frozen = Frozen("redis", 1_000, {}, 5_000, 0, ("redis: round 1: stale",), 1, 1, 9.0)
    takeover = Takeover("redis", 80, 5.0, 9.5, 0.1, 0.2, ("redis: after a death 9.5 s",))
    hunts = (Hunt("no_fence", "redis", "stale", 2, 0.5), Hunt("ttl_on_token", "redis", "", 0, 0.5))
    found = Evidence((frozen,), (), (fine, bad), (takeover,), hunts, ("nats: nowhere",), 60.0)
    assert found.wrong() == [
        "redis: round 1: stale",
        f"{AGAIN} --store 'redis' --trouble 'freeze': 1 effects happened twice",
        "redis: after a death 9.5 s",
        "ttl_on_token got away on redis",
    ]
    shown = "\n".join(many_nodes(found))
    assert "| 36 runs, 1.5 s |" in shown
    assert "| **1 effects happened twice** |" in shown
    assert "Not run here: nats: nowhere" in shown
    assert "| 5.0 s, 9.5 s |" in shown
    assert "| round 2 |" in shown
    assert "| **nobody** |" in shown
