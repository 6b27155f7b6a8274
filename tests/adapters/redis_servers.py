"""One Redis for all tests of a process, each with a prefix of its own."""

from __future__ import annotations

import atexit
from functools import cache

import pytest

from perdure.testing.servers import ServerMissing
from perdure.testing.servers.redis import RedisServer


@cache
def shared() -> RedisServer:
    """Return the server, started at the first call and stopped with the process."""
    server = started()
    atexit.register(server.stop)
    return server


def started(**settings: str) -> RedisServer:
    """Start a server, or skip the test where there is none."""
    try:
        return RedisServer.start(**settings)
    except ServerMissing as error:
        pytest.skip(f"no server: {error}")
