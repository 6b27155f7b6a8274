"""Work that must not grow, counted instead of timed.

What is counted: lines of the runtime that are executed for a step, bytes that a commit holds, times
that a store is read. The figures are the same on a slow machine.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import perdure
from perdure.adapters.models import asks, call, says
from perdure.core.agent import ContextPolicy, Limits
from perdure.core.history import History
from perdure.core.limits import SNAPSHOT_EVERY_EVENTS
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import CommitDone, StepCommit
from perdure.worker import Agent, ask_human, tool
from tests.runtime.world import World, turn

SOURCE = str(Path(perdure.__file__).parent)
STEPS = 450
EVENTS_PER_STEP = 4
WINDOW_STEPS = SNAPSHOT_EVERY_EVENTS // EVENTS_PER_STEP
"""As many steps as there are from one snapshot to the next."""

EARLY, LATE = 100, 400
SNAPSHOT_BYTES_MAX = 8_192
WAYS = pytest.mark.parametrize("strategy", ["none", "window"])


class Lines:
    """Counts the lines of the runtime that are executed."""

    def __init__(self) -> None:
        self.count = 0

    def _in_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        return self._in_line

    def _in_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.count += event == "line"
        return self._in_line

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is executed within this block."""
        before = sys.gettrace()
        sys.settrace(self._in_call)
        try:
            yield
        finally:
            sys.settrace(before)


class Story:
    """One session that does its steps, and what was counted when each began."""

    def __init__(self, strategy: Any) -> None:
        self.lines = Lines()
        self.lines_at: list[int] = []
        self.commits_at: list[int] = []
        self.commits: list[StepCommit] = []
        context = ContextPolicy(strategy, window_messages=40)
        limits = Limits(steps_max=STEPS + 1)

        async def play(request: ModelRequest) -> Any:
            step = len(self.lines_at)
            self.lines_at.append(self.lines.count)
            self.commits_at.append(len(self.commits))
            return asks(call("search", turn=step + 1_000)) if step < STEPS else says("done")

        self.world = World(Agent("a", model=play, tools=[search], limits=limits, context=context))

    async def tell(self) -> None:
        """Let it happen."""
        commit = self.world.store.commit

        def note(step: StepCommit, done: CommitDone) -> None:
            self.commits.append(step)
            commit(step, done)

        self.world.store.commit = note  # type: ignore[method-assign]
        node = await self.world.node()
        with self.lines.counting():
            run = await node.send("a", "go", session="long")
            assert await run.result() == "done"
        await node.stop()

    def lines_from(self, step: int) -> int:
        """Return the lines executed for a window of steps."""
        return self.lines_at[step + WINDOW_STEPS] - self.lines_at[step]

    def commits_from(self, step: int) -> list[StepCommit]:
        """Return the commits of a window of steps."""
        return self.commits[self.commits_at[step] : self.commits_at[step + WINDOW_STEPS]]


@tool(effect="idempotent")
async def search(turn: int) -> dict[str, Any]:
    """Search."""
    return {"content": "x" * 900}


def log_bytes(commits: list[StepCommit]) -> int:
    """Return the bytes that commits add to the log."""
    return sum(len(body) + len(chained) for one in commits for _, body, chained in one.records)


@WAYS
async def test_a_step_does_as_much_work_at_the_end_of_a_long_session_as_early_on(
    strategy: str,
) -> None:
    """Measured: 1.00 for both ways to choose what the model is shown."""
    story = Story(strategy)
    await story.tell()
    early, late = story.lines_from(EARLY), story.lines_from(LATE - WINDOW_STEPS)
    assert early > 100 * WINDOW_STEPS
    assert late / early == pytest.approx(1, abs=0.02)


@WAYS
async def test_a_step_stores_as_much_at_the_end_of_a_long_session_as_early_on(
    strategy: str,
) -> None:
    """Measured: 1.00. The numbers in the events have a digit more, their hashes do not."""
    story = Story(strategy)
    await story.tell()
    early, late = story.commits_from(EARLY), story.commits_from(LATE - WINDOW_STEPS)
    assert len(late) == len(early) == 2 * WINDOW_STEPS
    assert log_bytes(late) / log_bytes(early) == pytest.approx(1, abs=0.01)
    assert sum(bool(one.rows) for one in late) == 0
    snapshots = [one.snapshot for one in story.commits if one.snapshot is not None]
    assert len(snapshots) == EVENTS_PER_STEP * STEPS // SNAPSHOT_EVERY_EVENTS
    assert max(map(len, snapshots)) < SNAPSHOT_BYTES_MAX


async def test_a_parked_session_is_read_once_when_it_is_taken_up_again() -> None:
    """Its claim brings the events since the snapshot; the history is made of the same ones."""

    async def model(request: ModelRequest) -> Any:
        return asks(call("ask_human", question="?")) if turn(request) == 0 else says("thanks")

    world = World(Agent("a", model=model, tools=[ask_human]))
    node = await world.node()
    run = await node.send("a", "go")
    await world.pass_time(1)
    assert node._host.active() == 0

    reads: list[int] = []
    read = world.store.read

    async def note(session: Any, after: int, limit: int) -> Any:
        reads.append(after)
        return await read(session, after, limit)

    world.store.read = note  # type: ignore[method-assign]
    await node.reply(run.id, "yes")
    await world.settle()
    assert (await world.row(run)).status == "completed"
    assert reads == []
    await node.stop()


async def test_a_call_leaves_nothing_to_the_garbage_collector() -> None:
    """What a call made is freed when it ends; a cycle would live until somebody looks for it."""

    async def left_behind(steps: int) -> int:
        asked = iter(range(steps))

        async def play(request: ModelRequest) -> Any:
            turn = next(asked, None)
            return says("done") if turn is None else asks(call("search", turn=turn + 1_000))

        world = World(Agent("a", model=play, tools=[search], limits=Limits(steps_max=steps + 1)))
        node = await world.node()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            run = await node.send("a", "go")
            assert await run.result() == "done"
            gc.collect()
            return len(gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            await node.stop()

    assert await left_behind(60) == await left_behind(10)


def test_messages_are_laid_out_once() -> None:
    """A history that has not changed is shown again without a look at its events."""
    from perdure.core.events import MessageReceived

    history = History()
    for seq in range(1, 1_001):
        history.fold(seq, MessageReceived(at=0, message=f"m{seq}", content="x", mode="queue"))
    history.messages(1, 1_000)
    lines = Lines()
    with lines.counting():
        assert len(history.messages(1, 1_000)) == 1_000
        assert len(history.messages(501, 600)) == 100
    assert lines.count < 40
