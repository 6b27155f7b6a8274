"""What a worker holds stays within its bounds, whatever its server does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure.core.commands import Report, ReportToolBegin, ReportToolResult
from perdure.core.limits import RESULT_BYTES_MAX
from perdure.ports.workers import OnReport, OnText, Task
from perdure.testing.clock import FakeClock
from perdure.wire import table as t
from perdure.wire.registration import FEATURES, Registration
from perdure.wire.results import Result
from perdure.wire.server import ServerSide, WorkerJoins
from perdure.wire.worker import Acknowledged, WorkerSide
from perdure.worker import holding as h
from perdure.worker.holding import Holding
from tests.worker.node_played import llm_task, tool_task


class Executor:
    """Executes nothing: a test says how calls end."""

    def __init__(self) -> None:
        self.started: list[tuple[Task, OnReport, OnText]] = []
        self.cancelled: list[Task] = []
        self.proceeded: list[Task] = []

    def serves(self, task: Task) -> bool:
        """Take anything."""
        return True

    def start(self, task: Task, on_report: OnReport, on_text: OnText) -> None:
        """Note a call."""
        self.started.append((task, on_report, on_text))

    def proceed(self, task: Any) -> None:
        """Note that a call may act."""
        self.proceeded.append(task)

    def cancel(self, task: Task) -> None:
        """Note that a call is over."""
        self.cancelled.append(task)

    async def close(self) -> None:
        """Stop."""


class World:
    """A worker's holding, and a server that hears what it says."""

    def __init__(self, **options: Any) -> None:
        self.executor = Executor()
        given = {
            "concurrency_max": 100,
            "unacknowledged_max": 1_000,
            "unacknowledged_bytes_max": 2**30,
        }
        self.clock = FakeClock()
        self.holding = Holding(self.executor, lambda: None, self.clock, **given | options)
        self.side = WorkerSide(Registration(worker_id="w", tools=(), features=FEATURES))
        self.server = ServerSide("worker")
        (joins,) = self.server.feed(self.side.join().replace('"native",', ""))
        assert isinstance(joins, WorkerJoins)
        for frame in self.server.accept_join(joins):
            self.side.feed(frame)
        self.holding.connected()

    def take(self, *tasks: Any) -> None:
        """Give the worker tasks."""
        for task in tasks:
            self.holding.take(task)

    def end(self, number: int, content: Any = "done") -> None:
        """End the call that was started as this one."""
        task, on_report, _ = self.executor.started[number]
        report: Report = ReportToolResult(call=task.call, attempt=1, ok=True, content=content)
        on_report(task, report)

    def said(self, *, deaf: bool = False) -> list[Any]:
        """Return what the worker says now; a deaf server acknowledges nothing."""
        found: list[Any] = []
        for frame in self.holding.to_say(self.side):
            for thing in self.server.feed(frame):
                if not isinstance(thing, str):
                    found += [thing] if thing != t.Holds(()) else []
                elif not deaf:
                    for fact in self.side.feed(thing):
                        assert isinstance(fact, Acknowledged)
                        self.holding.acknowledged(fact.task_ids)
        return found

    def credit(self, *, deaf: bool = False) -> int:
        """Return how many tasks the worker grants now."""
        return sum(fact.tasks for fact in self.said(deaf=deaf) if isinstance(fact, t.Credit))


def test_credit_is_what_is_free() -> None:
    """Never more than it can take, not one by one, and never none as long as there is room."""
    world = World(concurrency_max=16)
    assert world.credit() == 16
    world.take(*(tool_task(f"T{n}") for n in range(15)))
    world.end(0)
    assert world.credit() == 0  # one place is free, and one is granted already
    world.end(1)
    assert world.credit() == 2
    world.take(*(tool_task(f"U{n}") for n in range(3)))
    world.end(2)
    assert world.credit() == 1


