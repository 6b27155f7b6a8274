"""The proxy is the network that it is told to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from perdure.testing.nodes.proxy import Proxy

SECONDS_MAX = 5


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with itself."""
    with suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(line)
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Stand before a server that echoes lines."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, Proxy(host, port) as between:
        yield between


class Peer:
    """A client of the echo."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, proxy: Proxy) -> Peer:
        return cls(*await asyncio.open_connection(proxy.host, proxy.port))

    def say(self, line: str) -> None:
        self._writer.write(f"{line}\n".encode())

    async def hear(self) -> str:
        line = await asyncio.wait_for(self._reader.readline(), SECONDS_MAX)
        return line.decode().strip()

    def leave(self) -> None:
        self._writer.transport.abort()


@pytest.mark.parametrize("way", ["requests", "answers"])
async def test_what_is_held_comes_late_and_in_order(proxy: Proxy, way: str) -> None:
    peer = await Peer.of(proxy)
    peer.say("one")
    assert await peer.hear() == "one"
    held = getattr(proxy, way)
    held.hold()
    peer.say("two")
    await asyncio.wait_for(held.caught(), SECONDS_MAX)
    peer.say("three")
    proxy.heal()
    assert [await peer.hear(), await peer.hear()] == ["two", "three"]
    peer.leave()


async def test_what_was_held_never_comes_once_it_is_severed(proxy: Proxy) -> None:
    peer = await Peer.of(proxy)
    proxy.requests.hold()
    peer.say("lost")
    await asyncio.wait_for(proxy.requests.caught(), SECONDS_MAX)
    proxy.sever()
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        await peer.hear()
    again = await Peer.of(proxy)
    again.say("found")
    assert await again.hear() == "found"
    again.leave()


async def test_nobody_comes_through_while_it_is_cut(proxy: Proxy) -> None:
    peer = await Peer.of(proxy)
    peer.say("one")
    assert await peer.hear() == "one"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await peer.hear()
    refused = await Peer.of(proxy)
    with pytest.raises(ConnectionResetError):
        await refused.hear()
    proxy.heal()
    again = await Peer.of(proxy)
    again.say("two")
    assert await again.hear() == "two"
    again.leave()


async def test_it_drips_and_delays(proxy: Proxy) -> None:
    loop, peer = asyncio.get_running_loop(), await Peer.of(proxy)
    proxy.answers.bytes_per_second = 100
    began = loop.time()
    peer.say("ten bytes")
    assert await peer.hear() == "ten bytes"
    assert loop.time() - began > 0.08
    proxy.heal()
    proxy.requests.delay_ms = 50
    began = loop.time()
    peer.say("late")
    assert await peer.hear() == "late"
    assert loop.time() - began > 0.045
    peer.leave()
