"""A tool call ends in one report: what it returned, what went wrong, or that nobody can know."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from perdure.core.commands import ReportProbe, ReportToolBegin, ReportToolLost, ReportToolResult
from perdure.core.limits import ERROR_CHARS_MAX, RESULT_BYTES_MAX
from perdure.worker import ToolContext, tool
from tests.worker.helpers import SESSION, Desk, reached

read = tool(effect="read")
idempotent = tool(effect="idempotent")
once = tool(effect="once")
who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


@dataclass
class Receipt:
    cents: int


def sync_pay(cents: int, ctx: ToolContext) -> Receipt:
    assert threading.current_thread() is not threading.main_thread()
    return Receipt(cents)


async def async_pay(cents: int, ctx: ToolContext) -> Receipt:
    return Receipt(cents)


def awaitable_pay(cents: int, ctx: ToolContext) -> Any:
    return async_pay(cents, ctx)


PAYS = [sync_pay, async_pay, awaitable_pay]


@pytest.mark.parametrize("pay", PAYS)
@pytest.mark.parametrize("declare", [read, idempotent])
async def test_a_call_ends_in_its_result(declare: Any, pay: Any) -> None:
    """What may be repeated runs at once."""
    async with Desk(declare(pay)) as desk:
        with reached() as sites:
            report = await desk.call({"cents": 5})
        assert report == ReportToolResult(call="1.1.t0", attempt=1, ok=True, content={"cents": 5})
        assert sites == ["tool.before", "tool.after"]
        await desk.nothing_more()
        await desk.no_limit_left()


@pytest.mark.parametrize("pay", PAYS)
async def test_once_asks_to_begin_and_waits(pay: Any) -> None:
    """Nothing runs before the beginning is durable."""
    async with Desk(once(pay), name="w7") as desk:
        with reached() as sites:
            task = desk.start(desk.tool_task({"cents": 5}, attempt=2))
            assert await desk.next() == ReportToolBegin(call="1.1.t0", attempt=2, worker="w7")
            await desk.nothing_more()
            assert sites == []
            desk.worker.proceed(task)
            report = await desk.next()
        assert report == ReportToolResult(call="1.1.t0", attempt=2, ok=True, content={"cents": 5})
        assert sites == ["tool.begun", "tool.before", "tool.after"]
        desk.worker.proceed(task)
        await desk.nothing_more()


async def test_a_beginning_may_become_durable_during_the_report() -> None:
    """The callback may say proceed."""
    async with Desk(once(async_pay)) as desk:
        reports: list[Any] = []

        def on_report(task: Any, report: Any) -> None:
            reports.append(report)
            if isinstance(report, ReportToolBegin):
                desk.worker.proceed(task)

        desk.worker.start(desk.tool_task({"cents": 5}), on_report, lambda task, piece: None)
        await desk.nothing_more()
        assert [type(report) for report in reports] == [ReportToolBegin, ReportToolResult]


@pytest.mark.parametrize("declare", [read, once])
async def test_invalid_arguments_begin_nothing(declare: Any) -> None:
    """They are checked first."""
    async with Desk(declare(sync_pay)) as desk:
        with reached() as sites:
            desk.start(desk.tool_task({"cents": "5"}))
            report = await desk.next()
        assert report == ReportToolResult(
            call="1.1.t0",
            attempt=1,
            ok=False,
            kind="invalid_arguments",
            content="Expected `int`, got `str` - at `$.cents`",
        )
        assert sites == []
        await desk.nothing_more()


async def test_the_context_tells_of_the_call() -> None:
    """Everything that a tool may need to be repeated safely."""
    seen: list[ToolContext] = []

    @tool(effect="read", timeout=2)
    async def look(context: ToolContext) -> None:
        seen.append(context)

    async with Desk(look) as desk:
        await desk.call(attempt=3)
    assert seen == [
        ToolContext(
            key="key-1",
            session=SESSION,
            run="r1",
            call="1.1.t0",
            attempt=3,
            agent="helper",
            timeout_ms=2000,
        )
    ]


async def test_context_variables_come_along() -> None:
    """Into threads too: tenants and traces travel in them."""

    def name() -> str:
        return who.get()

    who.set("me")
    async with Desk(read(name)) as desk:
        assert (await desk.call()).content == "me"


@pytest.mark.parametrize("returned", [None, "text", "", 0, [1, {"a": None}]])
async def test_a_result_is_what_was_returned(returned: Any) -> None:
    """Text stays text, None stays null."""

    async def f() -> Any:
        return returned

    async with Desk(read(f)) as desk:
        report = await desk.call()
        assert (report.ok, report.content, report.kind) == (True, returned, "result")


class Secretive(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


RAISED: list[tuple[BaseException, str]] = [
    (ValueError("bad"), "ValueError: bad"),
    (KeyError("k"), "KeyError: 'k'"),
    (AssertionError(), "AssertionError"),
    (SystemExit(3), "SystemExit: 3"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (StopIteration(), "StopIteration"),
    (asyncio.CancelledError(), "CancelledError"),
    (BaseException("base"), "BaseException: base"),
    (TimeoutError("mine"), "TimeoutError: mine"),
    (Secretive(), "Secretive: (its message cannot be read: RuntimeError)"),
    (ValueError("\ud800"), "ValueError: ?"),
]


@pytest.mark.parametrize("error,content", RAISED)
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_tool_that_raises_has_failed(
    error: BaseException, content: str, is_async: bool
) -> None:
    """A once tool too: it ran, and it said so. No exception ends the worker."""

    def sync() -> None:
        raise error

    async def f() -> None:
        raise error

    if is_async and isinstance(error, StopIteration):
        content = "RuntimeError: coroutine raised StopIteration"
    async with Desk(once(f if is_async else sync)) as desk:
        report = await desk.call()
        assert report == ReportToolResult(
            call="1.1.t0", attempt=1, ok=False, kind="raised", content=content
        )
        await desk.nothing_more()


async def test_a_traceback_goes_to_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    """And a long message is clipped."""

    async def f() -> None:
        raise ValueError("x" * 2 * ERROR_CHARS_MAX)

    async with Desk(read(f)) as desk:
        with caplog.at_level(logging.DEBUG, "perdure.worker"):
            report = await desk.call()
    assert len(report.content) < ERROR_CHARS_MAX + 100
    assert "Traceback" not in report.content
    assert caplog.records[0].exc_info is not None


BEGINNING = "The tool ran, but its result "


@pytest.mark.parametrize(
    "returned,kind,content",
    [
        (b"x", "unserialisable", "cannot be recorded: `bytes` at `$` cannot be JSON; return its"),
        ({"a": [object()]}, "unserialisable", "cannot be recorded: `object` at `$.a[0]` cannot"),
        ("x" * RESULT_BYTES_MAX, "result_too_large", "has 1048578 bytes of JSON, more than the"),
        ([1] * RESULT_BYTES_MAX, "result_too_large", "limit of 1048576. It begins: [1,1,1,1"),
    ],
)
async def test_a_result_that_cannot_be_kept_is_a_failure(
    returned: Any, kind: str, content: str
) -> None:
    """That says that the tool ran, and what was wrong with what it returned."""

    async def f() -> Any:
        return returned

    async with Desk(once(f)) as desk:
        report = await desk.call()
        assert (report.ok, report.kind) == (False, kind)
        assert report.content.startswith(BEGINNING)
        assert content in report.content
        assert len(report.content) < 1_200


async def test_a_result_of_the_greatest_size_is_kept() -> None:
    """The limit itself is allowed: two bytes are the quotes."""
    text = "x" * (RESULT_BYTES_MAX - 2)

    async def f() -> str:
        return text

    async with Desk(read(f)) as desk:
        assert (await desk.call()).content == text


class Stuck:
    """Tools that start and do not end."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.gate = threading.Event()
        self.loop = asyncio.get_running_loop()

    def sync(self) -> str:
        self.loop.call_soon_threadsafe(self.started.set)
        self.gate.wait(20)
        self.loop.call_soon_threadsafe(self.ended.set)
        return "late"

    async def stuck(self) -> None:
        self.started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended.set()

    async def stubborn(self) -> str:
        self.started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.ended.set()
        return "late"


