"""A raw connection to a node's sockets: frames as lists, nothing added and nothing hidden."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.conformance.norns.house import DEADLINE_SECONDS, House, until

LOBBY = "worker:lobby"
CHARGE = {
    "name": "charge",
    "description": "Take money.",
    "input_schema": {"type": "object"},
    "side_effect": True,
}
OK = {"status": "ok", "response": {}}
BOT = {"name": "bot", "status": "idle", "system_prompt": "You help."}
REPLY = {"content": "done", "finish_reason": "stop", "usage": {"input_tokens": 1}}


def calls(*requests: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a model's reply that asks for tools; the calls are named c1, c2, and so on."""
    asked = [
        {"id": f"c{number}", "name": name, "arguments": arguments}
        for number, (name, arguments) in enumerate(requests, 1)
    ]
    return {"content": "", "finish_reason": "tool_call", "tool_calls": asked}


CALLS = calls(("charge", {"amount": 5}))


class Phone:
    """One connection. Each frame that comes has exactly five elements, or the test fails."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, *frame: Any) -> None:
        """Send a frame."""
        await self.connection.send(json.dumps(frame))

    async def hear(self) -> list[Any]:
        """Return the next frame."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            frame = json.loads(await self.connection.recv())
        assert isinstance(frame, list)
        assert len(frame) == 5
        return frame

    async def hear_of(self, event: str) -> Any:
        """Return the payload of the next frame of an event; others before it are passed over."""
        frame = await self.hear()
        while frame[3] != event:
            frame = await self.hear()
        return frame[4]

    async def ask(self, *frame: Any) -> list[Any]:
        """Send a frame; return the next that comes."""
        await self.say(*frame)
        return await self.hear()

    async def join(self, **said: Any) -> list[Any]:
        """Join as the official SDK's worker does; return the reply."""
        payload = {"worker_id": "raw", "tools": [CHARGE], "capabilities": ["llm", "tools"], **said}
        return await self.ask(None, "1", LOBBY, "phx_join", payload)

    async def result(self, task: dict[str, Any], **said: Any) -> None:
        """Send a result of a task."""
        result = {"status": "ok", "task_id": task["task_id"], **said}
        await self.say("1", "2", LOBBY, "tool_result", result)

    async def task(self) -> dict[str, Any]:
        """Return the next task that comes, of a model or of a tool."""
        frame = await self.hear()
        while frame[3] not in ("llm_task", "tool_task"):
            frame = await self.hear()
        return frame[4]

    async def serve(self, *results: dict[str, Any]) -> list[dict[str, Any]]:
        """Answer as many tasks as there are results; return the tasks."""
        tasks = []
        for result in results:
            tasks.append(await self.task())
            await self.result(tasks[-1], **result)
        return tasks

    async def closed(self) -> int | None:
        """Return the code that the node closes with."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.connection.wait_closed()
        return self.connection.close_code


@asynccontextmanager
async def phone(
    house: House, socket: str = "worker", key: str | None = None, **options: Any
) -> AsyncIterator[Phone]:
    """Open a raw connection."""
    token = house.key if key is None else key
    url = f"{house.url.replace('http', 'ws', 1)}/{socket}/websocket?token={token}&vsn=2.0.0"
    async with connect(url, proxy=None, **options) as connection:
        yield Phone(connection)


async def define(house: House, **more: Any) -> int:
    """Make the agent `bot`; return its id."""
    return (await house.post("/agents", {**BOT, **more}))["id"]


async def send(house: House, content: Any = "hi", **named: Any) -> int:
    """Send the agent `bot` a message; return its run."""
    agents = await house.get("/agents")
    agent = agents[0]["id"] if agents else await define(house)
    body = {"content": content, **named}
    return (await house.post(f"/agents/{agent}/messages", body))["run_id"]


async def over(house: House, run: int, *statuses: str) -> dict[str, Any]:
    """Return a run once it is over, or has one of these statuses."""

    async def found() -> Any:
        shown = await house.get(f"/runs/{run}")
        return shown if shown["status"] in (statuses or ("completed", "failed")) else None

    return await until(found)


async def events(house: House, run: int) -> list[str]:
    """Return the types of a run's events."""
    return [event["event_type"] for event in await house.get(f"/runs/{run}/events")]
