"""The work of the crash rig: the survey, and a clerk who asks a person, waits, and is cancelled.

Between them they use every kind of call and every operation of a client, some of them twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.bootstrap import Runtime
from perdure.core.errors import RunCancelled
from perdure.core.history import malformed
from perdure.core.messages import AssistantMessage, ModelReply, ToolRequest
from perdure.ports.models import ModelRequest
from perdure.testing.client import Client
from perdure.testing.durability import IDEMPOTENCY_KEY, MAILED, SESSION_KEY, World
from perdure.testing.ledger import Ledger
from perdure.worker import Agent, ask_human, wait

LONG_SECONDS = 3_600
DESK = "default/clerk/desk"


def clerk(ledger: Ledger) -> Agent:
    """Return an agent that asks, then waits for an hour."""

    def play_the_model(request: ModelRequest) -> ModelReply:
        turn = sum(isinstance(message, AssistantMessage) for message in request.messages)
        ledger.note("model", session=DESK, turn=turn, malformed=malformed(request.messages))
        asks: dict[int, tuple[str, dict[str, Any]]] = {
            0: ("ask_human", {"question": "May I go on?"}),
            1: ("wait", {"seconds": LONG_SECONDS}),
        }
        name, arguments = asks[turn]
        return ModelReply("", (ToolRequest(f"c{turn}", name, arguments),), "tool_call")

    return Agent("clerk", model=play_the_model, instructions="Ask.", tools=[ask_human, wait])


async def life(store: str, world: World) -> None:
    """Do all the work, or go on with it, until nothing is left to do."""
    agents = [world.agent(), clerk(world.ledger)]
    async with Runtime(store, agents=agents) as runtime:
        client = Client(runtime, world.ledger, {"mail": MAILED})
        async with asyncio.TaskGroup() as group:
            group.create_task(_have_surveyed(client))
            group.create_task(_have_cancelled(client))


async def _have_surveyed(client: Client) -> None:
    message = ("surveyor", "Survey the directory.", SESSION_KEY, IDEMPOTENCY_KEY)
    await client.send(*message)
    await client.attend(await client.send(*message))


async def _have_cancelled(client: Client) -> None:
    run = await client.send("clerk", "Ask, then wait.", "desk", "the one errand")
    await client.attend_until(run, "timer_started")
    await client.cancel(run)
    try:
        await client.attend(run)
    except RunCancelled:
        return