SILENT = "The tool did not answer within 5 s."
STILL = f"{SILENT} It cannot be stopped and may still be at work."


@pytest.mark.parametrize(
    "method,effect,content",
    [
        ("sync", "read", STILL),
        ("sync", "idempotent", STILL),
        ("sync", "once", None),
        ("stuck", "read", SILENT),
        ("stuck", "idempotent", SILENT),
        ("stuck", "once", None),
        ("stubborn", "read", SILENT),
        ("stubborn", "once", None),
    ],
)
async def test_a_tool_that_does_not_end_is_given_up(
    method: str, effect: Any, content: str | None
) -> None:
    """A once tool may have acted: nobody knows. What still comes of it is dropped."""
    stuck = Stuck()
    made = tool(effect=effect, timeout=5)(getattr(stuck, method))
    async with Desk(made) as desk:
        ending = asyncio.ensure_future(desk.call())
        await stuck.started.wait()
        desk.clock.advance(4_999)
        await desk.nothing_more()
        assert not ending.done()
        desk.clock.advance(1)
        report = await ending
        if content is None:
            assert report == ReportToolLost(
                call="1.1.t0", attempt=1, reason="the tool did not answer within 5 s"
            )
        else:
            assert report == ReportToolResult(
                call="1.1.t0", attempt=1, ok=False, kind="timeout", content=content
            )
        stuck.gate.set()
        await stuck.ended.wait()
        await desk.nothing_more()


