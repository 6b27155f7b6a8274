"""Several real nodes on one store keep every promise in trouble; `make proof` runs all of it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from perdure.testing.mutants import MUTANTS
from perdure.testing.nodes.backends import BACKENDS
from perdure.testing.nodes.evidence import HUNTED, HUNTED_IN
from perdure.testing.nodes.netfilter import run_in_private_network
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
