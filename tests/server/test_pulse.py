"""A pulse: when it beats, who can hurry it, and what ends it."""

from __future__ import annotations

import asyncio

from perdure.server.pulse import AFTER_FAILURE_MS, Pulse
from perdure.testing.clock import FakeClock
from tests.server.mortal import Notes


class Heart:
    """A pulse whose beats take as long as they are told to, and say when the next one comes."""

    def __init__(self) -> None:
        self.clock = FakeClock(0)
        self.notes = Notes()
        self.beats: list[int] = []
        self.every_ms = 1_000
        self.fails = False
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.pulse = Pulse("heart", self._beat, self.clock, self.notes)

    async def _beat(self) -> int:
        self.beats.append(self.clock.now_ms())
        await self.may_end.wait()
        if self.fails:
            raise ValueError("a murmur")
        return self.clock.now_ms() + self.every_ms

    async def after(self, delay_ms: int) -> None:
        """Let time pass, and let what it sets off come to rest."""
        self.clock.advance(delay_ms)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_it_beats_when_the_last_beat_said() -> None:
    """The first time at once."""
    heart = Heart()
    await heart.after(5_000)
    heart.pulse.start()
    for _ in range(5):
        await heart.after(500)
    await heart.pulse.stop()
    await heart.after(5_000)
    assert heart.beats == [5_500, 6_500, 7_500]


async def test_it_can_be_hurried_and_not_held_up() -> None:
    """The earliest time that anybody asked for counts; one that has passed is now."""
    heart = Heart()
    heart.pulse.start()
    await heart.after(0)
    heart.pulse.nudge(800)
    heart.pulse.nudge(200)
    heart.pulse.nudge(900)
    await heart.after(200)
    heart.pulse.nudge(-1)
    await heart.after(0)
    assert heart.beats == [0, 200, 200]
    await heart.after(999)
    assert len(heart.beats) == 3
    await heart.pulse.stop()


async def test_there_is_one_beat_at_a_time() -> None:
    """A nudge in the middle of one is another beat after it."""
    heart = Heart()
    heart.may_end.clear()
    heart.pulse.start()
    await heart.after(0)
    heart.pulse.nudge(10)
    heart.pulse.nudge(20)
    await heart.after(50)
    assert heart.beats == [0]
    heart.may_end.set()
    await heart.after(0)
    await heart.after(0)
    assert heart.beats == [0, 50]
    await heart.pulse.stop()


async def test_a_beat_that_fails_is_told_and_followed_by_another() -> None:
    """A little later, so that what fails at once does not fail all the time."""
    heart = Heart()
    heart.fails = True
    heart.pulse.start()
    await heart.after(0)
    await heart.after(AFTER_FAILURE_MS - 1)
    assert heart.beats == [0]
    heart.fails = False
    await heart.after(1)
    await heart.after(1_000)
    assert heart.beats == [0, AFTER_FAILURE_MS, AFTER_FAILURE_MS + 1_000]
    said = {"service": "heart", "error": "ValueError('a murmur')"}
    assert heart.notes.said == [("service.failed", said)]
    await heart.pulse.stop()


async def test_a_stop_breaks_off_the_beat_that_is_under_way() -> None:
    """And nothing starts it again."""
    heart = Heart()
    heart.may_end.clear()
    heart.pulse.start()
    await heart.after(0)
    await heart.pulse.stop()
    heart.pulse.nudge(0)
    await heart.after(10_000)
    assert (heart.beats, heart.notes.said, heart.clock.next_at_ms()) == ([0], [], None)
