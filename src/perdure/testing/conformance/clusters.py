"""The suite of the `Cluster` port: presence, and a bus on which what arrives is what was sent.

    class TestMyCluster(ClusterConformance):
        @pytest.fixture
        def open_cluster(self) -> OpenCluster:
            return my_cluster   # an async context manager: async with my_cluster(clock) as place

Every call of it opens one more place in the same cluster, in which nobody else is. A cluster whose
own clock says who is there may ignore the clock that it is given, if it then takes `advance` from
the fixture `let_time_pass`. A bus may lose messages; one that is whole, as here, loses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest

from perdure.core.errors import Unavailable
from perdure.ports.cluster import Cluster, NodeCard
from perdure.testing.clock import FakeClock

OpenCluster = Callable[[FakeClock], AbstractAsyncContextManager[Cluster]]
"""Opens one more place in a cluster that is told the time by this clock, and leaves it at the end.
"""
LetTimePass = Callable[[int], Awaitable[None]]
"""Moves the cluster's clock by so many milliseconds."""

LIFETIME_MS = 2_000
ARRIVAL_SECONDS_MAX = 10.0


class Place:
    """A node's place in the cluster, and what it heard there."""

    def __init__(self, cluster: Cluster, card: NodeCard) -> None:
        self.cluster = cluster
        self.card = card
        self.heard: list[bytes] = []
        self._news = asyncio.Event()

    def hear(self, message: bytes) -> None:
        """Note a message."""
        self.heard.append(message)
        self._news.set()

    async def hears(self, *messages: bytes) -> None:
        """Wait until these messages, and no others, were heard, in any order."""

        async def wait() -> None:
            while sorted(set(self.heard)) != sorted(set(messages)):
                self._news.clear()
                await self._news.wait()

        try:
            await asyncio.wait_for(wait(), ARRIVAL_SECONDS_MAX)
        except TimeoutError:
            assert sorted(set(self.heard)) == sorted(set(messages))

    async def nodes(self) -> list[str]:
        """Return the ids of the nodes that it sees."""
        return [card.id for card in await self.cluster.nodes()]


Join = Callable[[str], Awaitable[Place]]


class ClusterConformance:
    """Every promise of the port; a driver adds the fixture `open_cluster`."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the cluster's clock."""
        return FakeClock()

    @pytest.fixture
    def let_time_pass(self, clock: FakeClock) -> LetTimePass:
        """Move the cluster's clock."""

        async def advance(passed_ms: int) -> None:
            clock.advance(passed_ms)

        return advance

    @pytest.fixture
    async def join(self, open_cluster: OpenCluster, clock: FakeClock) -> AsyncIterator[Join]:
        """Return what joins the cluster under an id."""
        async with AsyncExitStack() as opened:

            async def joining(id: str) -> Place:
                cluster = await opened.enter_async_context(open_cluster(clock))
                place = Place(cluster, NodeCard(id=id, name=f"name of {id}"))
                await cluster.join(place.card, LIFETIME_MS, place.hear)
                return place

            yield joining

    async def test_who_joins_sees_himself_and_the_others_see_him(self, join: Join) -> None:
        first = await join("a")
        assert await first.nodes() == ["a"]
        second = await join("b")
        assert await second.nodes() == ["a", "b"]
        assert await first.nodes() == ["a", "b"]

    async def test_a_card_is_shown_as_it_was_announced_last(
        self, join: Join, let_time_pass: LetTimePass
    ) -> None:
        first, second = await join("a"), await join("b")
        shown = {card.id: card for card in await second.cluster.nodes()}["a"]
        assert (shown.name, shown.draining) == ("name of a", False)
        await let_time_pass(100)
        said = NodeCard(
            id="a", name="n", url="http://127.0.0.1:1", version="1.2", generation=3,
            started_at=5, draining=True, sessions=7, workers=8,
        )  # fmt: skip
        await first.cluster.announce(said)
        later = {card.id: card for card in await second.cluster.nodes()}["a"]
        assert later.seen_at > shown.seen_at
        assert later == NodeCard(
            id="a", name="n", url="http://127.0.0.1:1", version="1.2", generation=3,
            started_at=5, draining=True, sessions=7, workers=8, seen_at=later.seen_at,
        )  # fmt: skip

    async def test_who_does_not_announce_himself_is_not_seen_any_more(
        self, join: Join, let_time_pass: LetTimePass
    ) -> None:
        first, second = await join("a"), await join("b")
        await let_time_pass(LIFETIME_MS // 2)
        await second.cluster.announce(second.card)
        await let_time_pass(LIFETIME_MS // 2 + 50)
        assert await second.nodes() == ["b"]
        await first.cluster.announce(first.card)
        assert await second.nodes() == ["a", "b"]

    async def test_who_leaves_is_not_seen_and_hears_nothing(self, join: Join) -> None:
        first, second, third = await join("a"), await join("b"), await join("c")
        await first.cluster.leave()
        await first.cluster.leave()
        assert await second.nodes() == ["b", "c"]
        second.cluster.send("a", b"to nobody")
        second.cluster.send(None, b"to all")
        await third.hears(b"to all")
        assert first.heard == []

    async def test_what_was_sent_before_leaving_is_heard(self, join: Join) -> None:
        first, second = await join("a"), await join("b")
        first.cluster.send(None, b"farewell")
        await first.cluster.leave()
        await second.hears(b"farewell")

    async def test_a_message_reaches_the_node_that_it_is_for(self, join: Join) -> None:
        first, second, third = await join("a"), await join("b"), await join("c")
        messages = [b"", b"\0 bytes \xff", b"{}"]
        for message in messages:
            first.cluster.send("b", message)
        first.cluster.send("nobody", b"lost")
        first.cluster.send("c", b"for c")
        await second.hears(*messages)
        await third.hears(b"for c")
        assert first.heard == []

    async def test_a_message_to_all_reaches_all_others(self, join: Join) -> None:
        first, second, third = await join("a"), await join("b"), await join("c")
        first.cluster.send(None, b"hello")
        third.cluster.send(None, b"hello too")
        await first.hears(b"hello too")
        await second.hears(b"hello", b"hello too")
        await third.hears(b"hello")

    async def test_a_node_may_send_to_itself(self, join: Join) -> None:
        only = await join("a")
        only.cluster.send("a", b"note")
        await only.hears(b"note")

    async def test_many_messages_arrive_and_each_is_whole(self, join: Join) -> None:
        first, second = await join("a"), await join("b")
        messages = [b"%d." % n * (n % 100 + 1) for n in range(2_000)]
        for message in messages:
            first.cluster.send("b", message)
        await second.hears(*messages)

    @pytest.mark.parametrize("size_bytes", [8_000, 1 << 20, 5 << 20])
    async def test_a_large_message_arrives(self, join: Join, size_bytes: int) -> None:
        first, second = await join("a"), await join("b")
        message = bytes(range(256)) * (size_bytes // 256)
        first.cluster.send("b", message)
        first.cluster.send(None, message + b"to all")
        await second.hears(message, message + b"to all")

    async def test_sending_says_nothing_where_nobody_has_joined(
        self, open_cluster: OpenCluster, clock: FakeClock
    ) -> None:
        async with open_cluster(clock) as cluster:
            cluster.send(None, b"lost")
            cluster.send("a", b"lost")
            with pytest.raises(Unavailable):
                await cluster.announce(NodeCard(id="a"))
