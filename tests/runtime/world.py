"""A whole node in a test: real runtime, memory store, a clock that stands still."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from perdure.adapters.models import resolve
from perdure.adapters.stores.memory import MemoryStore
from perdure.core.gate import NO_RULES, Gate
from perdure.core.messages import AssistantMessage
from perdure.core.runs import RunRow
from perdure.ports.models import ModelRequest
from perdure.runtime.agents import Registered
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.testing.clock import FakeClock
from perdure.worker import Agent, LocalWorker


class Telemetry:
    """Keeps what the runtime tells."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def emit(self, name: str, **fields: Any) -> None:
        """Keep one fact."""
        self.told.append((name, fields))

    def count(self, name: str) -> int:
        """Say how often a fact was told."""
        return sum(one == name for one, _ in self.told)


class World:
    """One store and one clock, and as many lives of a node as a test wants."""

    def __init__(self, *agents: Agent, settings: NodeSettings | None = None) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.telemetry = Telemetry()
        self.agents = agents
        self.settings = settings or NodeSettings(linger_ms=100)
        self.ran: Counter[str] = Counter()
        self.gate: Gate = NO_RULES

    async def node(self) -> Node:
        """Start a node, as a new process would."""
        worker = LocalWorker(list(self.agents), resolve, self.clock)
        node = Node(
            self.store,
            [worker],
            self.registered(),
            self.clock,
            self.telemetry,
            settings=self.settings,
        )
        await node.start()
        return node

    def registered(self) -> Registered:
        """Return the agents, under the policy of now."""
        return Registered({agent.name: agent.definition for agent in self.agents}, self.gate)

    async def crash(self, node: Node) -> None:
        """Let a node vanish without a word, and its lease run out."""
        node._heartbeat._stopped = True
        node._host.draining = True
        node._host.lose_all(RuntimeError("crashed"))  # type: ignore[arg-type]
        node._host._actors.clear()
        await node._recovery.stop()
        for worker in node._workers:
            await worker.close()
        self.clock._timers.clear()
        self.clock.advance(self.settings.lease_ms + 1)

    async def settle(self, turns: int = 60) -> None:
        """Let everything happen that needs no time."""
        for _ in range(turns):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and what it brings happen."""
        for _ in range(20):
            self.clock.advance(int(seconds * 1000 / 20))
            await self.settle(20)

    async def events(self, run: Any) -> list[str]:
        """Return the types of a session's durable events."""
        node = run._node
        return [item.type async for item in node.read(run.session, 0)]

    async def row(self, run: Any) -> RunRow:
        """Return a run's row."""
        row: RunRow = await run.row()
        return row


def turn(request: ModelRequest) -> int:
    """Return how often the model has replied already."""
    return sum(isinstance(message, AssistantMessage) for message in request.messages)


def last(request: ModelRequest) -> Any:
    """Return the content of the last message."""
    return request.messages[-1].content
