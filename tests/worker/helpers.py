"""A worker with one agent, and everything that it reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from perdure.core.commands import Report, ReportToolBegin
from perdure.core.ids import SessionId
from perdure.core.messages import ModelReply, UserMessage
from perdure.ports import faults
from perdure.ports.models import Model, ModelRequest
from perdure.ports.workers import ModelTask, Task, ToolTask
from perdure.testing.clock import FakeClock
from perdure.worker import Agent, LocalWorker, Tool

SESSION = SessionId("t1", "helper", "s1")


class Desk:
    """Gives tasks to a worker and keeps its reports, in their order."""

    def __init__(
        self,
        *tools: Tool[..., Any],
        model: Any = "scripted",
        resolve: Callable[[str], Model] | None = None,
        **options: Any,
    ) -> None:
        self.clock = FakeClock()
        self.agent = Agent("helper", model=model, tools=tools, **options.pop("agent", {}))
        self.worker = LocalWorker([self.agent], resolve or unknown, self.clock, **options)
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self.pieces: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.worker.close()

    def tool_task(self, arguments: Any = None, **fields: Any) -> ToolTask:
        """Return a call of the agent's first tool."""
        given: dict[str, Any] = {
            "session": SESSION,
            "run": "r1",
            "call": "1.1.t0",
            "attempt": 1,
            "agent": "helper",
            "tool": self.agent.tools[0].spec.name if self.agent.tools else "none",
            "arguments": {} if arguments is None else arguments,
            "key": "key-1",
        }
        given |= fields
        tool = self.agent.tools_by_name.get(given["tool"])
        given.setdefault("effect", tool.spec.effect if tool else "read")
        return ToolTask(**given)

    def model_task(self, **fields: Any) -> ModelTask:
        """Return a model call."""
        model = fields.pop("model", self.agent.spec.model)
        request = ModelRequest(model, "", (UserMessage("hello"),))
        return ModelTask(SESSION, "r1", "1.1.m1", fields.pop("agent", "helper"), request)

    def start(self, task: Task) -> Task:
        """Start a task; nothing may be reported before this returns."""
        before = self.reports.qsize()
        self.worker.start(
            task,
            lambda task, report: self.reports.put_nowait(report),
            lambda task, piece: self.pieces.append(piece),
        )
        assert self.reports.qsize() == before
        return task

    async def next(self) -> Any:
        """Return the next report; fail rather than hang."""
        return await asyncio.wait_for(self.reports.get(), 20)

    async def finish(self, task: Task) -> Any:
        """Start a task, let it begin, and return the report of its outcome."""
        self.start(task)
        report = await self.next()
        if isinstance(report, ReportToolBegin):
            assert isinstance(task, ToolTask)
            self.worker.proceed(task)
            report = await self.next()
        return report

    async def call(self, arguments: Any = None, **fields: Any) -> Any:
        """Call the agent's first tool and return the report of its outcome."""
        return await self.finish(self.tool_task(arguments, **fields))

    async def nothing_more(self) -> None:
        """Let everything that is ready run, and see that nothing is reported."""
        for _ in range(10):
            await asyncio.sleep(0)
        assert self.reports.empty()

    async def no_limit_left(self) -> None:
        """See that no time limit ends anything any more, and that none stays set."""
        self.clock.advance(10**12)
        await self.nothing_more()
        assert self.clock.next_at_ms() is None


def unknown(name: str) -> Model:
    """Resolve no model at all."""
    raise AssertionError(f"nobody should ask for {name}")


class Speaker:
    """A model that says what it was given, or raises it."""

    def __init__(self, says: Any) -> None:
        self.says = says
        self.asked: list[ModelRequest] = []

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Return or raise what was given."""
        self.asked.append(request)
        if isinstance(self.says, BaseException):
            raise self.says
        on_text("Good ")
        on_text("day")
        return self.says


@contextmanager
def reached() -> Iterator[list[str]]:
    """Collect the fault points that are reached."""
    sites: list[str] = []
    faults.install(sites.append)
    try:
        yield sites
    finally:
        faults.install(None)
