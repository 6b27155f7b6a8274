"""What waits for peers that read slowly: bounded for each, and for all together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.server.outgoing import Outgoing, Room


class Peer:
    """A peer of a socket that takes frames when it is let."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.taken: list[str] = []
        self.closed_with: int | None = None

    async def send_text(self, frame: str) -> None:
        """Take a frame."""
        await self.reads.wait()
        self.taken.append(frame)

    async def close(self, code: int) -> None:
        """Be hung up on."""
        self.closed_with = code


def outgoing(room: Room, chars_max: int = 100) -> tuple[Outgoing, Peer]:
    """Return what is on its way to a peer that reads nothing yet."""
    peer: Any = Peer()
    return Outgoing(peer, chars_max, room), peer


async def test_frames_arrive_in_their_order_and_leave_the_room_as_it_was() -> None:
    room = Room(1_000)
    out, peer = outgoing(room)
    for number in range(10):
        out.send(f"frame {number}")
    assert room.chars == 1_000 - 70
    peer.reads.set()
    out.send("the last")
    out.close(1012)
    out.send("too late")
    await out.writer
    assert peer.taken == [*(f"frame {number}" for number in range(10)), "the last"]
    assert (peer.closed_with, room.chars) == (1012, 1_000)


@pytest.mark.parametrize(
    ("frames", "let_go"),
    [([60, 40], False), ([60, 41], True), ([500], False), ([500, 1], True), ([1_001], True)],
)
async def test_a_slow_peer_has_so_much_or_a_single_frame(frames: list[int], let_go: bool) -> None:
    """Beyond that it is let go, and what waited for it is dropped."""
    room = Room(1_000)
    out, peer = outgoing(room)
    for chars in frames:
        out.send("x" * chars)
    assert out.closing is let_go
    assert room.chars == 1_000 - (0 if let_go else sum(frames))
    out.close(1012)
    peer.reads.set()
    await out.writer
    assert len(peer.taken) == (0 if let_go else len(frames))
    assert peer.closed_with == 1012


async def test_all_slow_peers_share_one_room() -> None:
    """Nobody gets more of it than is left, so that there is always some for another one."""
    room = Room(1_000)
    slow = [outgoing(room, chars_max=400) for _ in range(50)]
    for _ in range(40):
        for out, _ in slow:
            out.send("x" * 10)
            assert room.chars > 0
    good, peer = outgoing(room)
    peer.reads.set()
    good.send("hi")
    for out in (good, *(out for out, _ in slow)):
        out.close(1012)
    for _, one in slow:
        one.reads.set()
    await asyncio.gather(good.writer, *(out.writer for out, _ in slow))
    assert (peer.taken, room.chars) == (["hi"], 1_000)


async def test_a_peer_that_is_cut_off_leaves_nothing() -> None:
    room = Room(1_000)
    out, _ = outgoing(room)
    out.send("one")
    out.send("two")
    await asyncio.sleep(0)
    out.writer.cancel()
    await asyncio.gather(out.writer, return_exceptions=True)
    assert room.chars == 1_000
