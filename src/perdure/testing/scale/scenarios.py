"""What happens to a fleet: deaths, a rolling restart, a store that goes away, nothing at all."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping

import msgspec

from perdure.adapters.cluster.memory import Hub
from perdure.runtime.settings import CLUSTERED
from perdure.testing.scale.figures import Counter, Figures, percentile
from perdure.testing.scale.fleet import Node, Policy
from perdure.testing.scale.loop import FleetLoop
from perdure.testing.scale.store import Costs, ModelStore
from perdure.testing.simulation.clock import EPOCH_MS

SETTLED_US = 10_000_000
"""When the nodes have started and found each other; the event of a scenario comes then."""
QUIET_S = 10
"""A run goes on for so long after its event at least."""
SAMPLE_US = 100_000


class Cluster(msgspec.Struct, frozen=True):
    """A fleet and its load: `sessions` are active, and shared equally among the nodes.

    `wakes_s` parked sessions come due every second, evenly, and each is run for `work_ms`.
    `activate_us` is what taking up a session costs the event loop of its node.
    """

    nodes: int = 200
    sessions: int = 100_000
    wakes_s: int = 0
    work_ms: int = 1_000
    activate_us: int = 1_000
    policy: Policy = Policy(CLUSTERED)
    costs: Costs = Costs()
    limit_s: int = 900


class Fleet:
    """A fleet under way; scenarios do things to it."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.loop = FleetLoop(self.chance)
        self._wakes = cluster.wakes_s * (cluster.limit_s - QUIET_S)
        self.store = ModelStore(self.loop, cluster.costs, cluster.sessions + self._wakes)
        self.store.on_void = self._voided
        self.hub = Hub(lambda: EPOCH_MS + self.loop.now_us // 1000)
        self.nodes: list[Node] = []
        self.since_us: dict[int, int] = {}
        self.took_ms: list[int] = []
        self.event_us = SETTLED_US
        self._lives = 0

    def start(self) -> None:
        """Start every node within a second, and give each its share."""
        cluster = self.cluster
        for place in range(cluster.nodes):
            node = self.live()
            share = range(place, cluster.sessions, cluster.nodes)
            self.store.own(node.owner, share)
            node.host.sessions.update(share)
            self.at(self.chance.randrange(1_000_000), node.start)
        for number in range(self._wakes):
            at_us = SETTLED_US + number * 1_000_000 // cluster.wakes_s
            self.store.wake(at_us, cluster.sessions + number)
            self.since_us[cluster.sessions + number] = at_us

    def live(self) -> Node:
        """Make another life of a node, that has to be started."""
        self._lives += 1
        node = Node(
            self.loop,
            self.store,
            self.hub,
            self.cluster.policy,
            f"n{self._lives}",
            random.Random(self.chance.random()),
            self.cluster.activate_us,
            self._taken,
        )
        node.host.work_of = self._work_of
        self.nodes.append(node)
        return node

    def _work_of(self, number: int) -> int | None:
        return self.cluster.work_ms if number >= self.cluster.sessions else None

    def at(self, when_us: int, what: Callable[[], object]) -> None:
        """Have something happen."""
        self.loop.schedule(self.loop.world, when_us, what)

    def kill(self, count: int) -> None:
        """Kill so many nodes at once."""
        for node in self.chance.sample(self.nodes, count):
            node.kill()
            self.nodes.remove(node)
            self.dropped(self.store.held(node.owner))

    def dropped(self, sessions: set[int] | list[int]) -> None:
        """Begin to wait for others to take these sessions."""
        now_us = self.loop.now_us
        for number in sessions:
            self.since_us.setdefault(number, now_us)

    def _voided(self, sessions: list[int]) -> None:
        self.dropped(sessions)

    def _taken(self, number: int) -> None:
        since_us = self.since_us.pop(number, None)
        if since_us is not None:
            self.took_ms.append((self.loop.now_us - since_us) // 1000)


Scenario = Callable[[Fleet], None]


def _kill(count_of: Callable[[int], int]) -> Scenario:
    return lambda fleet: fleet.kill(count_of(len(fleet.nodes)))


def _nothing(fleet: Fleet) -> None:
    """Let time pass."""


def _away(seconds: int) -> Scenario:
    def scenario(fleet: Fleet) -> None:
        fleet.store.away = True
        fleet.event_us = fleet.loop.now_us + seconds * 1_000_000

        def back() -> None:
            fleet.store.away = False
            for number in fleet.since_us:
                fleet.since_us[number] = fleet.loop.now_us

        fleet.at(fleet.event_us, back)

    return scenario


def _rolling(pause_us: int) -> Scenario:
    """Drain one node after another, and start a new one in its place."""

    def scenario(fleet: Fleet) -> None:
        before = list(fleet.nodes)

        def replace(place: int) -> None:
            node = before[place]
            fleet.nodes.remove(node)
            fleet.dropped(set(node.host.sessions))
            node.drain()
            fleet.live().start()

        for place in range(len(before)):
            when_us = fleet.loop.now_us + place * pause_us
            fleet.at(when_us, functools.partial(replace, place))
        fleet.event_us = fleet.loop.now_us + len(before) * pause_us

    return scenario


SCENARIOS: Mapping[str, Scenario] = {
    "idle": _nothing,
    "kill-1": _kill(lambda nodes: 1),
    "kill-tenth": _kill(lambda nodes: nodes // 10),
    "kill-half": _kill(lambda nodes: nodes // 2),
    "rolling": _rolling(1_000_000),
    "store-away": _away(30),
}


def run(name: str, cluster: Cluster, seed: int) -> Figures:
    """Have a scenario happen to a fleet; end when every session that was lost is run again."""
    fleet = Fleet(cluster, seed)
    store, loop = fleet.store, fleet.loop
    with loop.inside():
        fleet.start()
    loop.run(lambda: loop.now_us >= SETTLED_US)
    store.claims, store.won, store.scans = Counter(), Counter(), Counter()
    store.renewals, store.scan_rows = Counter(), 0
    store.busy_us = store.wait_max_us = 0
    fleet.event_us = begun_us = loop.now_us
    with loop.inside():
        SCENARIOS[name](fleet)
    end_us = begun_us + cluster.limit_s * 1_000_000
    quiet_us = fleet.event_us + QUIET_S * 1_000_000

    def over() -> bool:
        now_us = loop.now_us
        return now_us >= end_us or (now_us >= quiet_us and not fleet.since_us)

    _tick(fleet)
    loop.run(over)
    figures = _figures(name, fleet, loop.now_us - begun_us)
    loop.close()
    return figures


def _tick(fleet: Fleet) -> None:
    """Make the time stop now and then, so that the end is seen."""
    fleet.at(fleet.loop.now_us + SAMPLE_US, lambda: _tick(fleet))


def _figures(name: str, fleet: Fleet, passed_us: int) -> Figures:
    store, took = fleet.store, sorted(fleet.took_ms)
    return Figures(
        scenario=name,
        nodes=fleet.cluster.nodes,
        sessions=fleet.cluster.sessions,
        virtual_s=passed_us / 1e6,
        lost=len(took) + len(fleet.since_us),
        recovered=len(took),
        claims=store.claims.total,
        claims_won=store.won.total,
        scans=store.scans.total,
        scan_rows=store.scan_rows,
        renewals=store.renewals.total,
        fenced_nodes=sum(node.fences for node in fleet.nodes),
        scans_peak_s=store.scans.peak,
        claims_peak_s=store.claims.peak,
        renewals_peak_s=store.renewals.peak,
        store_wait_max_ms=store.wait_max_us / 1000,
        store_busy=store.busy_us / (passed_us * fleet.cluster.costs.lanes),
        recovery_p50_ms=percentile(took, 0.5),
        recovery_p99_ms=percentile(took, 0.99),
        recovery_max_ms=float(took[-1]) if took else 0.0,
    )
