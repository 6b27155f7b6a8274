"""A TCP proxy between a node and its store, which can be any bad network.

    async with Proxy("127.0.0.1", 5432) as proxy:
        ...                       # connect to proxy.host, proxy.port
        proxy.answers.hold()      # requests arrive, their answers do not
        proxy.heal()

What is held is kept and comes late, as TCP does it; what must never come is ended by `sever`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

CHUNK_BYTES = 65_536
BUFFER_BYTES_MAX = 4 * 1024 * 1024
ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing sends a reset."""


class Direction:
    """One way through the proxy, for all its connections."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._waiting = asyncio.Event()
        self.delay_ms = 0
        self.bytes_per_second = 0
        """How fast it drips; 0 for as fast as it can."""

    def hold(self) -> None:
        """Let nothing through from now on, and keep it."""
        self._waiting.clear()
        self._open.clear()

    def heal(self) -> None:
        """Let everything through, what was kept first."""
        self.delay_ms = self.bytes_per_second = 0
        self._open.set()

    async def caught(self) -> None:
        """Wait until something is held."""
        await self._waiting.wait()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes until one end is closed."""
        while data := await reader.read(CHUNK_BYTES):
            if self.delay_ms:
                await asyncio.sleep(self.delay_ms / 1000)
            if not self._open.is_set():
                self._waiting.set()
                await self._open.wait()
            if self.bytes_per_second:
                await self._drip(data, writer)
            else:
                writer.write(data)
                await writer.drain()

    async def _drip(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        for at in range(len(data)):
            if not self.bytes_per_second:
                writer.write(data[at:])
                break
            writer.write(data[at : at + 1])
            await asyncio.sleep(1 / self.bytes_per_second)
        await writer.drain()


class Proxy:
    """Listens on a free port of the loopback and carries every connection to one address."""

    host = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self._far = (host, port)
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.requests = Direction()
        self.answers = Direction()
        self.refuses = False
        """Whether new connections are reset at once."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, self.host, self.port, limit=BUFFER_BYTES_MAX
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.sever()
        carrying = [*self._carrying]
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    def hold(self) -> None:
        """Be half-open: connections stay, and nothing passes either way."""
        self.requests.hold()
        self.answers.hold()

    def cut(self) -> None:
        """Reset every connection, and every one that is tried from now on."""
        self.refuses = True
        self.sever()

    def sever(self) -> None:
        """Reset every connection; new ones are carried. What was held never arrives."""
        for writer in tuple(self._writers):
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, ABORT
                )
            writer.transport.abort()
        for task in self._carrying:
            task.cancel()

    def lead_to(self, host: str, port: int) -> None:
        """Carry what comes from now on to another address; what there was is reset."""
        self._far = (host, port)
        self.sever()

    def heal(self) -> None:
        """Be a good network again; what was held arrives now."""
        self.refuses = False
        self.requests.heal()
        self.answers.heal()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            if self.refuses:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, ABORT
                )
                return
            far_reader, far = await asyncio.open_connection(*self._far, limit=BUFFER_BYTES_MAX)
            self._writers.add(far)
            await _until_one_ends(
                self.requests.pump(reader, far), self.answers.pump(far_reader, writer)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, far):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()
            self._carrying.discard(task)


async def _until_one_ends(*pumps: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
