"""A large cluster in virtual time: claims, scans and heartbeats stay bounded, and why they do."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.testing.scale import SCENARIOS, Cluster, Costs, run
from perdure.testing.scale.__main__ import main

CLUSTER = Cluster(nodes=20, sessions=2_000, limit_s=120)
BEATS_S = 20 * 3 / 5
TAKEOVER_MS = 5_000 + 2_000


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "idle"])
def test_every_lost_session_goes_on_and_is_claimed_about_once(name: str) -> None:
    figures = run(name, CLUSTER, seed=1)
    assert figures.recovered == figures.lost > 0
    assert figures.claims <= 1.15 * figures.lost
    assert figures.renewals_peak_s <= 3 * BEATS_S
    assert figures.fenced_nodes == (CLUSTER.nodes if name == "store-away" else 0)


def test_a_dead_nodes_sessions_go_on_within_the_lease_and_two_seconds() -> None:
    assert run("kill-1", CLUSTER, seed=1).recovery_p99_ms <= TAKEOVER_MS


def test_if_sessions_are_not_shared_there_is_a_storm_of_claims() -> None:
    larger = replace(CLUSTER, nodes=40, sessions=4_000)
    calm = run("kill-half", larger, seed=1)
    storm = run("kill-half", replace(larger, policy=replace(larger.policy, shared=False)), seed=1)
    assert calm.claims <= 1.05 * calm.lost
    assert storm.claims > 2 * storm.lost


def test_timers_of_many_parked_sessions_make_no_storm_of_scans() -> None:
    figures = run("idle", replace(CLUSTER, wakes_s=100, limit_s=20), seed=1)
    assert figures.recovered > 900
    assert figures.scans / figures.virtual_s <= 1.2 * (CLUSTER.nodes + 100)
    assert figures.recovery_p99_ms <= 2_000


def test_a_seed_gives_the_same_figures_twice() -> None:
    assert run("kill-tenth", CLUSTER, seed=7) == run("kill-tenth", CLUSTER, seed=7)
    assert run("kill-tenth", CLUSTER, seed=7) != run("kill-tenth", CLUSTER, seed=8)


def test_the_command_tells_a_line_for_each_scenario(capsys, tmp_path) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text('{"lanes": 4}')
    assert main(["kill-1", "--nodes", "5", "--sessions", "100", "--costs", str(costs)]) == 0
    told = capsys.readouterr().out
    assert "kill-1" in told
    assert str(Costs(lanes=4)) in told
