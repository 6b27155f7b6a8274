"""A node's end of the worker socket, played by a test: a real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from perdure.adapters.clock import SystemClock
from perdure.core.ids import SessionId
from perdure.core.messages import ModelReply, UserMessage
from perdure.ports.models import Model
from perdure.wire import table as t
from perdure.wire.registration import Registration
from perdure.wire.results import Result
from perdure.wire.server import ServerSide, WorkerJoins
from perdure.wire.tasks import Detail, LlmTask, ToolTask
from perdure.worker import Agent
from perdure.worker.remote import RemoteWorker
from tests.worker.helpers import Speaker, unknown

T = TypeVar("T")
SESSION = SessionId("default", "helper", "s1")
PATIENCE_SECONDS = 20


class Peer:
    """One connection of a worker; what it says is read one fact after the other."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.side = ServerSide("worker")
        self.facts: asyncio.Queue[Any] = asyncio.Queue()
        self.frames: list[str] = []
        self.dies_at: str | None = None
        self.registration: Registration | None = None

    async def listen(self) -> None:
        """Hear the worker until it is gone."""
        try:
            while True:
                message = await self.socket.recv()
                event = msgspec.json.decode(message)[3]
                self.frames.append(event)
                if event == self.dies_at:
                    self.socket.transport.abort()
                    break
                answers = []
                for thing in self.side.feed(message):
                    if isinstance(thing, str):
                        answers.append(thing)
                    else:
                        self.facts.put_nowait(thing)
                with suppress(ConnectionClosed):  # what it said before it left still comes
                    for answer in answers:
                        await self.socket.send(answer)
        except ConnectionClosed:
            pass
        self.facts.put_nowait(None)

    async def joins(self, *, without: Iterable[str] = ()) -> Registration:
        """Let the worker in; with `without`, as a server that does not know these features."""
        joins = await self.next(WorkerJoins)
        features = joins.registration.features - set(without)
        joins = msgspec.structs.replace(
            joins, registration=msgspec.structs.replace(joins.registration, features=features)
        )
        for frame in self.side.accept_join(joins):
            await self.socket.send(frame)
        self.registration = joins.registration
        return joins.registration

    async def refuses(self, reason: str, code: str | None = None) -> None:
        """Keep the worker out."""
        joins = await self.next(WorkerJoins)
        for frame in self.side.refuse_join(joins, reason, code):
            await self.socket.send(frame)

    async def tell(self, *payloads: Any) -> None:
        """Tell the worker something: a task, or another of `table.PUSHES`."""
        for payload in payloads:
            frames = self.side.tell(payload)
            assert frames, f"the worker does not want to hear {payload}"
            for frame in frames:
                await self.socket.send(frame)

    async def next(self, kind: type[T]) -> T:
        """Return the next fact of this kind; those before it are passed over."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                fact = await self.facts.get()
                if isinstance(fact, kind):
                    return fact
                assert fact is not None, f"the worker left before it said a {kind.__name__}"

    async def result(self) -> Result:
        """Return the next result."""
        return await self.next(Result)

    async def gone(self) -> list[Any]:
        """Wait until the worker is gone; return what it said before, but for credit."""
        said = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (fact := await self.facts.get()) is not None:
                said.append(fact)
        return [fact for fact in said if not isinstance(fact, t.Credit)]

    async def drop(self) -> None:
        """Break the connection as a dying process does."""
        self.socket.transport.abort()
        await self.gone()


class Node:
    """Takes connections of workers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    async def next(self) -> Peer:
        """Return the next worker that connects."""
        return await asyncio.wait_for(self.peers.get(), PATIENCE_SECONDS)

    async def joined(self) -> Peer:
        """Return the next worker that connects, let in."""
        peer = await self.next()
        await peer.joins()
        return peer


@asynccontextmanager
async def a_node(**options: Any) -> AsyncIterator[Node]:
    """Run a node on a free port."""
    found: list[Node] = []

    async def talk(socket: ServerConnection) -> None:
        peer = Peer(socket)
        found[0].peers.put_nowait(peer)
        await peer.listen()

    async with serve(talk, "127.0.0.1", 0, compression=None, **options) as server:
        found.append(Node(server))
        yield found[0]


class Running:
    """A worker that runs, and how it ended."""

    def __init__(self, worker: RemoteWorker, agents: list[Agent]) -> None:
        self.worker = worker
        self.task = asyncio.ensure_future(worker.run(agents, signals=False))

    async def ended(self) -> None:
        """Wait for its end; raises what ended it."""
        await asyncio.wait_for(self.task, PATIENCE_SECONDS)


@asynccontextmanager
async def a_worker(
    url: str,
    *tools: Any,
    model: Any = None,
    resolve: Callable[[str], Model] = unknown,
    clock: Any = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """Run a worker with the agent `helper`, which is defined nowhere."""
    agent = Agent("helper", model=model or Speaker(ModelReply(content="Good day")), tools=tools)
    clock = clock or SystemClock()
    options = {"register": False, "worker_id": "w1", **options}
    running = Running(RemoteWorker(url, "key-1", resolve, clock, **options), [agent])
    try:
        yield running
    finally:
        running.task.cancel()
        await asyncio.wait([running.task])


def tool_task(task_id: str = "T1", **fields: Any) -> ToolTask:
    """Return a call of the tool `work`."""
    detail = {"call": f"1.1.{task_id}", "effect": "read", "attempt": 1, "probe": False}
    detail |= {name: fields.pop(name) for name in tuple(fields) if name in detail}
    return ToolTask(
        task_id=task_id,
        tool_name=fields.pop("tool", "work"),
        input=fields.pop("input", {}),
        idempotency_key="key-of-the-call",
        perdure=Detail(session=SESSION, run="r1", agent="helper", **detail),
    )


def llm_task(task_id: str = "M1", **fields: Any) -> LlmTask:
    """Return a model call."""
    given: dict[str, Any] = {"messages": (UserMessage("hello"),), "run_id": 7, **fields}
    detail = Detail(session=SESSION, run="r1", call=f"1.1.{task_id}", agent="helper")
    given.setdefault("model", "object:Speaker")
    return LlmTask(task_id=task_id, system_prompt="Help.", perdure=detail, **given)


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until something is so; fail rather than hang."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():  # noqa: ASYNC110  nobody tells when it becomes so
            await asyncio.sleep(0)
