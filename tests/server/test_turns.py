"""Turns on the event loop: who has much to do lets others in between."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest

from perdure.server import turns
from perdure.server.turns import Turn, tuned


@pytest.mark.parametrize(("seconds", "seen"), [(-1.0, [1, 2, 3]), (60.0, [3])])
async def test_others_have_their_turn_when_one_is_over(
    seconds: float, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: to be let in costs as much as some of the work."""
    monkeypatch.setattr(turns, "TURN_SECONDS", seconds)
    done, noticed = 0, list[int]()

    async def other() -> None:
        while done < 3:
            await asyncio.sleep(0)
            noticed.append(done)

    watching = asyncio.ensure_future(other())
    await asyncio.sleep(0)
    turn = Turn()
    for _ in range(3):
        done += 1
        await turn.pause()
    await watching
    assert noticed == seen


def test_the_interpreter_is_tuned_only_while_a_server_runs() -> None:
    before = sys.getswitchinterval(), gc.get_threshold()
    with tuned():
        assert sys.getswitchinterval() == pytest.approx(turns.SWITCH_SECONDS)
        assert gc.get_threshold() == turns.COLLECTED_AFTER
    assert (sys.getswitchinterval(), gc.get_threshold()) == before
