"""The official Phoenix client for JavaScript follows agents and writes to them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.norns.house import House, Program, call, script
from tests.conformance.norns.phone import BOT
from tests.conformance.phoenix.environment import node_modules

HERE = Path(__file__).parent
CHARGES = script([call("charge", amount=5)], "so: {last}")


class Phoenix(Program):
    """The client, in a process of its own."""

    async def say(self, *command: Any) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()

    async def happens(self) -> list[Any]:
        """Return the next thing that happens."""
        line = await self.line()
        assert line, "the client has ended"
        return json.loads(line)

    async def hear(self, *begins: Any) -> list[Any]:
        """Return the rest of the next thing that begins so; others before it are passed over."""
        happened = await self.happens()
        while happened[: len(begins)] != list(begins):
            happened = await self.happens()
        return happened[len(begins) :]

    async def join(self, topic: str) -> None:
        """Join a topic."""
        await self.say("join", topic)
        assert await self.hear("joined", topic) == [{}]

    async def follow(self, topic: str) -> list[Any]:
        """Return what is heard of a topic up to the end of a run."""
        heard: list[Any] = []
        while not heard or heard[-1][0] not in ("completed", "error"):
            heard.append(await self.hear("heard", topic))
        return heard


@pytest.fixture(scope="session")
def modules() -> Path:
    """Return the folder of the client: installed once, in some seconds."""
    return node_modules(HERE.parent)


async def start(house: House, modules: Path, key: str = "", heartbeat_ms: int = 30_000) -> Phoenix:
    """Start a client."""
    command = ["node", HERE / "client.cjs", house.url, key or house.key, heartbeat_ms]
    return Phoenix(await house.start("phoenix", *command, NODE_PATH=modules))


async def send(phoenix: Phoenix, topic: str, content: str) -> int:
    """Send a message over a channel; return its run."""
    await phoenix.say("push", topic, "send_message", {"content": content})
    (response,) = await phoenix.hear("ok", topic)
    return response["run_id"]


async def test_a_client_hears_a_run_to_its_end(house: House, modules: Path) -> None:
    """Whoever sent its message; another agent's channel on the same socket stays silent."""
    await house.worker()
    phoenix = await start(house, modules)
    other = (await house.post("/agents", {**BOT, "name": "other"}))["id"]
    bot = next(one["id"] for one in await house.get("/agents") if one["name"] == "bot")
    topic = f"agent:{bot}"
    await phoenix.join(f"agent:{other}")
    await phoenix.join(topic)
    runs = [(await house.post(f"/agents/{bot}/messages", {"content": CHARGES}))["run_id"]]
    heard = await phoenix.follow(topic)
    runs.append(await send(phoenix, topic, CHARGES))
    for run, events in zip(runs, (heard, await phoenix.follow(topic)), strict=True):
        assert [event for event, _ in events] == [
            "agent_started", "llm_response", "tool_call", "tool_result", "llm_response",
            "completed",
        ]  # fmt: skip
        assert {(told["agent_id"], told["run_id"]) for _, told in events} == {(bot, run)}
        assert events[-1][1]["output"] == "so: charged 5"
    await phoenix.say("leave", topic)
    await phoenix.hear("left", topic)
    await phoenix.say("push", f"agent:{other}", "send_message", {"content": "hi"})
    await phoenix.hear("ok", f"agent:{other}")


async def test_a_foreign_agent_is_one_that_is_not_there(house: House, modules: Path) -> None:
    """The client hears so, and its socket stays open for its own."""
    await house.post("/agents", BOT)
    status, made = await house.ask("POST", "/agents", BOT, house.foreign_key)
    assert status == 201
    phoenix = await start(house, modules)
    for topic in (f"agent:{made['data']['id']}", "agent:999", "agent:x"):
        await phoenix.say("join", topic)
        assert await phoenix.hear("refused", topic) == [{"reason": "not found"}]
        await phoenix.say("leave", topic)
    (bot,) = await house.get("/agents")
    await phoenix.join(f"agent:{bot['id']}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_a_client_comes_back_with_its_channels(
    mortal: House, modules: Path, number: signal.Signals
) -> None:
    """It joins them again by itself, and hears the end of a run that began before."""
    await mortal.worker()
    phoenix = await start(mortal, modules)
    (bot,) = await mortal.get("/agents")
    topic = f"agent:{bot['id']}"
    await phoenix.join(topic)
    run = await send(phoenix, topic, script([call("ask_human", question="sure?")], "so: {last}"))
    await phoenix.hear("heard", topic, "waiting_for_user")
    await mortal.kill_node(number)
    (code,) = await phoenix.hear("closed")
    assert code == (1006 if number == signal.SIGKILL else 1012)
    await mortal.node()
    await phoenix.hear("joined", topic)
    await mortal.post(f"/runs/{run}/reply", {"answer": "yes"})
    event, told = (await phoenix.follow(topic))[-1]
    assert (event, told["run_id"], told["output"]) == ("completed", run, "so: yes")


async def test_heartbeats_are_answered(house: House, modules: Path) -> None:
    """A client that got no answer to one would connect anew instead of sending the next."""
    phoenix = await start(house, modules, heartbeat_ms=200)
    for _ in range(3):
        assert await phoenix.hear("beat", "phx_reply") == [{"status": "ok", "response": {}}]


async def test_a_wrong_key_opens_no_socket(house: House, modules: Path) -> None:
    """The client tries again and again, and never gets in."""
    phoenix = await start(house, modules, "nrn_wrong")
    for _ in range(3):
        assert await phoenix.happens() == ["closed", 1006]
