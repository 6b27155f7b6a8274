"""A transport that gathers what is written within one turn of the event loop.

A worker is given dozens of tasks in one turn, each a frame of its own, and a write to a socket
costs as much as all else that is done to send a frame.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Corked:
    """What `transport` is, except that it writes a little later, and once."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write when this turn of the event loop is over."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        """Close once everything that was written is out."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.write(b"".join(pieces))
