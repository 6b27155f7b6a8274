"""Many sockets to one server from this process: what the rigs of `--served` have in common.

A socket here is as cheap as can be: one protocol object, no task. The addresses they come from are
several, so that no rig runs out of ports.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

SOCKETS_PER_ADDRESS = 1_000
CONNECTING_AT_ONCE = 100


class Line(asyncio.Protocol):
    """A WebSocket that joins a channel, answers pings, and notes the first thing that it hears."""

    def __init__(self, url: str, topic: str, payload: Any) -> None:
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._conn = ClientProtocol(parse_uri(url), max_size=None)
        self._join = ["1", "1", topic, "phx_join", payload]

    def connection_made(self, transport: Any) -> None:
        """Ask for the upgrade."""
        self._transport = transport
        self._conn.send_request(self._conn.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Join once the upgrade is granted; listen after that."""
        self._conn.receive_data(data)
        for event in self._conn.events_received():
            if isinstance(event, Response):
                self._say(self._join)
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._hear(bytes(event.data))
        if self._conn.handshake_exc is not None and not self.joined.done():
            self.joined.set_exception(self._conn.handshake_exc)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail whoever waits for the join."""
        if not self.joined.done():
            self.joined.set_exception(error or ConnectionError("the server hung up"))

    def beat(self) -> None:
        """Send a heartbeat."""
        self._say([None, "2", "phoenix", "heartbeat", {}])

    def _hear(self, data: bytes) -> None:
        if self.joined.done():
            if not self.heard.done():
                self.heard.set_result(None)
            return
        status = json.loads(data)[4].get("status")
        if status == "ok":
            self.joined.set_result(None)
        else:
            self.joined.set_exception(ConnectionError(f"not let in: {data.decode()}"))

    def _say(self, frame: Any) -> None:
        self._conn.send_text(json.dumps(frame).encode())
        self._flush()

    def _flush(self) -> None:
        self._transport.write(b"".join(self._conn.data_to_send()))


def address(number: int) -> tuple[str, int] | None:
    """Return where the socket with this number comes from; None leaves it to the system."""
    if not sys.platform.startswith("linux"):
        return None
    return f"127.0.0.{2 + number // SOCKETS_PER_ADDRESS}", 0


def allow_files() -> None:
    """Let this process have as many sockets as the system allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def opened(port: int, count: int, line: Callable[[int], Line]) -> Sequence[Line]:
    """Open so many sockets, and return them when all have joined."""
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def one(number: int) -> Line:
        async with room:
            _, made = await loop.create_connection(
                lambda: line(number), "127.0.0.1", port, local_addr=address(number)
            )
            await made.joined
            return made

    return await asyncio.gather(*(one(number) for number in range(count)))
