"""The slow readers of `bench.slow_readers`: each takes one byte a second of what it asked for.

A small receive buffer of their own makes the server notice at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

from bench.sockets import address

RECEIVE_BUFFER_BYTES = 4_096
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
JOIN = b'["1","1","agent:1","phx_join",{}]'


def asks(kind: str, key: str, run: str) -> str:
    """Return the head of what a reader asks for."""
    if kind == "agent":
        target, more = f"/socket/websocket?vsn=2.0.0&token={key}", UPGRADE
    else:
        media = "text/event-stream" if kind == "stream" else "application/json"
        target = f"/api/v1/runs/{run}/events"
        more = f"Accept: {media}\r\nAuthorization: Bearer {key}\r\n"
    return f"GET {target} HTTP/1.1\r\nHost: bench\r\n{more}\r\n"


def frame(text: bytes) -> bytes:
    """Return a short text frame, masked with zeros."""
    return bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text


async def read(number: int, port: int, kind: str, key: str, run: str) -> None:
    """Ask, and read as slowly as can be until the server has had enough."""
    loop = asyncio.get_running_loop()
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        line.setblocking(False)
        if (source := address(number)) is not None:
            line.bind(source)
        await loop.sock_connect(line, ("127.0.0.1", port))
        await loop.sock_sendall(line, asks(kind, key, run).encode())
        if kind == "agent":
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await loop.sock_recv(line, 1)
            await loop.sock_sendall(line, frame(JOIN))
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(line, 1):  # noqa: ASYNC110  it is the pace that counts
                await asyncio.sleep(1)


async def main() -> None:
    """Read until whoever started this process has gone."""
    port, key, kind, run, count = sys.argv[1:]
    readers = [
        asyncio.ensure_future(read(number, int(port), kind, key, run))
        for number in range(int(count))
    ]
    await asyncio.to_thread(sys.stdin.read)
    print(sum(reader.done() for reader in readers), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
