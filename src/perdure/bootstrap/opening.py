"""Stores, catalogs and clusters by their URLs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import apsw

from perdure.adapters.clock import SystemClock
from perdure.adapters.stores.memory import MemoryStore
from perdure.adapters.stores.sqlite import SqliteReader, SqliteStore
from perdure.core.errors import InvalidInput, StoreLocked
from perdure.ports.catalog import Catalog
from perdure.ports.clock import Clock
from perdure.ports.cluster import Cluster
from perdure.ports.session_store import SessionReader, SessionStore

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


def policy_engine(name: Literal["cedar", "prover"]) -> Any:
    """Return the module of `perdure.adapters.policy` with an engine. Raises `InvalidInput`."""
    try:
        return import_module(f"perdure.adapters.policy.{name}")
    except ModuleNotFoundError:
        extra = {"cedar": "policy", "prover": "prove"}[name]
        raise InvalidInput(f"that needs an engine: pip install 'perdure[{extra}]'") from None


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


def beside(
    folder: Path, store: str, catalog: str | None, cluster: str | None
) -> tuple[str, str | None]:
    """Return where the catalog and the cluster of a server with this store are.

    Raises `InvalidInput` if they cannot be used together.
    """
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