async def test_a_call_that_found_no_thread_never_ran() -> None:
    """So that even a once call has failed, and is not unknown."""
    stuck, ran = Stuck(), []

    def f(n: int) -> None:
        ran.append(n)
        if n == 0:
            stuck.sync()

    async with Desk(tool(effect="once", timeout=5)(f), threads_max=1) as desk:
        busy = desk.start(desk.tool_task({"n": 0}, call="1.1.t0"))
        await desk.next()
        desk.worker.proceed(busy)  # type: ignore[arg-type]
        await stuck.started.wait()
        desk.clock.advance(1)
        queued = desk.start(desk.tool_task({"n": 1}, call="1.1.t1"))
        await desk.next()
        desk.worker.proceed(queued)  # type: ignore[arg-type]
        await desk.nothing_more()
        desk.clock.advance(4_999)
        assert isinstance(await desk.next(), ReportToolLost)
        desk.clock.advance(1)
        report = await desk.next()
        assert (report.call, report.kind) == ("1.1.t1", "timeout")
        assert report.content == (
            "The tool did not start within 5 s: every thread of its worker is busy."
        )
        stuck.gate.set()
        await stuck.ended.wait()
        assert ran == [0]


async def test_the_time_of_a_once_call_runs_from_its_beginning() -> None:
    """A slow store is not the tool's fault."""

    @tool(effect="once", timeout=5)
    async def f() -> str:
        return "done"

    async with Desk(f) as desk:
        task = desk.start(desk.tool_task())
        await desk.next()
        desk.clock.advance(60_000)
        desk.worker.proceed(task)  # type: ignore[arg-type]
        assert (await desk.next()).content == "done"


async def silent(key: str) -> bool:
    return await asyncio.get_running_loop().create_future()


def wrong(key: str) -> bool:
    raise ValueError("down")


async def wrong_async(key: str) -> bool:
    raise ValueError("down")


@pytest.mark.parametrize(
    "probe,verdict,content",
    [
        (lambda key: None, "undecided", None),
        (lambda key: False, "did_not_happen", None),
        (lambda key: True, "happened", "It took effect."),
        (lambda key: key, "happened", "key-1"),
        (lambda key, ctx: [key, ctx.attempt], "happened", ["key-1", 2]),
        (lambda key: Receipt(5), "happened", {"cents": 5}),
        (lambda key: "", "happened", ""),
        (lambda key: 0, "happened", 0),
        (lambda key: b"x", "happened", "It took effect."),
        (wrong, "undecided", None),
        (wrong_async, "undecided", None),
        (None, "undecided", None),
    ],
)
async def test_a_probe_says_what_became_of_a_call(probe: Any, verdict: str, content: Any) -> None:
    """The tool itself does not run, and nothing begins."""

    def never() -> None:
        raise AssertionError

    async with Desk(tool(probe=probe)(never)) as desk:
        with reached() as sites:
            desk.start(desk.tool_task(attempt=2, probing=True))
            assert await desk.next() == ReportProbe(
                call="1.1.t0",
                attempt=2,
                verdict=verdict,
                content=content,  # type: ignore[arg-type]
            )
        assert sites == []
        await desk.nothing_more()


async def test_a_probe_that_does_not_answer_leaves_it_undecided() -> None:
    """It has the tool's time."""

    async def f() -> None: ...

    async with Desk(tool(probe=silent, timeout=5)(f)) as desk:
        desk.start(desk.tool_task(probing=True))
        await desk.nothing_more()
        desk.clock.advance(5_000)
        assert (await desk.next()).verdict == "undecided"
        await desk.nothing_more()


@pytest.mark.parametrize("version", ["", "1"])
async def test_a_call_for_another_version_is_not_executed(version: str) -> None:
    """The versions are named; nothing began."""
    ran: list[int] = []
    pay = tool(name="pay", effect="once", version="2")(lambda: ran.append(1))
    async with Desk(pay) as desk:
        task = desk.tool_task(version=version)
        assert not desk.worker.serves(task)
        assert desk.worker.serves(desk.tool_task(version="2"))
        report = await desk.finish(task)
        assert report == ReportToolLost(
            call="1.1.t0",
            attempt=1,
            reason="worker 'local' has version '2' of the tool 'pay', and the call was made for "
            f"version {version!r}",
        )
    assert ran == []
