"""A session that kills its host is set aside, and none of those that ran beside it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.core.limits import STRIKES_MAX
from perdure.ports.models import ModelRequest
from perdure.runtime.settings import NodeSettings
from tests.runtime.test_node import agent
from tests.runtime.world import World

PROBATION_MS = 10_000
SETTINGS = NodeSettings(lease_ms=10**8, probation_ms=PROBATION_MS, linger_ms=100)


class Lives:
    """Sessions of which some kill whoever runs them, and the others wait for a long model call."""

    def __init__(self, *names: str) -> None:
        self.deadly = False
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.world = World(agent(self.reply), settings=SETTINGS)
        self.names = names
        self.deaths = 0

    async def reply(self, request: ModelRequest) -> str:
        """Kill, or take long."""
        name = str(request.messages[-1].content)
        self.asked.append(name)
        if name.startswith("poison"):
            self.deadly = True
            await asyncio.Event().wait()
        await self.gate.wait()
        return f"{name} is done"

    async def begin(self) -> None:
        """Send everything to a node that dies of it."""
        node = await self.world.node()
        self.runs = {name: await node.send("a", name, session=name) for name in self.names}
        await self.world.settle(200)
        await self.die(node)

    async def die(self, node: Any) -> None:
        """Let the host vanish; its memory of what is deadly goes with it."""
        assert self.deadly
        self.deaths += 1
        self.deadly = False
        await self.world.crash(node)

    async def survivor(self) -> Any:
        """Start one node after the other until one lives."""
        while True:
            self.asked.clear()
            node = await self.world.node()
            await self.world.settle(200)
            if not self.deadly:
                return node
            await self.die(node)

    async def set_aside(self) -> set[str]:
        """Return the sessions in quarantine."""
        found = {name: await self.world.store.load(run.session) for name, run in self.runs.items()}
        return {name for name, loaded in found.items() if loaded and loaded.quarantine}


@pytest.mark.parametrize(
    "names",
    [
        ("poison", "a", "b", "c"),
        ("a", "b", "poison", "c"),
        ("a", "b", "c", "poison"),
        ("poison 1", "a", "poison 2", "b", "poison 3"),
        (*"abcdefgh", "poison", *"ijklmnop"),
    ],
)
async def test_only_the_guilty_collects_its_last_strike(names: tuple[str, ...]) -> None:
    lives = Lives(*names)
    guilty = {name for name in names if name.startswith("poison")}
    await lives.begin()
    for _ in range(len(guilty) + STRIKES_MAX):
        lives.gate.clear()
        node = await lives.survivor()
        lives.gate.set()
        await lives.world.settle(400)
        if not lives.deadly:
            break
        await lives.die(node)
    assert await lives.set_aside() == guilty
    for name in set(names) - guilty:
        assert (await node.row(lives.runs[name].id)).status == "completed", name
    assert lives.deaths == STRIKES_MAX + len(guilty) - 1
    await node.stop()


async def test_one_at_a_time_and_those_without_strikes_at_once() -> None:
    lives = Lives("a", "b", "poison", "c")
    await lives.begin()
    node = await lives.survivor()
    assert lives.asked == ["a"]
    fresh = [await node.send("a", f"new {n}", session=f"new {n}") for n in range(5)]
    await lives.world.settle(100)
    assert len(lives.asked) == 1 + len(fresh)
    await node.stop()


async def test_after_its_time_the_next_one_follows() -> None:
    lives = Lives("a", "b", "poison", "c")
    await lives.begin()
    node = await lives.survivor()
    assert lives.asked == ["a"]
    lives.world.clock.advance(PROBATION_MS - 1)
    await lives.world.settle(100)
    assert lives.asked == ["a"]
    lives.world.clock.advance(1)
    await lives.world.settle(100)
    assert lives.asked == ["a", "b"]
    await node.stop()


async def test_many_that_wait_keep_nobody_else_from_being_found() -> None:
    """The scan takes what is due in batches, and those who wait stay due."""
    lives = Lives(*(f"s{n:02}" for n in range(30)), "poison")
    lives.world.settings = NodeSettings(
        lease_ms=10**8, probation_ms=PROBATION_MS, scan_batch_sessions=4
    )
    await lives.begin()
    node = await lives.world.node()
    await lives.world.pass_time(2)
    await lives.die(node)
    other = await lives.world.node()
    run = await other.send("a", "late", session="late")
    await lives.world.crash(other)
    lives.asked.clear()
    node = await lives.world.node()
    await lives.world.pass_time(2)
    assert "late" in lives.asked
    assert len(lives.asked) == 2
    lives.gate.set()
    await lives.world.settle(400)
    assert (await node.row(run.id)).status == "completed"
    await node.stop()


PROGRAM = """
import asyncio, json, os, signal, sys
from perdure import Agent, Runtime
from perdure.core.errors import Quarantined

NAMES = ["a", "b", "poison", "c"]

async def reply(request):
    name = request.messages[-1].content
    if name == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.2)  # a model that takes long, compared with the poison
    return f"{name} is done"

async def main():
    found = {}
    async with Runtime("sqlite:///store.db", agents=[Agent("x", model=reply)]) as node:
        runs = [await node.send("x", n, session=n, idempotency_key=n) for n in NAMES]
        for name, run in zip(NAMES, runs):
            try:
                found[name] = await run.result()
            except Quarantined as error:
                found[name] = str(error)
    print(json.dumps(found))

asyncio.run(main())
"""


def test_real_processes_die_of_one_session_and_finish_the_others(tmp_path: Path) -> None:
    codes = []
    for _ in range(STRIKES_MAX + 4):
        life = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        codes.append(life.returncode)
        if life.returncode != -signal.SIGKILL:
            break
    assert codes == [-signal.SIGKILL] * STRIKES_MAX + [0], life.stderr
    found = json.loads(life.stdout)
    assert "its host died 3 times in a row" in found.pop("poison")
    assert found == {name: f"{name} is done" for name in "abc"}
