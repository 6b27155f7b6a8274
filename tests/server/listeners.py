"""Programs that listen on the loopback: a canary, and a receiver of webhooks with a script."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

Reply = Callable[[bytes], bytes | None]


class Listener:
    """What came in, connection by connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.requests: list[bytes] = []


@contextlib.asynccontextmanager
async def listening(reply: Reply | None = None) -> AsyncIterator[Listener]:
    """Listen on a free port of 127.0.0.1; answer each request with what `reply` makes of it.

    Without an answer (None) the connection stays open and silent.
    """
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listener.connections += 1
        with contextlib.suppress(OSError, EOFError):
            request = await _request(reader)
            listener.requests.append(request)
            answer = reply(request) if reply else b"HTTP/1.1 200 OK\r\n\r\n"
            if answer is None:
                await silent.wait()
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    listener = Listener(server.sockets[0].getsockname()[1])
    try:
        yield listener
    finally:
        silent.set()
        server.close()
        await asyncio.sleep(0)


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return head + await reader.readexactly(int(length))


def parts(request: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of a request."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    return [(name, value) for name, _, value in lines], body


def status(code: int, **headers: str) -> bytes:
    """An answer without a body; `retry_after="1"` is the header retry-after."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {code} Said", *lines, "", ""]).encode()
