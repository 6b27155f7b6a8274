"""Who should take a session, of all nodes that are there: they agree, and share equally."""

from __future__ import annotations

from collections import Counter

from perdure.adapters.cluster.memory import Hub, MemoryCluster
from perdure.core.ids import SessionId
from perdure.ports.cluster import NodeCard
from perdure.runtime.presence import PLACES_MAX, Presence
from perdure.testing.clock import FakeClock
from tests.runtime.world import Telemetry

SESSIONS = [SessionId("tenant", "agent", str(number)) for number in range(2_000)]


async def nodes(*names: str, draining: str = "") -> dict[str, Presence]:
    """Let nodes find each other."""
    clock = FakeClock()
    hub = Hub(clock.now_ms)
    found = {}
    for name in names:
        card = NodeCard(id=name, draining=name == draining)
        found[name] = Presence(
            MemoryCluster(hub),
            clock,
            Telemetry(),
            5_000,
            lambda card=card: card,
            lambda message: None,
        )
        await found[name].start()
    for presence in found.values():
        await presence._look()
    return found


async def test_nodes_agree_on_an_order_for_each_session() -> None:
    there = await nodes("a", "b", "c")
    for session in SESSIONS[:50]:
        assert sorted(node.place(session) for node in there.values()) == [0, 1, 2]


async def test_sessions_are_shared_and_so_are_those_of_a_node_that_is_gone() -> None:
    there = await nodes("a", "b", "c", "d")
    orders = [there["a"].first(session) for session in SESSIONS]
    for shares in (
        Counter(first for first, *_ in orders),
        Counter(second for first, second, *_ in orders if first == "a"),
    ):
        assert min(shares.values()) > 0.5 * shares.total() / len(shares)
    there["b"].drains("a")
    moved = [there["b"].first(session) for session in SESSIONS]
    assert [order[0] for order in moved] == [
        next(name for name in order if name != "a") for order in orders
    ]


async def test_the_last_places_are_one() -> None:
    there = await nodes(*map(str, range(12)))
    places = Counter(node.place(SESSIONS[0]) for node in there.values())
    assert places == {**dict.fromkeys(range(PLACES_MAX), 1), PLACES_MAX: 5}


async def test_a_node_that_drains_comes_last_and_one_that_is_alone_first() -> None:
    there = await nodes("a", "b", draining="b")
    assert {there["a"].place(one) for one in SESSIONS} == {0}
    assert {there["b"].place(one) for one in SESSIONS} == {1}
    assert (await nodes("a"))["a"].place(SESSIONS[0]) == 0
