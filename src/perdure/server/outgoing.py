"""What is on its way to the peers of sockets, and how much of it may wait for slow ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from perdure.server.turns import Turn
from perdure.wire.frames import CLOSE_TRY_AGAIN

WORKER_CHARS_MAX: Final = 16 * 1024 * 1024
CLIENT_CHARS_MAX: Final = 256 * 1024
"""What may wait for one peer that reads slowly, or a single frame that is longer.

Beyond that the peer is let go. It comes back, and reads what it missed in the log.
"""

ALL_CHARS_MAX: Final = 64 * 1024 * 1024


class Room:
    """The room that all slow peers share: none gets more of it than it leaves to the others."""

    def __init__(self, chars: int) -> None:
        self.chars = chars

    def has(self, chars: int) -> bool:
        """Say whether so much may wait for one peer."""
        return chars <= self.chars


ROOM: Final = Room(ALL_CHARS_MAX)
"""That of this process: it is the memory of a process that has to last."""


class Outgoing:
    """What is on its way to a peer. Sending never waits; the peer's pace is its own trouble."""

    def __init__(self, socket: WebSocket, chars_max: int, room: Room = ROOM) -> None:
        self._socket = socket
        self._chars_max = chars_max
        self._room = room
        self._frames: deque[str] = deque()
        self._chars = 0
        self._came = asyncio.Event()
        self._close_with: int | None = None
        self.writer = asyncio.ensure_future(self._write())

    @property
    def closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._close_with is not None

    def send(self, frame: str) -> None:
        """Send a frame, after those that were sent before."""
        if self.closing:
            return
        chars = self._chars + len(frame)
        if not self._room.has(chars) or (self._chars and chars > self._chars_max):
            self._drop()
            self.close(CLOSE_TRY_AGAIN)
            return
        self._count(len(frame))
        self._frames.append(frame)
        self._came.set()

    def close(self, code: int) -> None:
        """Close the connection once what was sent is out."""
        if self._close_with is None:
            self._close_with = code
            self._came.set()

    async def _write(self) -> None:
        try:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                while self._frames or not self.closing:
                    await self._came.wait()
                    self._came.clear()
                    turn = Turn()
                    while self._frames:
                        await self._send(self._frames.popleft())
                        await turn.pause()
                assert self._close_with is not None
                await self._socket.close(self._close_with)
        finally:
            self._drop()

    async def _send(self, frame: str) -> None:
        try:
            await self._socket.send_text(frame)
        finally:
            self._count(-len(frame))

    def _drop(self) -> None:
        self._count(-sum(map(len, self._frames)))
        self._frames.clear()

    def _count(self, chars: int) -> None:
        self._chars += chars
        self._room.chars -= chars