@pytest.mark.parametrize("bound", [{"unacknowledged_max": 2}, {"unacknowledged_bytes_max": 2_000}])
def test_a_server_that_acknowledges_nothing_gets_nothing_done(bound: dict[str, int]) -> None:
    """What waits for its word is bounded by the calls that were under way."""
    world = World(concurrency_max=4, **bound)
    world.credit()
    world.take(*(tool_task(f"T{n}") for n in range(4)))
    for number in range(4):
        world.end(number, "x" * 1_000)
    assert world.credit(deaf=True) == 0
    assert world.holding.unacknowledged() == 4
    world.holding.connected()
    assert len([fact for fact in world.said() if isinstance(fact, Result)]) == 4
    assert world.credit() == 4


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes; the oldest goes first."""
    monkeypatch.setattr(h, "REMEMBERED_RESULTS_MAX", 3)
    monkeypatch.setattr(h, "REMEMBERED_BYTES_MAX", 10_000)
    world = World()
    world.take(*(tool_task(f"T{n}") for n in range(5)))
    for number, content in enumerate(["a", "b", "c", "x" * 9_000, "y" * 9_000]):
        world.end(number, content)
    world.said()
    world.take(*(tool_task(f"T{n}") for n in range(5)))
    again = [task.call for task, *_ in world.executor.started[5:]]
    assert again == ["1.1.T0", "1.1.T1", "1.1.T2", "1.1.T3"]
    assert [fact.task_id for fact in world.said() if isinstance(fact, Result)] == ["T4"]


def test_who_comes_back_says_what_it_is_at() -> None:
    """First of all; and what waits to begin asks again, whatever became of the first time."""
    world = World()
    world.take(llm_task(), tool_task(), tool_task("T2", call="1.1.t1", effect="once"))
    task, on_report, _ = world.executor.started[2]
    on_report(task, ReportToolBegin(call="1.1.t1", attempt=1, worker="w"))
    world.end(1)
    assert t.Begin("T2") in world.said(deaf=True)
    world.holding.disconnected()
    world.holding.connected()
    assert world.said(deaf=True)[:2] == [t.Holds(("M1", "T2", "T1")), t.Begin("T2")]
    world.holding.proceed("T2")
    world.holding.proceed("T2")
    assert world.executor.proceeded == [task]
    world.holding.connected()
    assert t.Begin("T2") not in world.said()
    assert world.executor.cancelled == []


def test_a_result_that_a_killed_server_may_not_have_recorded_comes_again() -> None:
    """Only of a `once` call, which nobody asks for again, and only when it was just now."""
    world = World()
    world.take(tool_task("T1", call="1.1.t1", effect="once"), tool_task("T2", call="1.1.t2"))
    world.end(0)
    world.end(1)
    world.said()
    assert world.holding.is_empty()
    for wait_ms in (0, h.RECORDED_MS - 1):
        world.clock.advance(wait_ms)
        world.holding.connected()
        said = world.said()
        assert said[0] == t.Holds(("T1",))
        assert [fact.task_id for fact in said if isinstance(fact, Result)] == ["T1"]
    world.clock.advance(1)
    world.holding.connected()
    assert [fact for fact in world.said() if isinstance(fact, Result)] == []


def test_what_a_server_stops_too_late_is_remembered() -> None:
    """It was handed on while its worker was away; who asks the worker again learns how it went."""
    world = World()
    world.take(tool_task(effect="once"))
    world.end(0)
    world.holding.connected()
    world.said(deaf=True)
    world.holding.cancel("T1")
    assert world.holding.is_empty()
    world.take(tool_task(effect="once", attempt=2))
    assert len(world.executor.started) == 1
    assert [fact.task_id for fact in world.said() if isinstance(fact, Result)] == ["T1"]


def test_text_that_nobody_takes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply has all of it."""
    monkeypatch.setattr(h, "TEXT_CHARS_MAX", 10)
    world = World()
    world.take(llm_task())
    task, _, on_text = world.executor.started[0]
    for _ in range(100):
        on_text(task, "12345678")
    world.clock.advance(h.TEXT_EVERY_MS)
    assert world.said()[-2] == t.Text({"M1": "1234567812"})
    on_text(task, "more")
    world.clock.advance(h.TEXT_EVERY_MS)
    assert world.said() == [t.Text({"M1": "more"})]
    world.holding.disconnected()
    on_text(task, "late")
    world.holding.disconnected()
    world.clock.advance(h.TEXT_EVERY_MS)
    assert world.said() == []


def test_text_is_gathered_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame for all replies that come, as far as it holds them; the last word before its
    result; and no word of a reply that is there at once: its result says it all."""
    monkeypatch.setattr(h, "TEXT_CHARS_MAX", 10)
    world = World()
    world.take(*[llm_task(f"M{number}") for number in range(4)])
    world.said()
    tell = [on_text for _, _, on_text in world.executor.started]
    task = world.executor.started[0][0]
    for number, piece in enumerate(("abc", "defg", "hijkl")):
        tell[number](task, piece)
    assert world.said() == []
    world.clock.advance(h.TEXT_EVERY_MS)
    assert world.said() == [t.Text({"M0": "abc", "M1": "defg"}), t.Text({"M2": "hijkl"})]
    for number in range(4):
        tell[number](task, "end")
    world.end(0)
    world.end(3)
    said = world.said()
    assert said[0] == t.Text({"M0": "end"})
    assert [result.task_id for result in said[1:] if isinstance(result, Result)] == ["M0", "M3"]
    world.clock.advance(h.TEXT_EVERY_MS)
    assert world.said()[0] == t.Text({"M1": "end", "M2": "end"})


def test_a_result_that_no_frame_can_carry_is_told_of() -> None:
    """Else it would be sent for ever, and the run would wait for it."""
    world = World()
    world.take(tool_task("T1"), tool_task("T2"))
    world.end(0, "x" * 6 * RESULT_BYTES_MAX)
    world.end(1)
    results = {fact.task_id: fact for fact in world.said() if isinstance(fact, Result)}
    assert "more than the 5241856 that the server takes" in results["T1"].error
    assert results["T2"].result == "done"
    assert world.holding.is_empty()


def test_nothing_is_left_of_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledged and forgotten, cancelled, or lost: no entry stays anywhere."""
    monkeypatch.setattr(h, "REMEMBERED_RESULTS_MAX", 0)
    world = World()
    world.take(tool_task("T1"), tool_task("T2"), tool_task("T3", probe=True))
    world.end(0)
    world.holding.cancel("T2")
    world.holding.cancel("nobody")
    world.end(2)
    world.end(1)  # after its cancellation: too late
    assert [fact.task_id for fact in world.said() if isinstance(fact, Result)] == ["T1", "T3"]
    assert world.holding.is_empty()
    kept: Callable[[], dict[str, Any]] = lambda: vars(world.holding)  # noqa: E731
    assert not any(value for value in kept().values() if isinstance(value, dict | list))
