"""What is written within one turn of the event loop goes out at once, in its order."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.server.corked import Corked


class Wire:
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def write(self, data: bytes) -> None:
        """Note what is written."""
        self.did.append(data)

    def close(self) -> None:
        """Note that it is closed."""
        self.did.append("closed")

    def abort(self) -> None:
        """Note that it is cut."""
        self.did.append("cut")

    def is_closing(self) -> bool:
        """Say whether it is closed."""
        return not {"closed", "cut"}.isdisjoint(self.did)


async def test_a_turn_is_one_write() -> None:
    wire: Any = Wire()
    corked = Corked(wire)
    for turn in ("ab", "c"):
        for letter in turn:
            corked.write(letter.encode())
        assert not corked.is_closing()
        await asyncio.sleep(0)
    assert wire.did == [b"ab", b"c"]


async def test_closing_waits_for_what_was_written() -> None:
    wire: Any = Wire()
    corked = Corked(wire)
    corked.write(b"last words")
    corked.close()
    await asyncio.sleep(0)
    assert wire.did == [b"last words", "closed"]


async def test_nothing_is_written_to_what_was_cut() -> None:
    wire: Any = Wire()
    corked = Corked(wire)
    corked.write(b"too late")
    corked.abort()
    await asyncio.sleep(0)
    assert wire.did == ["cut"]
