"""The one nats-server that the tests of a process share, and names of their own for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from perdure.testing.servers import ServerMissing
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


def fresh_name() -> str:
    """Return a name that nobody has used on the server."""
    return f"t{next(_names)}"


def fresh(server: NatsServer, **settings: str | int) -> str:
    """Return a URL under which nothing is kept yet, in memory and in one shard."""
    given = {"name": fresh_name(), "storage": "memory", "shards": 1, **settings}
    return f"{server.url}?{'&'.join(f'{name}={value}' for name, value in given.items())}"
