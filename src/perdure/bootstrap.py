"""The composition root: the one place that chooses adapters."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import apsw

from perdure.adapters.clock import SystemClock, secret_bytes
from perdure.adapters.credentials import providers
from perdure.adapters.models import resolve
from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteReader, SqliteStore
from perdure.adapters.telemetry.logs import LogTelemetry
from perdure.core.errors import InvalidInput, StoreRefused
from perdure.ports.clock import Clock
from perdure.ports.credentials import CredentialProvider
from perdure.ports.entries import Key
from perdure.ports.telemetry import Telemetry
from perdure.runtime.agents import Registered
from perdure.runtime.followers import quarantined
from perdure.runtime.handles import RecordedEvent, Run, TextDelta, recorded
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.worker import ISOLATED_VARIABLE, Agent, LocalWorker

if TYPE_CHECKING:
    from perdure.server.service import Service

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
    "Worker",
    "back_up",
    "open_reader",
    "open_service",
    "open_store",
    "quarantined",
    "recorded",
    "sqlite_path",
    "sqlite_version",
]

SQLITE_PREFIX = "sqlite:///"
MEMORY_URL = "memory://"
DEFAULT_TENANT = "default"
KEY_VARIABLES = ("PERDURE_BOOTSTRAP_KEY", "NORNS_DEFAULT_TENANT_KEY")


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


async def back_up(folder: Path, to: Path, clock: Clock) -> list[Path]:
    """Copy every SQLite file of ours in a folder to a new one; return the copies.

    Sessions come before the catalog, which then knows whatever they name; copies of sessions are
    distrusted. The folder appears when all of it is whole. Raises `InvalidInput` if it is there
    already, `NotFound` if there is nothing to copy, and `StoreRefused`.
    """
    from perdure.adapters.catalog.sqlite.catalog import SCHEMA as CATALOG
    from perdure.adapters.sqlite import backup
    from perdure.adapters.stores.sqlite.schema import SCHEMA as SESSIONS

    kinds = (SESSIONS.application_id, CATALOG.application_id)
    stores = await asyncio.to_thread(backup.files, folder, kinds)
    partial = await asyncio.to_thread(backup.begin, to)
    for path, kind in stores.items():
        copy = partial / path.name
        await asyncio.to_thread(backup.copy, path, copy)
        if kind == SESSIONS.application_id:
            opened = await SqliteStore.open(copy, clock)
            await opened.distrust()
            await opened.close()
    await asyncio.to_thread(backup.finish, partial, to)
    return [to / path.name for path in stores]


@asynccontextmanager
async def open_service(
    folder: Path, store: str, environment: Mapping[str, str], *, offers_setup: bool = False
) -> AsyncIterator[tuple[Service, str | None]]:
    """Open a server's stores, and give the service with a new admin key if there was none.

    If it `offers_setup`, no key is made: the service has a link then, by which a person makes it.

    The catalog and the pepper are in `folder`. A key that `environment` names
    (`PERDURE_BOOTSTRAP_KEY` or `NORNS_DEFAULT_TENANT_KEY`) becomes an admin key of the default
    tenant instead of a new one. Raises `StoreLocked`, `StoreRefused`, `InvalidInput`.
    """
    from perdure.adapters.catalog.pepper import open_pepper
    from perdure.adapters.catalog.sqlite import SqliteCatalog
    from perdure.server.egress import egress_for
    from perdure.server.keys import Keyring
    from perdure.server.sealing import Seal
    from perdure.server.service import Service
    from perdure.server.setup import SetupLink, ensure_tenant, has_keys

    clock, fresh = SystemClock(), secret_bytes
    await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        opened = await open_store(store, clock)
        stack.push_async_callback(opened.close)
        catalog = await SqliteCatalog.open(folder / "catalog.db", clock.now_ms)
        stack.push_async_callback(catalog.close)
        given_pepper = environment.get("PERDURE_KEY_PEPPER")
        if not given_pepper and not (folder / "pepper").exists() and await has_keys(catalog):
            raise StoreRefused(
                f"{folder / 'pepper'} is missing, and without it none of the keys in the catalog "
                "is known: restore it from a backup, or give it in PERDURE_KEY_PEPPER"
            )
        pepper = open_pepper(folder / "pepper", given_pepper, fresh)
        keys = Keyring(catalog, pepper, fresh)
        tenant = await ensure_tenant(catalog, DEFAULT_TENANT)
        given = next((environment[name] for name in KEY_VARIABLES if environment.get(name)), None)
        made = None
        if given is not None:
            await keys.adopt(tenant, given)
        elif not offers_setup and not await tenant.list(Key, limit=1):
            made = (await keys.issue(tenant, "admin", name="first start")).token
        seal = Seal(pepper, fresh)
        egress = egress_for(environment)
        service = Service(opened, catalog, keys, seal, clock, LogTelemetry(), fresh, egress=egress)
        if offers_setup:
            service.setup = await SetupLink.offer(tenant, catalog, keys, clock, fresh)
        yield service, made


class Runtime:
    """Agents, a store, and a worker in this process.

    `async with Runtime("sqlite:///perdure.db", agents=[support]) as runtime:` yields the running
    node: `runtime.send(...)`, `runtime.run(id)`, `runtime.cancel(id)`, `runtime.reply(id, text)`.
    What was unfinished when the last process ended goes on by itself. On leaving, the node drains:
    it cuts every session at its next commit and lets it go. With `recover=False` nothing goes on by
    itself: only sessions that are told something run. `credential_providers` resolve references of
    other schemes than `env` and `file`, by scheme.
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
        credential_providers: Mapping[str, CredentialProvider] | None = None,
    ) -> None:
        self.store = store
        self.agents = _by_name(agents)
        self.tenant = tenant
        self._settings = settings
        self._clock = clock or SystemClock()
        self._telemetry = telemetry or LogTelemetry()
        self._recover = recover
        self._credential_providers = providers(credential_providers or {})
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
        worker = LocalWorker(
            list(self.agents.values()),
            resolve,
            self._clock,
            credential_providers=self._credential_providers,
        )
        self._opened = await open_store(self.store, self._clock)
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
