"""`LocalWorker`: executes the calls of agents in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from inspect import isroutine
from typing import Any, Protocol

from perdure.core.commands import Report, ReportModelError
from perdure.core.errors import InvalidInput
from perdure.core.ids import SessionId
from perdure.core.references import MODEL
from perdure.ports.clock import Clock
from perdure.ports.credentials import CredentialProvider
from perdure.ports.deadlines import Deadlines
from perdure.ports.models import Model, ModelError
from perdure.ports.workers import ModelTask, OnReport, OnText, Task, ToolTask
from perdure.worker import model_calls
from perdure.worker.agent import Agent, is_code
from perdure.worker.credentials import Credentials
from perdure.worker.keyed import KeyedModel
from perdure.worker.model_calls import FunctionModel
from perdure.worker.outcome import Lost, describe
from perdure.worker.processes import Processes
from perdure.worker.redaction import guard_logs
from perdure.worker.running import Running
from perdure.worker.threads import Threads
from perdure.worker.tool import Tool
from perdure.worker.tool_calls import ToolCalls, result, undecided

MODEL_TIMEOUT_MS = 300_000
CLOSE_SECONDS_MAX = 10
"""How long `close` waits for functions that do not heed their cancellation."""

_Key = tuple[SessionId, str, int]
_log = logging.getLogger("perdure.worker")


class Resolve(Protocol):
    """Returns the model that a name stands for, with a key of its own if it is given one."""

    def __call__(self, name: str, /, api_key: str | None = None) -> Model:
        """Return the model. Raises `InvalidInput` for a name that nobody knows."""
        ...


class LocalWorker:
    """A worker in this process, for the given agents: a task of asyncio per call.

    `resolve` returns the model with a name. `threads_max` is how many sync functions run at once.
    `model_timeout_ms` holds for agents that do not say otherwise. `credential_providers` resolve
    the references of their schemes. Raises `InvalidInput` for two agents of one name, and for a
    reference that no provider resolves.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        resolve: Resolve,
        clock: Clock,
        *,
        threads_max: int = 32,
        name: str = "local",
        model_timeout_ms: int = MODEL_TIMEOUT_MS,
        credential_providers: Mapping[str, CredentialProvider] | None = None,
    ) -> None:
        self.name = name
        self._agents: dict[str, Agent] = {}
        for agent in agents:
            if agent.name in self._agents:
                raise InvalidInput(f"there are two agents called {agent.name!r}")
            self._agents[agent.name] = agent
        self._resolve = resolve
        self._credentials = Credentials(credential_providers or {}, clock)
        for agent in self._agents.values():
            self._credentials.check(agent.spec)
        guard_logs()
        self._deadlines = Deadlines(clock)
        self._model_timeout_ms = model_timeout_ms
        self._threads = Threads(threads_max, f"perdure {name}")
        self._processes = Processes(clock)
        self._tools = ToolCalls(name, self._threads, self._processes, self._credentials)
        self._named: dict[tuple[str, str | None], Model] = {}
        self._code: dict[str, Model] = {
            agent.name: FunctionModel(agent.model, self._threads)
            if isroutine(agent.model)
            else agent.model
            for agent in self._agents.values()
            if not isinstance(agent.model, str)
        }
        self._running: dict[_Key, Running] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._closed = False

    def serves(self, task: Task) -> bool:
        """Say whether the task's agent is one of ours, with the task's tool."""
        agent = self._agents.get(task.agent)
        if agent is None or self._closed:
            return False
        if isinstance(task, ModelTask):
            return True
        tool = agent.tools_by_name.get(task.tool)
        return tool is not None and tool.spec.builtin is None and tool.spec.version == task.version

    def start(self, task: Task, on_report: OnReport, on_text: OnText) -> None:
        """Begin a task; its reports come later, never during this call.

        A task of the same call and attempt that is under way is cancelled first: whoever starts
        it again has forgotten it.
        """
        key = _key(task)
        if key in self._running:
            self.cancel(task)
        running = self._running[key] = Running(task, on_report, self._deadlines)
        execution = self._execute(key, running, on_text)
        running.aio = asyncio.get_running_loop().create_task(execution)

    def resume(
        self, task: ToolTask, on_report: OnReport, on_text: OnText, by: str | None = None
    ) -> bool:
        """Say no: what began in an earlier life of this process ended with it."""
        return False

    def proceed(self, task: ToolTask, by: str | None = None) -> None:
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
            if running.aio is not None:
                # asyncio itself would not keep it from being collected while it stops.
                self._stopping.add(running.aio)
                running.aio.add_done_callback(self._stopping.discard)

    def orphan(self, task: Task) -> bool:
        """Go on with a task whose session was lost: it was begun when it was given."""
        return True

    async def close(self) -> None:
        """Stop everything: nothing is reported any more."""
        self._closed = True
        for running in tuple(self._running.values()):
            self.cancel(running.task)
        for aio in self._stopping:
            aio.cancel()
        self._credentials.close()
        await self._processes.close()
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=CLOSE_SECONDS_MAX)
        await self._processes.close()
        self._threads.close()
        for model in self._named.values():
            close = getattr(model, "aclose", None)
            if close is not None:
                await close()

    async def _execute(self, key: _Key, running: Running, on_text: OnText) -> None:
        """Carry out a call. A mistake of our own is reported too, never lost."""
        try:
            await self._work(running, on_text)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:  # noqa: BLE001  one call's trouble stays its own
            _log.exception("call %s failed in the worker", running.task.call)
            running.end(_given_up(running.task, f"the worker failed: {describe(error)}"))
        except BaseException as error:  # noqa: BLE001  see below
            # A fault point let the process die: there is nobody left to report.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a call was cut off", "exception": error}
            )
        finally:
            running.retire()
            if self._running.get(key) is running:
                del self._running[key]

    def _work(self, running: Running, on_text: OnText) -> Coroutine[Any, Any, None]:
        task = running.task
        agent = self._agents.get(task.agent)
        if agent is None or self._closed:
            return self._refuse(running)
        if isinstance(task, ToolTask):
            tool = agent.tools_by_name.get(task.tool)
            if tool is None or tool.spec.builtin is not None:
                return self._refuse(running)
            if tool.spec.version != task.version:
                return self._refuse(running, tool)
            execute = self._tools.probe if task.probing else self._tools.call
            return execute(running, tool, task, agent.spec.credentials)
        timeout_ms = agent.spec.model_timeout_ms or self._model_timeout_ms
        return model_calls.ask(
            running, task, lambda: self._model(agent, task.request.model), on_text, timeout_ms
        )

    def _model(self, agent: Agent, name: str) -> Model:
        """Return an agent's model: code as it is now, a name as the request has it.

        An agent whose model is code has another one where its server was told so. Code that the
        request does not mean is not asked: raises `ModelError`. A key goes to the provider that
        the agent named here, and to no other, whatever a server says.
        """
        own = agent.spec.model
        if is_code(name):
            if name != own:
                # Asked again, it may be asked by a definition that was made since.
                raise ModelError(
                    f"agent {agent.name!r}: its definition says model {name!r}, and worker "
                    f"{self.name!r} has {own!r}",
                    error_class="transient",
                    code="model_differs",
                )
            return self._code[agent.name]
        reference = agent.spec.credentials.get(MODEL)
        if name.partition(":")[0] != own.partition(":")[0]:
            reference = None
        model = self._named.get((name, reference))
        if model is None:
            model = self._resolve(name) if reference is None else self._keyed(name, reference)
            self._named[name, reference] = model
        return model

    def _keyed(self, name: str, reference: str) -> Model:
        return KeyedModel(reference, self._credentials, lambda key: self._resolve(name, key))

    async def _refuse(self, running: Running, tool: Tool[..., Any] | None = None) -> None:
        why = "is closed" if self._closed else "does not serve this call"
        if tool is not None and isinstance(running.task, ToolTask):
            why = (
                f"has version {tool.spec.version!r} of the tool {tool.spec.name!r}, and the call "
                f"was made for version {running.task.version!r}"
            )
        running.end(_given_up(running.task, f"worker {self.name!r} {why}"))


def _key(task: Task) -> _Key:
    return task.session, task.call, task.attempt if isinstance(task, ToolTask) else 0


def _given_up(task: Task, why: str) -> Report:
    if isinstance(task, ModelTask):
        return ReportModelError(
            call=task.call, error_class="transient", code="worker_disconnected", message=why
        )
    return undecided(task) if task.probing else result(task, Lost(why))
