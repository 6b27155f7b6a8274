"""Nodes with other tools side by side: who lacks what an open call needs leaves it to others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.adapters.models import asks, call, says
from perdure.core.commands import SendMessage, encode_command
from perdure.core.errors import Unavailable
from perdure.core.ids import SessionId
from perdure.core.runs import queued_row
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import InboxEntry
from perdure.worker import Agent, tool
from tests.runtime.test_many_nodes import Town
from tests.runtime.world import last, turn


def agent(version: str | None, hanging: asyncio.Event) -> Agent:
    """Return an agent with a tool of a version, or without the tool."""

    @tool(name="look", effect="read", version=version or "")
    async def look() -> str:
        """Look."""
        await hanging.wait()
        return f"seen by {version}"

    def model(request: ModelRequest) -> Any:
        return asks(call("look")) if turn(request) == 0 else says(str(last(request)))

    return Agent("a", model=model, tools=[] if version is None else [look])


async def interrupted(town: Town, hanging: asyncio.Event) -> str:
    """Let a run call version 1 on a node that dies; return its id."""
    town.agents = (agent("1", hanging),)
    old = await town.open("old")
    run = await old.send("a", "go", session="s")
    await town.settle()
    await town.vanish("old")
    hanging.set()
    return run.id


@pytest.mark.parametrize("has", ["2", None])
async def test_a_node_that_has_the_tool_takes_the_session(has: str | None) -> None:
    """Though another one was there before it, which says what it lacks."""
    hanging = asyncio.Event()
    town = Town()
    left = await interrupted(town, hanging)
    town.agents = (agent(has, hanging),)
    new, other = await town.open("new"), await town.open("other")
    run = await new.run(left)
    for _ in range(100):
        town.clock.advance(100)
        await town.settle(10)
    assert (await run.row()).status == "running"
    town.agents = (agent("1", hanging),)
    await town.open("old again")
    assert await town.result(run) == "seen by 1"
    told = {fields["lacks"] for name, fields in town.telemetry.told if name == "session.unlike"}
    assert told == {
        "tool 'look' is missing"
        if has is None
        else "tool 'look' has version '2', and a call was made for version '1'"
    }
    assert town.telemetry.count("session.unlike") <= 2
    assert other.failure is None
    await town.close()


async def test_nobody_waits_for_ever() -> None:
    """When no node has come that has it, the call is given up, and the model is told why."""
    hanging = asyncio.Event()
    town = Town()
    left = await interrupted(town, hanging)
    town.agents = (agent("2", hanging),)
    new = await town.open("new")
    await town.open("other")
    answer = await town.result(await new.run(left), seconds=90)
    assert "now of version '2', and this call was made for version '1'" in answer
    await town.close()


async def test_alone_nothing_is_waited_for() -> None:
    """There is nobody who could have it."""
    hanging = asyncio.Event()
    town = Town()
    left = await interrupted(town, hanging)
    town.agents = (agent("2", hanging),)
    new = await town.open("new")
    answer = await town.result(await new.run(left), seconds=20)
    assert "now of version '2'" in answer
    assert town.telemetry.count("session.unlike") == 0
    await town.close()


async def test_a_session_is_left_although_its_release_was_not_answered() -> None:
    """Else it would be held by a node that leaves it alone."""
    hanging = asyncio.Event()
    town = Town()
    left = await interrupted(town, hanging)
    town.agents = (agent("2", hanging),)
    new = await town.open("new")
    release = town.store.release

    async def fail_once(*_: Any) -> None:
        town.store.release = release  # type: ignore[method-assign]
        raise Unavailable("nobody answers")

    town.store.release = fail_once  # type: ignore[method-assign]
    await town.open("other")
    for _ in range(100):
        town.clock.advance(100)
        await town.settle(10)
    town.agents = (agent("1", hanging),)
    await town.open("old again")
    assert await town.result(await new.run(left)) == "seen by 1"
    await town.close()


async def test_what_is_left_to_others_hides_nothing_that_is_due() -> None:
    """There is more of it than one scan takes."""
    hanging = asyncio.Event()
    town = Town()
    town.settings = replace(town.settings, scan_batch_sessions=2)
    town.agents = (agent("1", hanging),)
    old = await town.open("old")
    for n in range(5):
        await old.send("a", "go", session=f"s{n}")
    await town.settle()
    await town.vanish("old")
    hanging.set()
    town.agents = (agent("2", hanging),)
    new = await town.open("new")
    await town.open("other")
    for _ in range(100):
        town.clock.advance(100)
        await town.settle(10)
    now = town.clock.now_ms()
    session, message = SessionId("default", "a", "fresh"), SendMessage(id="fresh", content="go")
    entry = InboxEntry("fresh", session, encode_command(message), now)
    await town.store.accept(entry, queued_row(session, message, now))
    assert await town.result(await new.run("fresh"), seconds=10) == "seen by 2"
    assert town.telemetry.count("recovery.scanned") < 50
    await town.close()
