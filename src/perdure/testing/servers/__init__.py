"""Servers that tests start for themselves: loopback only, a folder of their own, gone afterwards.

Each is a class with `start()`, `url`, `pid`, `kill()`, `freeze()`, `thaw()`, `start_again()` and
`stop()`, and a context manager. They need no root and work as root.
"""

from __future__ import annotations

import socket


class ServerMissing(Exception):
    """The program that a test wanted is not on this machine; the message says what to install."""


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
