"""What only shows over a real connection: how it is read, how slowly, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from perdure.server import patience, serving
from perdure.server.patience import PatientProtocol
from tests.server.house import House, furnished, house

RECEIVE_BUFFER_BYTES = 16_384
LINE_BYTES = 8_192
"""A client takes in twice as much before anybody asks it."""


class Line:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, text: str) -> None:
        """Send bytes."""
        self.writer.write(text.encode())
        await self.writer.drain()

    async def hear(self) -> str:
        """Return everything to the end of the connection."""
        return (await asyncio.wait_for(self.reader.read(), 5)).decode()

    async def answer(self) -> str:
        """Return the head of an answer."""
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode()


@asynccontextmanager
async def lines(h: House, count: int = 1) -> AsyncIterator[list[Line]]:
    """Serve a house over a port, and open connections to it."""
    config = uvicorn.Config(
        h.app, port=0, lifespan="off", log_config=None, http=PatientProtocol, ws="none"
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    listener = serving.listen("127.0.0.1", 0)
    await server.startup([listener])
    opened = []
    for _ in range(count):
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        near.connect(listener.getsockname())
        opened.append(Line(*await asyncio.open_connection(sock=near, limit=LINE_BYTES)))
    try:
        yield opened
    finally:
        for line in opened:
            line.writer.close()
        h.service.leaving.begin()
        await server.shutdown([listener])


def request(h: House, path: str, *headers: str) -> str:
    """Return a request with a key."""
    key = h.keys["acme", "admin"]
    said = [f"GET /api/v1{path} HTTP/1.1", "Host: house", f"Authorization: Bearer {key}", *headers]
    return "\r\n".join(said) + "\r\n\r\n"


async def test_headers_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first ones nor later ones; who is answered, or has asked nothing since, stays."""
    monkeypatch.setattr(patience, "HEADER_SECONDS_MAX", 0.05)
    async with house() as h, lines(h, 4) as (silent, slow, later, good):
        await slow.say("GET /health HTTP/1.1\r\nHost: ho")
        for line in (later, good):
            await line.say(request(h, "/agents"))
            assert "200 OK" in await line.answer()
        await later.say("GET /hea")
        for line in (silent, slow):
            assert await line.hear() == ""
        assert "HTTP/1.1" not in await later.hear()
        await good.say(request(h, "/agents"))
        assert '{"data":[]}' in (await good.reader.readuntil(b"\r\n\r\n")).decode()


async def test_headers_without_an_end() -> None:
    """400, and the connection is closed."""
    async with house() as h, lines(h) as (line,):
        await line.say("GET /health HTTP/1.1\r\nHost: house\r\n" + "X: " + "y" * 100_000)
        assert (await line.hear()).startswith("HTTP/1.1 400")


async def test_what_is_no_http() -> None:
    """400, whatever it is."""
    for text in ("\x00\x01\x02\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/x\r\n\r\n", "{}\r\n\r\n"):
        async with house() as h, lines(h) as (line,):
            await line.say(text)
            assert (await line.hear()).startswith("HTTP/1.1 400")


async def test_a_refused_body_is_not_read() -> None:
    """The answer comes at once, though the client has sent next to nothing of it."""
    async with house() as h, lines(h) as (line,):
        text = request(h, "/agents", "Content-Length: 9999999999").replace("GET", "POST")
        await line.say(text + "{")
        assert (await line.answer()).startswith("HTTP/1.1 413")


async def test_a_reader_that_takes_nothing_holds_nobody_up() -> None:
    """Streams that nobody reads, and others that are asked meanwhile."""
    async with house() as h:
        things = await furnished(h)
        async with lines(h, 20) as (good, *stuck):
            path = f"/runs/{things['asking']}/events"
            for line in stuck:
                await line.say(request(h, path, "Accept: text/event-stream"))
            await good.say(request(h, path, "Accept: text/event-stream"))
            text = (await good.reader.readuntil(b"waiting_for_user")).decode()
            assert "text/event-stream" in text
            assert (await h.ask("GET", "/agents")).status_code == 200


async def test_who_does_not_take_what_he_asked_for_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who takes it, however slowly, gets it whole; and nothing is left of either."""
    monkeypatch.setattr(patience, "TAKE_SECONDS", 1.0)
    monkeypatch.setattr(patience, "TAKE_BYTES_MIN", 1)
    async with house() as h, lines(h, 2) as (deaf, slow):
        for line in (deaf, slow):
            await line.say("GET /openapi.json HTTP/1.1\r\nHost: house\r\n\r\n")
        whole = int((await slow.answer()).partition("content-length: ")[2].split()[0])
        assert patience.SLOW_READERS.bytes > 0
        taken = 0
        while taken < whole:
            await asyncio.sleep(0.02)
            piece = await slow.reader.read(4_096)
            assert piece, "it was let go although it took what came"
            taken += len(piece)
        async with asyncio.timeout(10):
            while patience.SLOW_READERS.bytes:  # noqa: ASYNC110  nobody tells when it lets go
                await asyncio.sleep(0.02)
        assert 0 < len(await deaf.hear()) < whole


async def test_slow_readers_share_a_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is full, who waits longest is let go: who asks next is served."""
    async with house() as h, lines(h, 6) as deaf:
        monkeypatch.setattr(patience, "WAITING_BYTES_MAX", 1)
        for line in deaf:
            await line.say("GET /openapi.json HTTP/1.1\r\nHost: house\r\n\r\n")
            await line.answer()
        assert len(patience.SLOW_READERS._waiting) == 1
        assert await deaf[-1].reader.read(1)
