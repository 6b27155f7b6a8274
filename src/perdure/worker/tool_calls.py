"""Tool calls: check the arguments, ask to begin if it may happen only once, run, say how it ended.

A call that began and whose outcome nobody can know is reported as lost, never as failed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from perdure.core.commands import (
    Report,
    ReportProbe,
    ReportToolBegin,
    ReportToolLost,
    ReportToolResult,
)
from perdure.core.errors import InvalidInput
from perdure.ports import faults
from perdure.ports.credentials import CredentialError, Secret
from perdure.ports.workers import ToolTask
from perdure.worker.context import ToolContext
from perdure.worker.credentials import Credentials
from perdure.worker.outcome import REFUSED, Lost, Outcome, printable, raised, returned
from perdure.worker.processes import Job, Processes
from perdure.worker.running import Running, is_cancelled
from perdure.worker.threads import Threads
from perdure.worker.tool import Tool

AnyTool = Tool[..., Any]
_Attempt = Callable[[dict[str, Secret]], Awaitable[Outcome | Lost]]
HAPPENED = "It took effect."
NOT_HAD = "no_credential"
_log = logging.getLogger("perdure.worker")


class ToolCalls:
    """Runs tools: async ones on the loop, sync ones in threads, isolated ones in processes."""

    def __init__(
        self, name: str, threads: Threads, processes: Processes, credentials: Credentials
    ) -> None:
        self._name = name
        self._threads = threads
        self._processes = processes
        self._credentials = credentials

    async def call(
        self, running: Running, tool: AnyTool, task: ToolTask, references: Mapping[str, str]
    ) -> None:
        """Carry out a call from its arguments to its report."""
        try:
            arguments = tool.arguments(task.arguments)
            secrets = await self._secrets(tool, references)
        except InvalidInput as error:
            running.end(result(task, Outcome(False, str(error), "invalid_arguments")))
            return
        except CredentialError as error:
            running.end(result(task, Outcome(False, f"The tool was not run: {error}", NOT_HAD)))
            return
        if task.effect == "once":
            await running.begin(
                ReportToolBegin(call=task.call, attempt=task.attempt, worker=self._name)
            )
            faults.reach("tool.begun")
        faults.reach("tool.before")
        running.limit(tool.spec.timeout_ms, lambda: self._timed_out(running, tool, task))
        outcome = await self._with(
            secrets,
            references,
            lambda found: self._run(running, tool, arguments, task, _context(tool, task, found)),
        )
        faults.reach("tool.after")
        running.end(result(task, outcome))

    async def probe(
        self, running: Running, tool: AnyTool, task: ToolTask, references: Mapping[str, str]
    ) -> None:
        """Ask a tool what became of a call; a probe that raises or hangs leaves it undecided."""
        running.limit(tool.spec.timeout_ms, lambda: undecided(task))
        try:
            secrets = await self._secrets(tool, references)
        except CredentialError as error:
            outcome: Outcome | Lost = Outcome(False, str(error), "raised")
        else:
            outcome = await self._with(
                secrets,
                references,
                lambda found: self._look(running, tool, _context(tool, task, found)),
            )
        running.end(_verdict(task, outcome))

    async def _secrets(self, tool: AnyTool, references: Mapping[str, str]) -> dict[str, Secret]:
        names = tool.spec.credentials
        return await self._credentials.gather(references, names) if names else {}

    async def _with(
        self, secrets: dict[str, Secret], references: Mapping[str, str], attempt: _Attempt
    ) -> Outcome | Lost:
        """Run a tool with its secrets; once more with others if the far end refused these."""
        outcome = await attempt(secrets)
        if not secrets or not isinstance(outcome, Outcome) or outcome.kind != REFUSED:
            return outcome
        try:
            others = await self._credentials.renew_all(references, secrets)
        except CredentialError:
            return outcome
        return outcome if others is None else await attempt(others)

    def _look(self, running: Running, tool: AnyTool, context: ToolContext) -> Awaitable[Outcome]:
        return self._here(
            running, lambda: tool.probe(context), tool.probe_is_async, f"{tool.spec.name} (probe)"
        )

    def _run(
        self,
        running: Running,
        tool: AnyTool,
        arguments: dict[str, Any],
        task: ToolTask,
        context: ToolContext,
    ) -> Awaitable[Outcome | Lost]:
        if tool.origin is not None:
            path = [str(entry) for entry in sys.path]
            job = Job(tool.origin, tool.spec.name, task.arguments, context, path)
            return self._processes.run(job)
        return self._here(
            running, lambda: tool.run(arguments, context), tool.is_async, tool.spec.name
        )

    def _here(
        self, running: Running, function: Callable[[], Any], is_async: bool, name: str
    ) -> Awaitable[Outcome]:
        """Run a function in this process: on the loop if it is async, else in a thread."""
        if is_async:
            return _awaited(function, name)
        return self._in_thread(running, function, name)

    async def _in_thread(self, running: Running, function: Callable[[], Any], name: str) -> Outcome:
        future = self._threads.submit(lambda: _attempt(function, name))
        running.withdraw = future.cancel
        outcome = await asyncio.wrap_future(future)
        return outcome if isinstance(outcome, Outcome) else await _awaited(outcome, name)

    def _timed_out(self, running: Running, tool: AnyTool, task: ToolTask) -> Report:
        within = f"within {tool.spec.timeout_ms / 1000:g} s"
        if running.withdraw():
            text = f"The tool did not start {within}: every thread of its worker is busy."
        elif task.effect == "once":
            return ReportToolLost(
                call=task.call, attempt=task.attempt, reason=f"the tool did not answer {within}"
            )
        else:
            text = f"The tool did not answer {within}."
            if not tool.is_async and tool.origin is None:
                text += " It cannot be stopped and may still be at work."
        return result(task, Outcome(False, text, "timeout"))


async def _awaited(function: Callable[[], Awaitable[Any]], name: str) -> Outcome:
    try:
        return returned(await function())
    except GeneratorExit:
        raise
    except BaseException as error:
        # KeyboardInterrupt and SystemExit too: a tool cannot end its worker.
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        return raised(error, name)


def _attempt(function: Callable[[], Any], name: str) -> Outcome | Callable[[], Awaitable[Any]]:
    """Run a sync function in its thread; one that returns an awaitable is finished on the loop."""
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001  as above
        return raised(error, name)
    return (lambda: value) if inspect.isawaitable(value) else returned(value)


def _context(tool: AnyTool, task: ToolTask, secrets: dict[str, Secret]) -> ToolContext:
    return ToolContext(
        key=task.key,
        session=task.session,
        run=task.run,
        call=task.call,
        attempt=task.attempt,
        agent=task.agent,
        timeout_ms=tool.spec.timeout_ms,
        credentials=secrets,
    )


def result(task: ToolTask, outcome: Outcome | Lost) -> Report:
    """Return the report of how a call ended."""
    if isinstance(outcome, Lost):
        return ReportToolLost(call=task.call, attempt=task.attempt, reason=outcome.reason)
    return ReportToolResult(
        call=task.call,
        attempt=task.attempt,
        ok=outcome.ok,
        content=outcome.content if outcome.ok else printable(outcome.content),
        kind=outcome.kind,
    )


def undecided(task: ToolTask) -> Report:
    """Return the report of a probe that could not tell."""
    return ReportProbe(call=task.call, attempt=task.attempt, verdict="undecided")


def _verdict(task: ToolTask, outcome: Outcome | Lost) -> Report:
    """Return the report of a probe: see `Tool.probe` for what its values mean."""
    if isinstance(outcome, Lost):
        return undecided(task)
    if outcome.kind in ("raised", REFUSED) or outcome.content is None:
        if not outcome.ok:
            _log.warning("the probe of %s failed: %s", task.tool, outcome.content)
        return undecided(task)
    if outcome.content is False:
        return ReportProbe(call=task.call, attempt=task.attempt, verdict="did_not_happen")
    content = outcome.content if outcome.ok and outcome.content is not True else HAPPENED
    return ReportProbe(call=task.call, attempt=task.attempt, verdict="happened", content=content)
