"""Time limits, many to a timer."""

from __future__ import annotations

import pytest

from perdure.ports.deadlines import Deadlines
from perdure.testing.clock import FakeClock


class Patient:
    """Something with a limit; it writes down when it was ended."""

    def __init__(self, name: str, clock: FakeClock, ended: list[tuple[str, int]]) -> None:
        self.name, self.clock, self.ended = name, clock, ended

    def time_out(self) -> None:
        """End."""
        self.ended.append((self.name, self.clock.now_ms()))


@pytest.mark.parametrize(
    ("begun", "dropped", "expected"),
    [
        ([("a", 0, 100)], [], [("a", 100)]),
        ([("a", 0, 100)], ["a"], []),
        ([("a", 0, 100), ("b", 30, 100)], [], [("a", 100), ("b", 130)]),
        ([("a", 0, 100), ("b", 30, 100)], ["a"], [("b", 130)]),
        ([("a", 0, 100), ("b", 0, 100)], ["b"], [("a", 100)]),
        ([("a", 0, 100), ("b", 10, 20)], [], [("b", 30), ("a", 100)]),
    ],
)
def test_everybody_is_ended_in_time(
    begun: list[tuple[str, int, int]], dropped: list[str], expected: list[tuple[str, int]]
) -> None:
    """To the millisecond, whoever else has the same timer."""
    clock, ended = FakeClock(), list[tuple[str, int]]()
    start = clock.now_ms()
    deadlines = Deadlines(clock)
    queues = {}
    for name, at, timeout_ms in begun:
        clock.advance(start + at - clock.now_ms())
        patient = Patient(name, clock, ended)
        queues[name] = (deadlines.queue(timeout_ms), patient)
        queues[name][0].add(patient)
    for name in dropped:
        queue, patient = queues[name]
        queue.drop(patient)
        queue.drop(patient)
    clock.advance(1_000)
    assert ended == [(name, start + at) for name, at in expected]
    assert clock.next_at_ms() is None


def test_a_thousand_calls_that_end_at_once_set_one_timer() -> None:
    """The timer of the first serves those after it."""
    clock, ended = FakeClock(), list[tuple[str, int]]()
    queue = Deadlines(clock).queue(100)
    for _ in range(1_000):
        patient = Patient("quick", clock, ended)
        queue.add(patient)
        queue.drop(patient)
    assert clock.advance(10_000) == 1
    assert ended == []
