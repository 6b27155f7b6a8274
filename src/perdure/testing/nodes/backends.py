"""The stores that several nodes can share, each with servers of its own that may be hurt.

async with backend("postgres") as shared:
    space = shared.fresh()                    # an empty store
    url = shared.url(space)                   # straight to the servers
    url = shared.url(space, [("127.0.0.1", 4711)])
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from perdure.adapters.clock import SystemClock
from perdure.bootstrap import open_reader, open_store
from perdure.core.errors import InvalidInput

Address = tuple[str, int]
POSTGRES_SETTINGS = {"max_connections": "300"}


class Server(Protocol):
    """A server process that can be hurt."""

    def kill(self) -> None:
        """End it at once."""
        ...

    def start_again(self) -> None:
        """Start it with what it had."""
        ...

    def freeze(self) -> None:
        """Stop it where it is."""
        ...

    def thaw(self) -> None:
        """Let it go on."""
        ...


class Backend:
    """One kind of store, up and running."""

    name = ""
    shared = True
    """Whether several processes can use it at once."""

    def __init__(self) -> None:
        self.servers: list[Any] = []
        self.addresses: list[Address] = []

    def fresh(self) -> str:
        """Make an empty store and return what its URL is made with."""
        raise NotImplementedError

    def url(self, space: str, addresses: Sequence[Address] | None = None) -> str:
        """Return the URL of a store, by way of other addresses if they are given."""
        raise NotImplementedError

    def cluster_url(self, space: str, addresses: Sequence[Address] | None = None) -> str | None:
        """Return the URL of the cluster of those who share a store; None if nobody does."""
        return self.url(space, addresses) if self.shared else None

    async def open(self, space: str, addresses: Sequence[Address] | None = None) -> Any:
        """Open a store as a node does."""
        return await open_store(self.url(space, addresses), SystemClock())

    async def reader(self, space: str) -> Any:
        """Open a store only to read it."""
        return await open_reader(self.url(space))

    def forget(self, space: str) -> None:
        """Throw a store away."""

    def follow(self) -> None:
        """Start a server that has everything this one has before it is acknowledged."""
        raise NotImplementedError

    def fail_over(self) -> None:
        """Kill the server, and let the one that follows it take its place."""
        raise NotImplementedError

    def close(self) -> None:
        """End the servers that it runs now, whoever started them. Safe twice."""
        for server in self.servers:
            server.stop()


class SqliteBackend(Backend):
    """A file, which one process has to itself."""

    name = "sqlite"
    shared = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._numbers = itertools.count(1)

    def fresh(self) -> str:
        """Return the path of a file that is not there yet."""
        return str(self._folder / f"{next(self._numbers)}.db")

    def url(self, space: str, addresses: Sequence[Address] | None = None) -> str:
        """Return the URL of a file."""
        return f"sqlite:///{space}"


class PostgresBackend(Backend):
    """A PostgreSQL; each store is a database."""

    name = "postgres"

    def __init__(self, server: Any) -> None:
        super().__init__()
        self._server = self._standby = server
        self.servers = [server]
        self.addresses = [("127.0.0.1", server.port)]

    def fresh(self) -> str:
        """Make an empty database and return its name."""
        url: str = self._server.fresh_database()
        return url.rpartition("/")[2]

    def forget(self, space: str) -> None:
        """Drop a database: each has hundreds of files, which a recovery syncs."""
        self._server.sql(f"DROP DATABASE {space} WITH (FORCE)")

    def url(self, space: str, addresses: Sequence[Address] | None = None) -> str:
        """Return the URL of a database."""
        [(host, port)] = addresses or self.addresses
        return f"postgresql://postgres@{host}:{port}/{space}"

    def follow(self) -> None:
        """Start a synchronous standby."""
        self._standby = self._server.standby(POSTGRES_SETTINGS)
        self._server.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self._server.sql("SELECT pg_reload_conf()")

    def fail_over(self) -> None:
        """Kill the primary and promote the standby."""
        self._server.kill()
        self._server.stop()
        self._server = self._standby
        # It has the primary's settings, and would wait for a standby of its own.
        self._server.sql("ALTER SYSTEM RESET synchronous_standby_names")
        self._server.promote()
        self._server.sql("SELECT pg_reload_conf()")
        self.servers = [self._server]
        self.addresses = [("127.0.0.1", self._server.port)]


class RedisBackend(Backend):
    """A Redis that writes to its disk; each store has a prefix of its own."""

    name = "redis"

    def __init__(self, server: Any) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self.servers = [server]
        self.addresses = [("127.0.0.1", server.port)]

    def fresh(self) -> str:
        """Return a prefix that nobody has used."""
        return f"p{next(self._numbers)}"

    def url(self, space: str, addresses: Sequence[Address] | None = None) -> str:
        """Return the URL of a prefix."""
        [(host, port)] = addresses or self.addresses
        return f"redis://{host}:{port}/0?prefix={space}"


class NatsBackend(Backend):
    """A nats-server that syncs, or three that keep each other's streams."""

    name = "nats"

    def __init__(self, servers: Sequence[Any]) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self.servers = [*servers]
        self.name = "nats" if len(self.servers) == 1 else "three nats"
        self.addresses = [("127.0.0.1", server.port) for server in self.servers]

    def fresh(self) -> str:
        """Return a prefix that nobody has used."""
        return f"p{next(self._numbers)}"

    def url(self, space: str, addresses: Sequence[Address] | None = None) -> str:
        """Return the URL of a prefix."""
        hosts = ",".join(f"{host}:{port}" for host, port in addresses or self.addresses)
        return f"nats://{hosts}?name={space}&replicas={len(self.servers)}"

    def cluster_url(self, space: str, addresses: Sequence[Address] | None = None) -> str | None:
        """Return the URL of a cluster, which keeps nothing."""
        return self.url(space, addresses).partition("&")[0]


def _sqlite() -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="perdure-nodes-")


def _postgres() -> AbstractContextManager[Any]:
    from perdure.testing.servers.postgres import PostgresServer

    return PostgresServer.start(settings=POSTGRES_SETTINGS)


def _redis() -> AbstractContextManager[Any]:
    from perdure.testing.servers.redis import RedisServer

    return RedisServer.start(appendonly="yes", appendfsync="always")


def _nats() -> AbstractContextManager[Any]:
    from perdure.testing.servers.nats import NatsServer

    return NatsServer.start()


def _three_nats() -> AbstractContextManager[Any]:
    from perdure.testing.servers.nats import NatsCluster

    return NatsCluster.start()


BACKENDS: Mapping[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[Any], Backend]]]
BACKENDS = {
    "sqlite": (_sqlite, lambda folder: SqliteBackend(Path(folder))),
    "postgres": (_postgres, PostgresBackend),
    "redis": (_redis, RedisBackend),
    "nats": (_nats, lambda server: NatsBackend([server])),
    "three nats": (_three_nats, lambda cluster: NatsBackend(cluster.members)),
}


@asynccontextmanager
async def backend(name: str) -> AsyncIterator[Backend]:
    """Start the servers of a kind of store. Raises `ServerMissing`, `InvalidInput`."""
    if name not in BACKENDS:
        raise InvalidInput(f"{name!r} is no store here; they are: {', '.join(BACKENDS)}")
    start, of = BACKENDS[name]
    context = await asyncio.to_thread(start)
    with context as started:
        running = of(started)
        try:
            yield running
        finally:
            running.close()
