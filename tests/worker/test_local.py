"""The worker keeps the contract of `ports.workers.Worker`: one report per task, or none."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from perdure.core.commands import ReportToolBegin, ReportToolLost
from perdure.core.errors import InvalidInput
from perdure.ports import faults
from perdure.ports.workers import Worker
from perdure.testing.clock import FakeClock
from perdure.worker import Agent, LocalWorker, tool
from tests.worker.helpers import Desk, Speaker, unknown


@tool(effect="read")
async def quick() -> str:
    return "done"


@tool(effect="once")
async def pay() -> str:
    return "paid"


def test_it_is_a_worker() -> None:
    """For the type checker, and for two agents of one name."""
    worker: Worker = LocalWorker([Agent("a", model="m")], unknown, FakeClock())
    assert worker is not None
    with pytest.raises(InvalidInput, match="two agents called 'a'"):
        LocalWorker([Agent("a", model="m"), Agent("a", model="n")], unknown, FakeClock())


async def test_what_it_serves() -> None:
    """The models and tools of its agents."""
    async with Desk(quick, model=Speaker("x")) as desk:
        assert desk.worker.serves(desk.model_task())
        assert desk.worker.serves(desk.tool_task())
        assert not desk.worker.serves(desk.model_task(agent="other"))
        assert not desk.worker.serves(desk.tool_task(agent="other"))
        assert not desk.worker.serves(desk.tool_task(tool="other"))
        await desk.worker.close()
        assert not desk.worker.serves(desk.tool_task())


async def test_what_it_does_not_serve_is_given_back() -> None:
    """A start never raises, and always ends in a report."""
    async with Desk(quick, model=Speaker("x")) as desk:
        assert await desk.call(tool="other") == ReportToolLost(
            call="1.1.t0", attempt=1, reason="worker 'local' does not serve this call"
        )
        assert (await desk.call(tool="other", probing=True)).verdict == "undecided"
        report = await desk.finish(desk.model_task(agent="other"))
        assert (report.error_class, report.code) == ("transient", "worker_disconnected")
        await desk.worker.close()
        assert (await desk.call()).reason == "worker 'local' is closed"


async def test_many_calls_at_once_are_told_apart() -> None:
    """By session, call and attempt."""

    @tool(effect="read")
    async def echo(n: int) -> int:
        await asyncio.sleep(0)
        return n

    async with Desk(echo) as desk:
        for n in range(100):
            desk.start(desk.tool_task({"n": n}, call=f"1.1.t{n}"))
        reports = [await desk.next() for _ in range(100)]
        assert {(report.call, report.content) for report in reports} == {
            (f"1.1.t{n}", n) for n in range(100)
        }
        await desk.nothing_more()
        assert not desk.worker._running
        assert not desk.worker._stopping


async def test_one_task_of_asyncio_per_call() -> None:
    """A call is cheap."""
    async with Desk(quick, pay, model=Speaker("x")) as desk:
        before = asyncio.all_tasks()
        desk.start(desk.tool_task(call="1.1.t0"))
        desk.start(desk.tool_task(call="1.1.t1", tool="pay"))
        desk.start(desk.model_task())
        assert len(asyncio.all_tasks() - before) == 3
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks() - before) == 1  # it waits for its beginning
        assert desk.reports.qsize() == 3


async def test_a_cancelled_call_is_stopped_and_says_nothing() -> None:
    """Before it began, while it waits to begin, and while it runs."""
    started, ended = asyncio.Event(), asyncio.Event()

    @tool(effect="once")
    async def stuck() -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async with Desk(stuck) as desk:
        task = desk.start(desk.tool_task())
        desk.worker.cancel(task)
        await desk.nothing_more()

        desk.start(task)
        assert isinstance(await desk.next(), ReportToolBegin)
        desk.worker.cancel(task)
        desk.worker.proceed(task)  # type: ignore[arg-type]
        await desk.nothing_more()
        assert not started.is_set()

        desk.start(task)
        await desk.next()
        desk.worker.proceed(task)  # type: ignore[arg-type]
        await started.wait()
        desk.worker.cancel(task)
        await ended.wait()
        desk.worker.cancel(task)
        await desk.nothing_more()
        await desk.no_limit_left()


async def test_a_call_that_is_started_again_runs_once_more_and_is_reported_once() -> None:
    """Whoever starts it again has forgotten the first."""
    ran: list[int] = []
    gate = asyncio.Event()

    @tool(effect="read")
    async def slow() -> int:
        ran.append(len(ran))
        mine = len(ran)
        await gate.wait()
        return mine

    async with Desk(slow) as desk:
        task = desk.start(desk.tool_task())
        await desk.nothing_more()
        desk.start(task)
        await desk.nothing_more()
        gate.set()
        assert (await desk.next()).content == 2
        await desk.nothing_more()


async def test_close_stops_everything_and_waits_for_it() -> None:
    """Nothing is reported any more."""
    cleaned: list[str] = []

    @tool(effect="read")
    async def stuck() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            cleaned.append("stuck")

    desk = Desk(stuck)
    desk.start(desk.tool_task())
    await desk.nothing_more()
    await desk.worker.close()
    assert cleaned == ["stuck"]
    await desk.nothing_more()
    await desk.worker.close()


async def test_close_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a function that does not heed its cancellation."""
    monkeypatch.setattr("perdure.worker.local.CLOSE_SECONDS_MAX", 0.01)
    gate = asyncio.Event()

    @tool(effect="read")
    async def stubborn() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    desk = Desk(stubborn)
    desk.start(desk.tool_task())
    await desk.nothing_more()
    tasks = [running.aio for running in desk.worker._running.values() if running.aio]
    await desk.worker.close()
    gate.set()
    await asyncio.wait(tasks)
    await desk.nothing_more()


async def test_the_end_of_the_loop_is_no_outcome() -> None:
    """A task that is cancelled from outside reports nothing."""
    async with Desk(pay) as desk:
        desk.start(desk.tool_task())
        await desk.next()
        for running in desk.worker._running.values():
            assert running.aio is not None
            running.aio.cancel()
        await desk.nothing_more()
        assert not desk.worker._running


async def test_a_mistake_of_our_own_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As lost: nobody can know how far it came. It is never silent."""

    def broken(self: Any, *arguments: Any) -> Any:
        raise LookupError("a mistake")

    monkeypatch.setattr("perdure.worker.tool_calls.returned", broken)
    monkeypatch.setattr("perdure.worker.tool_calls.raised", broken)
    async with Desk(quick) as desk:
        with caplog.at_level(logging.ERROR, "perdure.worker"):
            report = await desk.call()
    assert report.reason == "the worker failed: LookupError: a mistake"
    assert "1.1.t0 failed in the worker" in caplog.text


class Death(BaseException):
    """A simulated end of the process."""


@pytest.mark.parametrize("site", ["tool.begun", "tool.before", "tool.after"])
async def test_a_simulated_death_reports_nothing(site: str) -> None:
    """Whoever died has nothing to say; the simulation hears of it."""

    def hook(reached: str) -> None:
        if reached == site:
            raise Death(site)

    heard: list[Any] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    async with Desk(pay) as desk:
        task = desk.start(desk.tool_task())
        await desk.next()
        loop.set_exception_handler(lambda loop, context: heard.append(context["exception"]))
        faults.install(hook)
        try:
            desk.worker.proceed(task)  # type: ignore[arg-type]
            await desk.nothing_more()
        finally:
            faults.install(None)
            loop.set_exception_handler(before)
        assert [str(each) for each in heard] == [site]
        await desk.no_limit_left()
