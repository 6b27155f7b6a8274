"""The port that an application is served on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from perdure.core.errors import InvalidInput
from perdure.server.serving import listen


async def test_small_frames_are_sent_at_once() -> None:
    """A frame that waits for the acknowledgement of the one before it costs 40 ms a step."""
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    listener = listen("127.0.0.1", 0)
    async with await asyncio.start_server(
        lambda reader, writer: accepted.put_nowait(writer), sock=listener
    ):
        _, ours = await asyncio.open_connection(*listener.getsockname())
        theirs = await accepted.get()
        taken = theirs.get_extra_info("socket")
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for writer in (ours, theirs):
            writer.close()
            await writer.wait_closed()


def test_a_port_that_is_taken_is_named() -> None:
    """With what to do about it."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port {port} of 127.0.0.1 cannot be had.*--port"):
            listen("127.0.0.1", port)
