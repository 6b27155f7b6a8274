"""A tap on a line: it passes bytes on both ways, and reads, changes or withholds WebSocket frames.

The far ends are unmodified, so this is where a test sees and disturbs what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from typing import Any, Literal

Side = Literal["worker", "node"]
Frame = list[Any]
Change = Callable[[Side, Frame], Frame | None]
TEXT = 1


class Tap:
    """`heard` is who said what; `change` is asked about each frame, and None withholds it."""

    def __init__(self, host: str, port: int) -> None:
        self.heard: list[tuple[Side, Frame]] = []
        self.closed_with: list[tuple[Side, int]] = []
        self.change: Change = lambda side, frame: frame
        self.url = ""
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Cut all lines, and listen no more."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cut all lines without a word."""
        for writer in self._writers:
            writer.transport.abort()

    def said(self, side: Side, event: str) -> list[Any]:
        """Return the payloads of a side's frames of this event, in order."""
        return [frame[4] for who, frame in self.heard if who == side and frame[3] == event]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            near = reader, writer
            far = await asyncio.open_connection(*self._target)
            self._writers |= {writer, far[1]}
            head = await reader.readuntil(b"\r\n\r\n")
            far[1].write(head)
            upgraded = b"upgrade: websocket" in head.lower()
            if upgraded:
                writer.write(await far[0].readuntil(b"\r\n\r\n"))
            carry = self._frames if upgraded else self._bytes
            await asyncio.gather(carry("worker", near[0], far[1]), carry("node", far[0], near[1]))

    async def _bytes(
        self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while some := await reader.read(65536):
                writer.write(some)
        writer.close()

    async def _frames(
        self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                opcode, payload = await _read(reader)
                if opcode == TEXT:
                    frame = json.loads(payload)
                    self.heard.append((side, frame))
                    frame = self.change(side, frame)
                    if frame is None:
                        continue
                    payload = json.dumps(frame).encode()
                elif opcode == 8 and payload:
                    self.closed_with.append((side, int.from_bytes(payload[:2], "big")))
                writer.write(_frame(opcode, payload, masked=side == "worker"))
        writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read a frame that is whole: neither side of these tests sends fragments or compresses."""
    first, second = await reader.readexactly(2)
    assert first & 0xF0 == 0x80, "a fragment, or compressed"
    size = second & 0x7F
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
    return first & 0x0F, _masked(await reader.readexactly(size), mask)


def _frame(opcode: int, payload: bytes, *, masked: bool) -> bytes:
    size, bit = len(payload), 0x80 if masked else 0
    head = bytes([0x80 | opcode])
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([bit | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    whole = (mask * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")
    return number.to_bytes(len(payload), "big")
