"""Workers for tests: the real protocol on both sides, and no socket between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from perdure.server.members import Member
from perdure.server.pool import Pool
from perdure.wire import table as t
from perdure.wire.registration import AgentOffer, Registration, ToolOffer
from perdure.wire.results import Result
from perdure.wire.server import Left, ServerSide, WorkerJoins
from perdure.wire.tasks import LlmTask, ToolTask
from perdure.wire.worker import Acknowledged, Joined, Replied, WorkerSide

LOBBY = t.WORKER_TOPIC
NOISE = Joined | Acknowledged | Replied
Does = Callable[[LlmTask | ToolTask], Result | None]


def registration(
    worker_id: str = "w1",
    *tools: str,
    llm: bool = True,
    features: tuple[str, ...] = (),
    agents: dict[str, tuple[str, ...]] | None = None,
    **more: Any,
) -> Registration:
    """Return what a worker with these tools says of itself."""
    offers = tuple(ToolOffer(name, f"Does {name}.", {"type": "object"}) for name in tools)
    return Registration(
        worker_id=worker_id,
        tools=offers,
        capabilities=("llm", "tools") if llm else ("tools",),
        features=frozenset(features),
        agents=tuple(AgentOffer(name, of) for name, of in (agents or {}).items()),
        **more,
    )


class Peer:
    """A worker that is connected to a pool; `does` answers its tasks, as far as it returns one.

    It is the pool's connection as well: what is sent arrives a turn of the loop later.
    """

    def __init__(
        self,
        pool: Pool,
        what: Registration,
        *,
        tenant: str = "default",
        does: Does = lambda task: None,
    ) -> None:
        self.heard: list[Any] = []
        self.frames: list[str] = []
        self.closed: int | None = None
        self.side = WorkerSide(what)
        self.wire = ServerSide("worker")
        self.member: Member | None = None
        self._pool, self._tenant, self._does = pool, tenant, does
        self.say(self.side.join())

    @property
    def tasks(self) -> list[Any]:
        """The tasks that came, in order."""
        return [fact for fact in self.heard if isinstance(fact, LlmTask | ToolTask)]

    @property
    def ids(self) -> list[str]:
        """The ids of the tasks that came, in order."""
        return [task.task_id for task in self.tasks]

    def send(self, frame: str) -> None:
        """Take a frame from the server."""
        self.frames.append(frame)
        asyncio.get_running_loop().call_soon(self._hear, frame)

    def close(self, code: int) -> None:
        """Be cut off by the server."""
        self.closed = code
        self.lose()

    def say(self, *frames: str) -> None:
        """Say something to the server, which acts on it as it should."""
        for frame in frames:
            for thing in self.wire.feed(frame):
                if isinstance(thing, str):
                    self.send(thing)
                elif isinstance(thing, WorkerJoins):
                    for reply in self.wire.accept_join(thing):
                        self.send(reply)
                    self.member = self._pool.join(self._tenant, thing.registration, self.wire, self)
                elif isinstance(thing, Left) and self.member is not None:
                    self._pool.leave(self.member)
                elif self.member is not None:
                    self._pool.hear(self.member, thing)  # type: ignore[arg-type]

    def holds(self, *task_ids: str) -> None:
        """Say which tasks the worker is at, as it does first of all when it comes back."""
        self.say(*self.side.holds(task_ids))

    def ok(self, task_id: str, result: Any = "done") -> None:
        """Bring a tool's result."""
        self.say(self.side.result(Result(task_id=task_id, status="ok", result=result)))

    def fail(self, task_id: str, error: str) -> None:
        """Bring a failure."""
        self.say(self.side.result(Result(task_id=task_id, status="error", error=error)))

    def reply(self, task_id: str, content: str = "done") -> None:
        """Bring a model's reply."""
        self.say(self.side.result(Result(task_id=task_id, status="ok", content=content)))

    def lose(self) -> None:
        """Lose the connection."""
        if self.member is not None:
            self._pool.lose(self.member)

    def _hear(self, frame: str) -> None:
        for thing in self.side.feed(frame):
            if isinstance(thing, str):
                self.say(thing)
                continue
            if not isinstance(thing, NOISE):
                self.heard.append(thing)
            if isinstance(thing, LlmTask | ToolTask):
                result = self._does(thing)
                if result is not None:
                    self.say(self.side.result(result))
