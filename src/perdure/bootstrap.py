"""The composition root: the one place that chooses adapters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw

from perdure.adapters.clock import SystemClock
from perdure.adapters.models import resolve
from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteReader, SqliteStore
from perdure.adapters.telemetry.logs import LogTelemetry
from perdure.core.errors import InvalidInput
from perdure.ports.clock import Clock
from perdure.ports.telemetry import Telemetry
from perdure.runtime.agents import Registered
from perdure.runtime.followers import quarantined
from perdure.runtime.handles import RecordedEvent, Run, TextDelta, recorded
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.worker import ISOLATED_VARIABLE, Agent, LocalWorker

__all__ = [
    "MEMORY_URL",
    "SQLITE_PREFIX",
    "Agent",
    "Node",
    "RecordedEvent",
    "Run",
    "Runtime",
    "SystemClock",
    "TextDelta",
    "open_reader",
    "open_store",
    "quarantined",
    "recorded",
    "sqlite_path",
    "sqlite_version",
]

SQLITE_PREFIX = "sqlite:///"
MEMORY_URL = "memory://"


def sqlite_path(url: str) -> Path | None:
    """Return the file that a store URL names; None for the memory store.

    `sqlite:///perdure.db` is relative to the current directory, `sqlite:////var/p.db` is absolute.
    Raises `InvalidInput` for any other URL.
    """
    if url == MEMORY_URL:
        return None
    if url.startswith(SQLITE_PREFIX) and len(url) > len(SQLITE_PREFIX):
        return Path(url[len(SQLITE_PREFIX) :])
    raise InvalidInput(
        f"the store URL {url!r} is not known; expected sqlite:///FILE (relative), "
        f"sqlite:////FILE (absolute) or {MEMORY_URL}"
    )


def sqlite_version() -> str:
    """Return the version of the SQLite that this package brings."""
    return apsw.sqlite_lib_version()


async def open_store(url: str, clock: Clock) -> MemoryStore | SqliteStore:
    """Open the store that a URL names. Raises `StoreLocked`, `StoreRefused`, `InvalidInput`."""
    path = sqlite_path(url)
    return (
        MemoryStore(clock, clock.fresh_id())
        if path is None
        else await SqliteStore.open(path, clock)
    )


async def open_reader(url: str) -> SqliteReader:
    """Open an existing SQLite store for reading only, also while another process runs it."""
    path = sqlite_path(url)
    if path is None:
        raise InvalidInput("a memory store cannot be read from another process")
    return await SqliteReader.open(path)


class Runtime:
    """Agents, a store, and a worker in this process.

    `async with Runtime("sqlite:///perdure.db", agents=[support]) as runtime:` yields the running
    node: `runtime.send(...)`, `runtime.run(id)`, `runtime.cancel(id)`, `runtime.reply(id, text)`.
    What was unfinished when the last process ended goes on by itself. On leaving, the node drains:
    it cuts every session at its next commit and lets it go. With `recover=False` nothing goes on by
    itself: only sessions that are told something run.
    """

    def __init__(
        self,
        store: str = MEMORY_URL,
        agents: Iterable[Agent] = (),
        *,
        tenant: str = "default",
        settings: NodeSettings | None = None,
        clock: Clock | None = None,
        telemetry: Telemetry | None = None,
        recover: bool = True,
    ) -> None:
        self.store = store
        self.agents = _by_name(agents)
        self.tenant = tenant
        self._settings = settings
        self._clock = clock or SystemClock()
        self._telemetry = telemetry or LogTelemetry()
        self._recover = recover
        self._opened: MemoryStore | SqliteStore | None = None
        self._node: Node | None = None
        sqlite_path(store)

    async def start(self) -> Node:
        """Open the store, recover what was left unfinished, and return the running node."""
        if ISOLATED_VARIABLE in os.environ:
            raise InvalidInput(
                "a Runtime cannot be started while an isolated tool is being loaded: put the part "
                'of the file that starts it under `if __name__ == "__main__":`'
            )
        self._opened = await open_store(self.store, self._clock)
        worker = LocalWorker(list(self.agents.values()), resolve, self._clock)
        self._node = Node(
            self._opened,
            [worker],
            Registered({name: agent.definition for name, agent in self.agents.items()}),
            self._clock,
            self._telemetry,
            tenant=self.tenant,
            settings=self._settings,
        )
        try:
            await self._node.start(recover=self._recover)
        except BaseException:
            await self._opened.close()
            raise
        return self._node

    async def stop(self) -> None:
        """Drain the node and close the store; safe to call twice."""
        node, self._node = self._node, None
        opened, self._opened = self._opened, None
        try:
            if node is not None:
                await node.stop()
        finally:
            if opened is not None:
                await opened.close()

    async def __aenter__(self) -> Node:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


def _by_name(agents: Iterable[Agent] | Sequence[Any]) -> dict[str, Agent]:
    named: dict[str, Agent] = {}
    for agent in agents:
        if not isinstance(agent, Agent):
            raise InvalidInput(f"agents must be perdure.Agent objects, not {type(agent).__name__}")
        if agent.spec.name in named:
            raise InvalidInput(f"two agents are named {agent.spec.name!r}")
        if isinstance(agent.model, str):
            resolve(agent.model)
        named[agent.spec.name] = agent
    return named
