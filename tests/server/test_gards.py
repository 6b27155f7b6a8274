"""Gards over the socket of workers: who holds one while connections come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from perdure.wire.worker import Joined, JoinRefused, WorkerSide
from tests.server.house import BOT, House, echo, house
from tests.server.peers import registration


class Socket:
    """A worker's connection to the application, without a network."""

    def __init__(self, h: House, gard: dict[str, Any] | None, worker_id: str) -> None:
        what = registration(worker_id)
        if gard is not None:
            held = {"gard": str(gard["id"]), "claim_token": gard["claim_token"]}
            what = registration(worker_id, **held)
        self.side = WorkerSide(what)
        self.facts: list[Any] = []
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.say({"type": "websocket.connect"})
        self.say({"type": "websocket.receive", "text": self.side.join()})
        scope = {
            "type": "websocket",
            "path": "/worker/websocket",
            "query_string": f"token={h.keys['acme', 'worker']}&vsn=2.0.0".encode(),
            "headers": [],
        }
        self.task = asyncio.ensure_future(h.app(scope, self.said.get, self._hear))

    def say(self, message: dict[str, Any]) -> None:
        """Have the application receive something."""
        self.said.put_nowait(message)

    async def _hear(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            self.facts += self.side.feed(message["text"])
        elif message["type"] == "websocket.close":
            await self.lose(1012)

    async def lose(self, code: int = 1006) -> None:
        """Lose the connection."""
        self.say({"type": "websocket.disconnect", "code": code})


@asynccontextmanager
async def a_gard(h: House) -> AsyncIterator[tuple[dict[str, Any], Any, Any]]:
    """Make a gard; give how to connect to it, and how to see its status."""
    gard = await h.make("/gards", {"name": "g"})
    async with AsyncExitStack() as stack:

        async def connect(worker_id: str = "w1") -> Socket:
            socket = Socket(h, gard, worker_id)
            stack.push_async_callback(asyncio.wait, [socket.task])
            stack.push_async_callback(socket.lose)
            await h.settle()
            return socket

        async def status() -> str:
            await h.settle()
            return str((await h.get(f"/gards/{gard['id']}"))["status"])

        yield gard, connect, status


async def test_an_old_connection_that_ends_at_last_frees_nothing() -> None:
    """The worker came back before: it holds the gard, and nobody else gets it."""
    async with house() as h, a_gard(h) as (_, connect, status):
        old = await connect()
        assert await status() == "ready"
        new = await connect()
        await asyncio.wait([old.task])
        assert await status() == "ready"
        other = await connect("w2")
        assert [type(fact) for fact in (*new.facts, *other.facts)] == [Joined, JoinRefused]
        await new.lose()
        assert await status() == "disconnected"


async def test_a_channel_that_is_joined_anew_keeps_its_gard() -> None:
    """On the same connection: letting go of the first join does not undo the second."""
    async with house() as h, a_gard(h) as (_, connect, status):
        socket = await connect()
        socket.say({"type": "websocket.receive", "text": socket.side.join()})
        assert await status() == "ready"


async def test_a_run_is_in_its_gard_while_it_begins() -> None:
    """Whoever read its row before it began, and its message after, finds its gard in its log."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        gard = (await h.make("/gards", {"name": "g"}))["id"]
        first = await h.run(agent, "be silent", conversation_key="k")
        second = await h.run(agent, "be silent", conversation_key="k", gard_id=gard)
        await h.settle()
        desk = h.service.desk("acme")
        queued = await desk.row(second)
        await desk.end([await desk.row(first)], "enough")
        await h.settle()
        assert (queued.status, queued.started_seq) == ("queued", None)
        assert (await desk.row(second)).started_seq is not None
        assert await desk.meta(queued) == await desk.meta(await desk.row(second))
        assert (await desk.meta(queued))["gard"] == gard
