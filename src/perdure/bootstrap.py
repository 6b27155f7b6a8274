"""The composition root: the one place that chooses adapters."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import apsw

from perdure.adapters.clock import SystemClock, secret_bytes
from perdure.adapters.credentials import providers
from perdure.adapters.models import resolve
from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteReader, SqliteStore
from perdure.adapters.telemetry.logs import LogTelemetry
from perdure.core.agent import check_durability
from perdure.core.errors import InvalidInput, StoreLocked, StoreRefused, Unavailable
from perdure.ports.catalog import Catalog, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.cluster import Cluster, NodeCard
from perdure.ports.credentials import CredentialProvider
from perdure.ports.entries import Key
from perdure.ports.session_store import SessionReader, SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.runtime.agents import Registered
from perdure.runtime.followers import quarantined
from perdure.runtime.handles import RecordedEvent, Run, TextDelta, recorded
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.worker import ISOLATED_VARIABLE, Agent, LocalWorker

if TYPE_CHECKING:
    from perdure.server.keys import Keyring
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
    "is_shared",
    "open_reader",
    "open_service",
    "open_store",
    "quarantined",
    "recorded",
    "sqlite_path",
    "sqlite_version",
    "store_facts",
]

SHARED: Mapping[str, tuple[str, str]] = {
    "postgresql": ("postgres", "Postgres"),
    "redis": ("redis", "Redis"),
    "rediss": ("redis", "Redis"),
    "nats": ("nats", "Nats"),
}
"""What several nodes may share, by the scheme of its URL: the package of its adapters in
`perdure.adapters.stores`, `.catalog` and `.cluster`, and what the names of its classes begin with.
"""
SQLITE_PREFIX = "sqlite:///"
MEMORY_URL = "memory://"
DEFAULT_TENANT = "default"
OPENED_EVERY_MS = 1_000
"""How often a server tries to open a store that does not answer."""
KEY_VARIABLES = ("PERDURE_BOOTSTRAP_KEY", "NORNS_DEFAULT_TENANT_KEY")


def is_shared(url: str) -> bool:
    """Say whether a URL names what several nodes may share, of which no file here is a part."""
    return _scheme(url) in SHARED


def sqlite_path(url: str) -> Path | None:
    """Return the file that a URL names; None for memory, and for what several nodes share.

    `sqlite:///perdure.db` is relative to the current directory, `sqlite:////var/p.db` is absolute.
    Raises `InvalidInput` for any other URL.
    """
    if url == MEMORY_URL or is_shared(url):
        return None
    if url.startswith(SQLITE_PREFIX) and len(url) > len(SQLITE_PREFIX):
        return Path(url[len(SQLITE_PREFIX) :])
    # It may hold a password: what comes before the host, and settings, are not repeated.
    shown = re.sub("//.*@", "//", url).partition("?")[0]
    raise InvalidInput(
        f"the URL {shown!r} is not known; expected sqlite:///FILE (relative), "
        f"sqlite:////FILE (absolute), {', '.join(f'{name}://HOST' for name in SHARED)} "
        f"or {MEMORY_URL}"
    )


def _scheme(url: str) -> str:
    return url.partition("://")[0]


class OpenStore(SessionStore, Protocol):
    """A store that was opened, and has to be closed."""

    async def close(self) -> None:
        """Write what was submitted, and let go of what is held; safe to call twice."""
        ...


class OpenReader(SessionReader, Protocol):
    """A store that was opened for reading, and has to be closed."""

    async def close(self) -> None:
        """Let go of what is held; safe to call twice."""
        ...


class OpenCatalog(Catalog, Protocol):
    """A catalog that was opened, and has to be closed."""

    async def close(self) -> None:
        """Let go of what is held; safe to call twice."""
        ...


def _adapter(kind: Literal["stores", "catalog", "cluster"], url: str) -> Any:
    """Return the class that opens what several nodes share. Raises `InvalidInput`.

    Only what is opened is imported: a driver comes with an extra.
    """
    package, name = SHARED[_scheme(url)]
    what = {"stores": "Store", "catalog": "Catalog", "cluster": "Cluster"}[kind]
    try:
        return getattr(import_module(f"perdure.adapters.{kind}.{package}"), name + what)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("perdure"):
            raise
        said = f"{_scheme(url)}:// needs a driver: pip install 'perdure[{package}]'"
        raise InvalidInput(said) from None


def sqlite_version() -> str:
    """Return the version of the SQLite that this package brings."""
    return apsw.sqlite_lib_version()


async def open_store(url: str, clock: Clock) -> OpenStore:
    """Open the store that a URL names; the clock of one that nodes share is its own.

    Raises `StoreLocked`, `StoreRefused`, `InvalidInput`, and `Unavailable` for a server that does
    not answer.
    """
    path = sqlite_path(url)
    if is_shared(url):
        shared: OpenStore = await _adapter("stores", url).open(url)
        return shared
    return (
        MemoryStore(clock, clock.fresh_id())
        if path is None
        else await SqliteStore.open(path, clock)
    )


async def open_catalog(url: str, clock: Clock) -> OpenCatalog:
    """Open the catalog that a URL names. Raises what `open_store` raises."""
    from perdure.adapters.catalog.memory import MemoryCatalog
    from perdure.adapters.catalog.sqlite import SqliteCatalog

    path = sqlite_path(url)
    if is_shared(url):
        shared: OpenCatalog = await _adapter("catalog", url).open(url, clock.now_ms)
        return shared
    if path is None:
        return MemoryCatalog(clock.now_ms)
    return await SqliteCatalog.open(path, clock.now_ms)


async def open_cluster(url: str | None, clock: Clock) -> Cluster | None:
    """Open the cluster that a URL names, to be joined and left; None for None.

    Raises what `open_store` raises.
    """
    if url is None:
        return None
    adapter, cluster = _adapter("cluster", url), None
    match SHARED[_scheme(url)][0]:
        case "postgres":
            cluster = await adapter.open(url)
        case "redis":
            cluster = adapter(url)
        case _:
            cluster = adapter(url, clock)
    opened: Cluster = cluster
    return opened


async def open_reader(url: str) -> OpenReader:
    """Open an existing store for reading only, also while other processes run it.

    Raises `InvalidInput` for a store in memory.
    """
    if is_shared(url):
        return await open_store(url, SystemClock())
    path = sqlite_path(url)
    if path is None:
        raise InvalidInput("a memory store cannot be read from another process")
    return await SqliteReader.open(path)


async def store_facts(url: str) -> dict[str, Any]:
    """Return what can be said of an existing store, its durability among it.

    That of a store which another process has for itself is for that process to say. Raises what
    `open_store` raises.
    """
    facts: dict[str, Any] = {}
    if (path := sqlite_path(url)) is not None:
        reader = await SqliteReader.open(path)
        facts = dict(await reader.facts())
        await reader.close()
    try:
        opened = await open_store(url, SystemClock())
    except StoreLocked:
        return {**facts, "durability": "as /ready of its node says"}
    await opened.close()
    return {**facts, "durability": opened.durability}


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
    folder: Path,
    store: str,
    environment: Mapping[str, str],
    *,
    offers_setup: bool = False,
    catalog: str | None = None,
    cluster: str | None = None,
    name: str = "",
    url: str | None = None,
    patience_s: float = 0,
    on_waiting: Callable[[str], None] = lambda why: None,
) -> AsyncIterator[tuple[Service, str | None]]:
    """Open a server's stores, and give the service with a new admin key if there was none.

    If it `offers_setup`, no key is made: the service has a link then, by which a person makes it.

    The catalog and the cluster are where the store is, if they are not named and others may share
    it; then `PERDURE_KEY_PEPPER` has to be the same for all, who know this server by `name` and
    `url`. Else the catalog and the pepper are in `folder`. A key that `environment` names
    (`PERDURE_BOOTSTRAP_KEY` or `NORNS_DEFAULT_TENANT_KEY`) becomes an admin key of the default
    tenant instead of a new one. A store that does not answer is waited for `patience_s` seconds,
    and `on_waiting` told why. Raises `StoreLocked`, `StoreRefused`, `InvalidInput`, and
    `Unavailable` for a store that does not answer then.
    """
    from perdure.server.egress import egress_for
    from perdure.server.keys import Keyring
    from perdure.server.sealing import Seal
    from perdure.server.service import Service
    from perdure.server.setup import SetupLink, ensure_tenant

    clock, fresh = SystemClock(), secret_bytes
    catalog, cluster = _beside(folder, store, catalog, cluster)
    given_pepper = _given_pepper(environment, is_shared(catalog))
    if not is_shared(catalog):
        await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        opened = await _open_patiently(store, clock, patience_s, on_waiting)
        stack.push_async_callback(opened.close)
        entries = await open_catalog(catalog, clock)
        stack.push_async_callback(entries.close)
        pepper = await _pepper(folder, given_pepper, entries, shared=is_shared(catalog))
        keys = Keyring(entries, pepper, fresh)
        tenant = await ensure_tenant(entries, DEFAULT_TENANT)
        made = await _first_key(keys, tenant, environment, offers_setup)
        together = await open_cluster(cluster, clock)
        if together is not None:
            stack.push_async_callback(together.leave)
        service = Service(
            opened,
            entries,
            keys,
            Seal(pepper, fresh),
            clock,
            LogTelemetry(),
            fresh,
            egress=egress_for(environment),
            cluster=together,
            name=name,
            url=url,
            operator=DEFAULT_TENANT,
        )
        if offers_setup:
            service.setup = await SetupLink.offer(tenant, entries, keys, clock, fresh)
        yield service, made


def _given_pepper(environment: Mapping[str, str], shared: bool) -> str | None:
    given = environment.get("PERDURE_KEY_PEPPER")
    if shared and not given:
        raise InvalidInput(
            "servers that share a catalog need the same pepper, with which it keeps keys and "
            "secrets: set PERDURE_KEY_PEPPER to one text of 32 characters or more for all of them"
        )
    return given


async def _open_patiently(
    store: str, clock: Clock, patience_s: float, on_waiting: Callable[[str], None]
) -> OpenStore:
    end_ms = clock.monotonic_ms() + patience_s * 1000
    while True:
        try:
            return await open_store(store, clock)
        except Unavailable as why:
            if not is_shared(store) or clock.monotonic_ms() >= end_ms:
                raise
            on_waiting(str(why))
        passed = asyncio.Event()
        clock.call_later(OPENED_EVERY_MS, passed.set)
        await passed.wait()


async def _first_key(
    keys: Keyring, tenant: TenantCatalog, environment: Mapping[str, str], offers_setup: bool
) -> str | None:
    """Adopt the key that the environment names, or make one if there is none and return it."""
    given = next((environment[name] for name in KEY_VARIABLES if environment.get(name)), None)
    if given is not None:
        await keys.adopt(tenant, given)
    elif not offers_setup and not await tenant.list(Key, limit=1):
        return (await keys.issue(tenant, "admin", name="first start")).token
    return None


def _beside(
    folder: Path, store: str, catalog: str | None, cluster: str | None
) -> tuple[str, str | None]:
    """Return where the catalog and the cluster of a server with this store are."""
    sqlite_path(store)
    if not is_shared(store):
        if cluster is not None or (catalog is not None and is_shared(catalog)):
            raise InvalidInput(
                "a store that one process has for itself cannot have a catalog or a cluster that "
                "others share: name a --store that they share as well, or neither"
            )
        return catalog or f"{SQLITE_PREFIX}{folder / 'catalog.db'}", None
    catalog, cluster = catalog or store, cluster or store
    for name, url in (("catalog", catalog), ("cluster", cluster)):
        if not is_shared(url):
            sqlite_path(url)
            raise InvalidInput(
                f"servers that share a store share its {name} too: give a --{name} that they can "
                "share, or none, and it is where the store is"
            )
    return catalog, cluster


async def _pepper(folder: Path, given: str | None, catalog: Catalog, *, shared: bool) -> bytes:
    """Return what keys are hashed and secrets sealed with, if it is what the catalog's were."""
    from perdure.adapters.catalog.pepper import open_pepper
    from perdure.server.sealing import check_pepper
    from perdure.server.setup import has_keys

    if not shared:
        if not given and not (folder / "pepper").exists() and await has_keys(catalog):
            raise StoreRefused(
                f"{folder / 'pepper'} is missing, and without it none of the keys in the catalog "
                "is known: restore it from a backup, or give it in PERDURE_KEY_PEPPER"
            )
        return open_pepper(folder / "pepper", given, secret_bytes)
    pepper = open_pepper(folder / "pepper", given, secret_bytes)
    await check_pepper(catalog, pepper)
    return pepper


