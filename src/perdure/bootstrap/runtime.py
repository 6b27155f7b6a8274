"""A runtime inside a program, and a worker of a server."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from perdure.adapters.clock import SystemClock
from perdure.adapters.credentials import providers
from perdure.adapters.models import resolve
from perdure.adapters.telemetry.logs import LogTelemetry
from perdure.api.cost import Prices
from perdure.bootstrap.opening import MEMORY_URL, beside, open_cluster, open_store, sqlite_path
from perdure.core.agent import check_durability
from perdure.core.errors import InvalidInput
from perdure.core.gate import NO_RULES, Gate
from perdure.ports.clock import Clock
from perdure.ports.cluster import NodeCard
from perdure.ports.credentials import CredentialProvider
from perdure.ports.telemetry import Telemetry
from perdure.runtime.agents import Registered
from perdure.runtime.node import Node
from perdure.runtime.settings import CLUSTERED, NodeSettings
from perdure.worker import ISOLATED_VARIABLE, Agent, LocalWorker


class Runtime:
    """Agents, a store, and a worker in this process.

    `async with Runtime("sqlite:///perdure.db", agents=[support]) as runtime:` yields the running
    node: `runtime.send(...)`, `runtime.run(id)`, `runtime.cancel(id)`, `runtime.reply(id, text)`.
    What was unfinished when the last process ended goes on by itself. On leaving, the node drains:
    it cuts every session at its next commit and lets it go. With `recover=False` nothing goes on by
    itself: only sessions that are told something run. `credential_providers` resolve references of
    other schemes than `env` and `file`, by scheme. `policy` judges every call of a tool, and
    budgets of money are kept by `prices`, the list that comes with perdure if none is given.

    Processes that name the same store of a database server share its sessions: each goes on with
    what another one left. `cluster` is where they hear of each other, the store if it is not named;
    `name` is what they call this one.
    """

    def __init__(
        self,
        store: str = MEMORY_URL,
        agents: Iterable[Agent] = (),
        *,
        cluster: str | None = None,
        name: str = "",
        tenant: str = "default",
        settings: NodeSettings | None = None,
        clock: Clock | None = None,
        telemetry: Telemetry | None = None,
        recover: bool = True,
        credential_providers: Mapping[str, CredentialProvider] | None = None,
        policy: Gate | None = None,
        prices: Prices | None = None,
    ) -> None:
        self.store = store
        self.agents = _by_name(agents)
        self.tenant = tenant
        self._settings = settings
        self._prices = prices
        self._clock = clock or SystemClock()
        self._telemetry = telemetry or LogTelemetry()
        self._recover = recover
        self._policy = policy or NO_RULES
        self._credential_providers = providers(credential_providers or {})
        self._held = AsyncExitStack()
        self._node: Node | None = None
        sqlite_path(store)
        self._cluster = beside(Path(), store, None, cluster)[1]
        self._card = NodeCard("", name, version=importlib.metadata.version("perdure"))

    async def start(self) -> Node:
        """Open the store, recover what was left unfinished, and return the running node."""
        if ISOLATED_VARIABLE in os.environ:
            raise InvalidInput(
                "a Runtime cannot be started while an isolated tool is being loaded: put the part "
                'of the file that starts it under `if __name__ == "__main__":`'
            )
        worker = LocalWorker(
            list(self.agents.values()),
            resolve,
            self._clock,
            credential_providers=self._credential_providers,
        )
        async with AsyncExitStack() as stack:
            opened = await open_store(self.store, self._clock)
            stack.push_async_callback(opened.close)
            for agent in self.agents.values():
                check_durability(agent.spec, opened.durability)
            cluster = await open_cluster(self._cluster, self._clock)
            if cluster is not None:
                stack.push_async_callback(cluster.leave)
            settings = self._settings or (NodeSettings() if cluster is None else CLUSTERED)
            if self._prices is not None:
                settings = msgspec.structs.replace(settings, prices=self._prices)
            node = Node(
                opened,
                [worker],
                self._registered(),
                self._clock,
                self._telemetry,
                tenant=self.tenant,
                settings=settings,
                cluster=cluster,
                card=lambda: self._card,
            )
            await node.start(recover=self._recover)
            self._node, self._held = node, stack.pop_all()
        return node

    def _registered(self) -> Registered:
        definitions = {name: agent.definition for name, agent in self.agents.items()}
        return Registered(definitions, self._policy)

    async def stop(self) -> None:
        """Drain the node and close the store; safe to call twice."""
        node, self._node = self._node, None
        held, self._held = self._held, AsyncExitStack()
        try:
            if node is not None:
                await node.stop()
        finally:
            await held.aclose()

    async def __aenter__(self) -> Node:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


class Worker:
    """A worker process of the server at `url`: it holds the tools and the providers' keys.

    `Worker(url, key).serve([support])` in a script, `await Worker(url, key).run([support])` on an
    event loop. It defines the agents on the server, unless `register` is false or the key a
    worker's, and executes their calls, `concurrency_max` at once, sync functions in `threads_max`
    threads. `worker_id` is its name, by default one of this process. With `gard` and its
    `claim_token` it serves that gard alone, and tells the server of its `ports`: the URLs that they
    are to be reached at, by number. While the server is away, calls go on, and their results are
    kept and sent once it is back. On SIGTERM or SIGINT it takes nothing new, finishes what it has
    within `shutdown_timeout_s`, and leaves. `credential_providers` resolve references of other
    schemes than `env` and `file`, by scheme.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        worker_id: str | None = None,
        concurrency_max: int = 100,
        threads_max: int = 32,
        gard: str | None = None,
        claim_token: str | None = None,
        ports: Mapping[int, str] | None = None,
        register: bool | None = None,
        shutdown_timeout_s: float = 30.0,
        credential_providers: Mapping[str, CredentialProvider] | None = None,
    ) -> None:
        from perdure.worker.remote import RemoteWorker

        self._remote = RemoteWorker(
            url,
            key,
            resolve,
            SystemClock(),
            worker_id=worker_id,
            concurrency_max=concurrency_max,
            threads_max=threads_max,
            gard=gard,
            claim_token=claim_token,
            ports=ports,
            register=register,
            shutdown_timeout_s=shutdown_timeout_s,
            credential_providers=providers(credential_providers or {}),
        )

    async def run(self, agents: Iterable[Agent], *, signals: bool = True) -> None:
        """Work for these agents until `stop` or a signal.

        Without `signals` the process's handlers are left alone. Raises `WorkerRefused` when the
        server will not have this worker, `InvalidInput` for agents that cannot be.
        """
        await self._remote.run(_by_name(agents).values(), signals=signals)

    def serve(self, agents: Iterable[Agent]) -> None:
        """Do `run` in a script that has no event loop."""
        asyncio.run(self.run(agents))

    def stop(self) -> None:
        """Take nothing new, finish what is under way, and end; a second time: end at once."""
        self._remote.stop()


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
