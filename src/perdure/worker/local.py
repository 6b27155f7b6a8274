"""`LocalWorker`: executes the calls of agents in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from inspect import isroutine
from typing import Any

from perdure.core.commands import Report, ReportModelError
from perdure.core.errors import InvalidInput
from perdure.core.ids import SessionId
from perdure.ports.clock import Clock
from perdure.ports.models import Model
from perdure.ports.workers import ModelTask, OnReport, OnText, Task, ToolTask
from perdure.worker import model_calls
from perdure.worker.agent import Agent
from perdure.worker.model_calls import FunctionModel
from perdure.worker.outcome import Lost, describe
from perdure.worker.processes import Processes
from perdure.worker.running import Running
from perdure.worker.threads import Threads
from perdure.worker.tool_calls import ToolCalls, result, undecided

MODEL_TIMEOUT_MS = 300_000
CLOSE_SECONDS_MAX = 10
"""How long `close` waits for functions that do not heed their cancellation."""

_Key = tuple[SessionId, str, int]
_log = logging.getLogger("perdure.worker")


class LocalWorker:
    """A worker in this process, for the given agents: a task of asyncio per call.

    `resolve` returns the model with a name. `threads_max` is how many sync functions run at once.
    `model_timeout_ms` holds for agents that do not say otherwise. Raises `InvalidInput` for two
    agents of one name.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        resolve: Callable[[str], Model],
        clock: Clock,
        *,
        threads_max: int = 32,
        name: str = "local",
        model_timeout_ms: int = MODEL_TIMEOUT_MS,
    ) -> None:
        self.name = name
        self._agents: dict[str, Agent] = {}
        for agent in agents:
            if agent.name in self._agents:
                raise InvalidInput(f"there are two agents called {agent.name!r}")
            self._agents[agent.name] = agent
        self._resolve = resolve
        self._clock = clock
        self._model_timeout_ms = model_timeout_ms
        self._threads = Threads(threads_max, f"perdure {name}")
        self._processes = Processes(clock)
        self._tools = ToolCalls(name, self._threads, self._processes)
        self._named: dict[str, Model] = {}
        self._code: dict[str, Model] = {
            agent.name: FunctionModel(agent.model, self._threads)
            if isroutine(agent.model)
            else agent.model
            for agent in self._agents.values()
            if not isinstance(agent.model, str)
        }
        self._running: dict[_Key, Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def serves(self, task: Task) -> bool:
        """Say whether the task's agent is one of ours, with the task's tool."""
        agent = self._agents.get(task.agent)
        if agent is None or self._closed:
            return False
        if isinstance(task, ModelTask):
            return True
        tool = agent.tools_by_name.get(task.tool)
        return tool is not None and tool.spec.builtin is None

    def start(self, task: Task, on_report: OnReport, on_text: OnText) -> None:
        """Begin a task; its reports come later, never during this call.

        A task of the same call and attempt that is under way is cancelled first: whoever starts
        it again has forgotten it.
        """
        self.cancel(task)
        running = Running(task, on_report, self._clock)
        self._running[_key(task)] = running
        running.aio = asyncio.get_running_loop().create_task(self._work(running, on_text))
        self._tasks.add(running.aio)
        running.aio.add_done_callback(lambda aio: self._done(running, aio))

    def proceed(self, task: ToolTask) -> None:
        """Let a `once` task run: its beginning is durable."""
        running = self._running.get(_key(task))
        if running is not None:
            running.proceed()

    def cancel(self, task: Task) -> None:
        """Stop a task as far as it can be stopped; nothing is reported of it any more.

        Async functions are cancelled, processes killed; a thread goes on, and nobody listens.
        """
        running = self._running.pop(_key(task), None)
        if running is not None:
            running.stop()

    async def close(self) -> None:
        """Stop everything: nothing is reported any more."""
        self._closed = True
        for running in tuple(self._running.values()):
            running.stop()
        for aio in self._tasks:
            aio.cancel()
        await self._processes.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS_MAX)
        await self._processes.close()
        self._threads.close()
        for model in self._named.values():
            close = getattr(model, "aclose", None)
            if close is not None:
                await close()

    def _work(self, running: Running, on_text: OnText) -> Coroutine[Any, Any, None]:
        task = running.task
        if not self.serves(task):
            return self._refuse(running)
        agent = self._agents[task.agent]
        if isinstance(task, ToolTask):
            tool = agent.tools_by_name[task.tool]
            execute = self._tools.probe if task.probing else self._tools.call
            return execute(running, tool, task)
        timeout_ms = self._model_timeout_ms
        if agent.model_timeout is not None:
            timeout_ms = round(agent.model_timeout * 1000)
        return model_calls.ask(
            running, task, lambda: self._model(agent, task.request.model), on_text, timeout_ms
        )

    def _model(self, agent: Agent, name: str) -> Model:
        """Return an agent's model: code as it is now, a name as the request has it."""
        if not isinstance(agent.model, str):
            return self._code[agent.name]
        if name not in self._named:
            self._named[name] = self._resolve(name)
        return self._named[name]

    async def _refuse(self, running: Running) -> None:
        why = "is closed" if self._closed else "does not serve this call"
        running.end(_given_up(running.task, f"worker {self.name!r} {why}"))

    def _done(self, running: Running, aio: asyncio.Task[None]) -> None:
        """Forget a task. One that failed by our own mistake is reported too, never lost."""
        self._tasks.discard(aio)
        if self._running.get(_key(running.task)) is running:
            del self._running[_key(running.task)]
        error = None if aio.cancelled() else aio.exception()
        if isinstance(error, Exception):
            _log.error("call %s failed in the worker", running.task.call, exc_info=error)
            running.end(_given_up(running.task, f"the worker failed: {describe(error)}"))
            return
        running.retire()
        if error is not None:
            # A fault point let the process die: there is nobody left to report.
            aio.get_loop().call_exception_handler(
                {"message": "a call was cut off", "exception": error, "task": aio}
            )


def _key(task: Task) -> _Key:
    return task.session, task.call, task.attempt if isinstance(task, ToolTask) else 0


def _given_up(task: Task, why: str) -> Report:
    if isinstance(task, ModelTask):
        return ReportModelError(
            call=task.call, error_class="transient", code="worker_disconnected", message=why
        )
    return undecided(task) if task.probing else result(task, Lost(why))
