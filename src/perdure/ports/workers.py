"""Worker: who executes calls. The runtime never does.

A worker is given a task and reports commands for the session: results, losses, requests to begin.
For a `once` tool it first validates the arguments, reports `ReportToolBegin`, and runs the tool
only when `proceed` tells it that the beginning is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from perdure.core.agent import Effect
from perdure.core.commands import Report
from perdure.core.ids import SessionId
from perdure.ports.models import ModelRequest


class ModelTask(msgspec.Struct, frozen=True, gc=False):
    """A model call to execute. `meta` came with the message that its run answers.

    `timeout_ms` is how long the reply may take; None leaves it to the worker.
    """

    session: SessionId
    run: str
    call: str
    agent: str
    request: ModelRequest
    meta: Mapping[str, Any] | None = None
    timeout_ms: int | None = None


class ToolTask(msgspec.Struct, frozen=True, gc=False):
    """A tool call to execute, or, with `probing`, a call whose outcome the tool is asked about.

    `effect` is the class that the tool had when the call was intended: that is what counts. Only
    the `version` that it had then may execute it.
    `timeout_ms` is how long one attempt may take, by the agent's present definition. `meta` came
    with the message that its run answers.
    """

    session: SessionId
    run: str
    call: str
    attempt: int
    agent: str
    tool: str
    effect: Effect
    arguments: dict[str, Any]
    key: str
    probing: bool = False
    timeout_ms: int = 300_000
    meta: Mapping[str, Any] | None = None
    version: str = ""


Task = ModelTask | ToolTask
OnReport = Callable[[Task, Report], None]
OnText = Callable[[Task, str], None]


class Worker(Protocol):
    """Executes tasks. All methods are called, and all callbacks made, on the event loop."""

    def serves(self, task: Task) -> bool:
        """Say whether this worker has what the task needs."""
        ...

    def start(self, task: Task, on_report: OnReport, on_text: OnText) -> None:
        """Begin a task; never raises and never blocks. Ends in exactly one report of an outcome,
        unless it is cancelled."""
        ...

    def resume(
        self, task: ToolTask, on_report: OnReport, on_text: OnText, by: str | None = None
    ) -> bool:
        """Expect the outcome of a `once` call that began in an earlier life of this process.

        Never starts it. `by` is who was allowed to begin, as the report said that asked for it:
        nobody else may run it. False if that one cannot be at it any more; else it ends in one
        report, like a task that was started.
        """
        ...

    def proceed(self, task: ToolTask, by: str | None = None) -> None:
        """Let a `once` task run: its beginning is durable, and `by` is who may run it.

        Without `by` it is whoever has it.
        """
        ...

    def cancel(self, task: Task) -> None:
        """Stop a task as far as it can be stopped; nothing is reported of it any more."""
        ...

    def orphan(self, task: Task) -> bool:
        """Go on with a task whose session was lost, for whoever runs it next.

        False, and it is forgotten, if nobody was given it yet: it may not be begun any more.
        """
        ...

    async def close(self) -> None:
        """Stop everything, and close the models that were opened."""
        ...
