"""The nats-servers that the tests of a process share, and names of their own for each test."""

from __future__ import annotations

import gc
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from perdure.adapters.nats.connection import Connection
from perdure.adapters.nats.log import Log
from perdure.adapters.nats.place import Place
from perdure.testing.nodes.proxy import Proxy
from perdure.testing.servers import ServerMissing
from perdure.testing.servers.nats import NatsCluster as Servers
from perdure.testing.servers.nats import NatsServer

_names = itertools.count(1)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """Return a server on which nobody but this process keeps anything."""
    try:
        server = NatsServer.start()
    except ServerMissing as missing:
        pytest.skip(f"no server: {missing}")
    with server:
        yield server


@pytest.fixture(scope="session")
def three_servers() -> Iterator[Servers]:
    """Return three servers that keep each other's streams."""
    try:
        servers = Servers.start()
    except ServerMissing as missing:
        pytest.skip(f"no server: {missing}")
    with servers:
        yield servers


def fresh_name() -> str:
    """Return a name that nobody has used on the server."""
    return f"t{next(_names)}"


def fresh(server: NatsServer, **settings: str | int) -> str:
    """Return a URL under which nothing is kept yet, in memory and in one shard."""
    given = {"name": fresh_name(), "storage": "memory", "shards": 1, **settings}
    return f"{server.url}?{'&'.join(f'{name}={value}' for name, value in given.items())}"


def forget_broken_connections() -> None:
    """Have collected what nats-py leaves open when a connection breaks while hands are shaken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def deafen_once_written(log: Log, proxy: Proxy) -> None:
    """Have no answers come through a proxy from when on a log writes something."""
    post = log._post

    def hold_and_post(key: str, addition: Any) -> None:
        log._post = post  # type: ignore[method-assign]
        proxy.answers.hold()
        post(key, addition)

    log._post = hold_and_post  # type: ignore[method-assign]


async def leader_of(servers: Servers, stream: str) -> NatsServer:
    """Return the server that leads a stream."""
    connection = await Connection.open(Place.parse(servers.url))
    try:
        found = await connection.api(f"STREAM.INFO.{stream}")
    finally:
        await connection.close()
    (leader,) = (one for one in servers.members if one.name == found["cluster"]["leader"])
    return leader
