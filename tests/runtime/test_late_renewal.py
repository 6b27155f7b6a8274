"""A node whose lease ran out claims a session before it hears so: the session is not orphaned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.adapters.stores.memory import MemoryStore
from perdure.ports.models import ModelRequest
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
