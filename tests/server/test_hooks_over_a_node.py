"""Triggers and webhooks over a real node: what is sent again is the same run."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.core.errors import KeyReused
from perdure.ports.entries import Tenant, Trigger
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import RunQuery
from perdure.runtime.node import Node
from perdure.server.inbound import Inbound, receive
from perdure.server.scheduler import MINUTE_MS, Scheduler
from perdure.worker import Agent
from tests.runtime.world import World, last
from tests.server.mortal import Life, Notes, dying
from tests.server.test_signatures import SECRET, pairs


def echo(request: ModelRequest) -> str:
    """Play a model that repeats what it was told."""
    return f"you said {last(request)}"


async def runs(world: World) -> list[str]:
    """The session of every run of the store; an empty text for one that nobody chose the key of."""
    rows = await world.store.list(RunQuery(tenant="default"))
    chosen = ("k", "hook_")
    return [row.session.key if row.session.key.startswith(chosen) else "" for row in rows]


@pytest.mark.parametrize("conversation", ["k", None])
async def test_a_firing_that_was_sent_before_its_node_died_is_one_run(
    conversation: str | None,
) -> None:
    """The first node dies after the store accepted the message, the next one sends it again."""
    world, notes = World(Agent("a", model=echo)), Notes()
    catalog = MemoryCatalog(world.clock.now_ms)
    await catalog.create("acme", Tenant(slug="acme", name="Acme"))
    trigger = Trigger(
        agent_id=1, name="t", cron="* * * * *", message="go", conversation_key=conversation
    )
    trigger = await catalog.create("acme", trigger)
    node = await world.node()

    def scheduler(life: Life) -> Scheduler:
        async def send(tenant: str, agent: int, content: Any, session: Any, key: str) -> Any:
            return await life.step(
                lambda: node.send("a", content, session=session, idempotency_key=key)
            )

        return Scheduler(catalog, send, world.clock, notes)

    world.clock.advance(MINUTE_MS - world.clock.now_ms() % MINUTE_MS)
    with dying():
        await scheduler(Life(dies_at=2)).run_once()
    await world.settle()
    assert await runs(world) == [conversation or ""]
    for _ in range(3):
        world.clock.advance(MINUTE_MS // 4)
        await scheduler(Life()).run_once()
        await world.settle()
    assert await runs(world) == [conversation or ""]
    assert notes.names == ["trigger.fired"]
    world.clock.advance(MINUTE_MS // 4)
    await scheduler(Life()).run_once()
    await world.settle()
    assert await runs(world) == [conversation or ""] * 2
    await node.stop()


async def test_a_delivery_that_comes_a_thousand_times_is_one_run() -> None:
    """Days later too: the store knows the key for as long as it has the session."""
    world = World(Agent("a", model=echo))
    node = await world.node()

    async def deliver(node: Node, delivery: bytes, text: bytes = b"hi") -> str:
        body = b'{"text": "%s", "channel": "C1"}' % text
        now = world.clock.now_ms()
        headers = pairs("standard", SECRET, body, now // 1000, delivery)
        found = receive(7, "standard", SECRET, headers, body, now, "text", "channel")
        assert isinstance(found, Inbound)
        run = await node.send(
            "a", found.content, session=found.session_key, idempotency_key=found.idempotency_key
        )
        return run.id

    first = await deliver(node, b"msg_1")
    assert {await deliver(node, b"msg_1") for _ in range(1_000)} == {first}
    await world.settle()
    world.clock.advance(4 * 24 * 60 * MINUTE_MS)
    await world.settle()
    assert await deliver(node, b"msg_1") == first
    assert await deliver(node, b"msg_2") != first
    with pytest.raises(KeyReused):
        await deliver(node, b"msg_1", b"something else")
    assert await runs(world) == ["hook_7_C1"] * 2
    await node.stop()
