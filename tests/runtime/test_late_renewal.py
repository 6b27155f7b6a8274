"""A node whose lease ran out claims a session before it hears so: the session is not orphaned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.adapters.stores.memory import MemoryStore
from perdure.core.errors import Unavailable
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import Claimed
from perdure.worker import Agent
from tests.runtime.world import World


class HeldAnswers(MemoryStore):
    """Does what it is asked at once; the answers to what is in `held` wait until they are let go.

    As after a pause that was longer than the lease: everything is sent in one moment, and the
    answers come in any order.
    """

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.held: dict[str, asyncio.Event] = {}

    async def _answer(self, what: str, answer: Any) -> Any:
        if what in self.held:
            await self.held[what].wait()
        return answer

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Renew now, answer later."""
        alive: bool = await self._answer("renew", await super().renew(owner, lease_ms))
        return alive

    async def claim(self, *claimant: Any) -> Any:
        """Claim now, answer later."""
        return await self._answer("claim", await super().claim(*claimant))

    def let_go(self, what: str) -> None:
        """Let the answers come."""
        self.held.pop(what).set()


class LostAnswer(MemoryStore):
    """Does a renewal in `loses` when it is let go, and answers nobody; the next one is answered."""

    loses: asyncio.Event | None = None

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Renew late and unheard, or as ever."""
        loses, self.loses = self.loses, None
        if loses is None:
            return await super().renew(owner, lease_ms)
        await loses.wait()
        await super().renew(owner, lease_ms)
        raise Unavailable("nobody answered")


async def answer(request: ModelRequest) -> str:
    """Play the model."""
    return "done"


@pytest.mark.parametrize("first", ["claim", "renew"])
async def test_a_claim_that_followed_a_late_renewal_is_given_back(first: str) -> None:
    world = World(Agent("a", model=answer))
    store = world.store = HeldAnswers(world.clock)
    node = await world.node()
    store.held = {"renew": asyncio.Event(), "claim": asyncio.Event()}
    world.clock.advance(world.settings.lease_ms + 1)
    await world.settle()
    run = await node.send("a", "go on")
    await world.settle()
    for what in (first, *({"renew", "claim"} - {first})):
        store.let_go(what)
        await world.settle()
    await world.pass_time(seconds=2 * world.settings.scan_interval_ms / 1000)
    assert (await world.row(run)).status == "completed"
    await node.stop()


async def test_a_late_renewal_whose_answer_was_lost_is_noticed_by_the_next_one() -> None:
    """It voided all claims and made the lease anew: what was owed under them is not started."""
    asked: list[int] = []

    async def model(request: ModelRequest) -> str:
        asked.append(1)
        return "done"

    world = World(Agent("a", model=model))
    store = world.store = LostAnswer(world.clock)
    node = await world.node()
    late = store.loses = asyncio.Event()
    await world.pass_time(2)
    world.clock._now_ms += world.settings.lease_ms * 4 // 5
    run = await node.send("a", "go on")
    await world.settle()
    world.clock._now_ms += world.settings.lease_ms
    late.set()
    await world.settle()
    assert asked == []
    assert await store.renew("another node", 10 * world.settings.lease_ms)
    other = await store.claim(run.session, "another node", "its claim")
    assert isinstance(other, Claimed)
    await world.pass_time(2)
    assert asked == []
    await store.release(run.session, other.token)
    await world.pass_time(seconds=2 * world.settings.scan_interval_ms / 1000)
    assert (await world.row(run)).status == "completed"
    assert asked == [1]
    await node.stop()