class Runtime:
    """Agents, a store, and a worker in this process.

    `async with Runtime("sqlite:///perdure.db", agents=[support]) as runtime:` yields the running
    node: `runtime.send(...)`, `runtime.run(id)`, `runtime.cancel(id)`, `runtime.reply(id, text)`.
    What was unfinished when the last process ended goes on by itself. On leaving, the node drains:
    it cuts every session at its next commit and lets it go. With `recover=False` nothing goes on by
    itself: only sessions that are told something run. `credential_providers` resolve references of
    other schemes than `env` and `file`, by scheme.

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
    ) -> None:
        self.store = store
        self.agents = _by_name(agents)
        self.tenant = tenant
        self._settings = settings
        self._clock = clock or SystemClock()
        self._telemetry = telemetry or LogTelemetry()
        self._recover = recover
        self._credential_providers = providers(credential_providers or {})
        self._held = AsyncExitStack()
        self._node: Node | None = None
        sqlite_path(store)
        self._cluster = _beside(Path(), store, None, cluster)[1]
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
            node = Node(
                opened,
                [worker],
                Registered({name: agent.definition for name, agent in self.agents.items()}),
                self._clock,
                self._telemetry,
                tenant=self.tenant,
                settings=self._settings,
                cluster=cluster,
                card=lambda: self._card,
            )
            await node.start(recover=self._recover)
            self._node, self._held = node, stack.pop_all()
        return node

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
