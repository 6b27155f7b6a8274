"""Runs that launch runs: in parallel, once, whoever dies; and what becomes of the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure.core.agent import Subagents
from perdure.core.errors import KeyReused
from perdure.core.ids import SessionId
from perdure.core.messages import ToolRequest
from perdure.ports.models import ModelReply, ModelRequest
from perdure.runtime.node import Node
from perdure.worker import Agent, ask_human, launch_agent, tool, wait
from tests.runtime.world import World, last, turn


def launches(*names: str, **more: Any) -> ModelReply:
    """Return a reply that launches agents, all at once."""
    return ModelReply(
        tool_calls=tuple(
            ToolRequest(f"c{n}", "launch_agent", {"agent_name": name, "message": f"go {n}", **more})
            for n, name in enumerate(names)
        )
    )


def answers(request: ModelRequest) -> list[Any]:
    """Return what the model was answered in its last step."""
    return [one.content for one in request.messages if type(one).__name__ == "ToolMessage"]


def boss(*names: str, subagents: Subagents | None = None, **more: Any) -> Agent:
    """Return an agent that launches others and says what they said."""

    def model(request: ModelRequest) -> ModelReply | str:
        return launches(*names, **more) if turn(request) == 0 else " | ".join(answers(request))

    return Agent(
        "boss", model=model, tools=[launch_agent], subagents=subagents or Subagents(),
        purpose="Knows everybody.",
    )  # fmt: skip


def worker(name: str, world: list[World], reply: Any = None) -> Agent:
    """Return an agent that counts how often its model was asked, and says its name."""

    def model(request: ModelRequest) -> ModelReply | str:
        world[0].ran[name] += 1
        return reply(request) if reply is not None else f"{name}: {last(request)}"

    return Agent(name, model=model, tools=[wait, ask_human, launch_agent], purpose=f"Is {name}.")


def office(*agents: Agent, here: list[World]) -> World:
    """Return a world with these agents."""
    world = World(*agents)
    here.append(world)
    return world


async def children(world: World, run: Any) -> list[dict[str, Any]]:
    """Return what a run launched, in order."""
    return [
        {"run": item.event.child, "agent": item.event.agent, "key": item.event.key}
        async for item in run._node.read(run.session, 0)
        if item.type == "child_launched"
    ]


async def statuses(node: Node, world: World, run: Any) -> list[str]:
    """Return how the children of a run stand, as far as they were asked for."""
    rows = {row.id: str(row.status) for row in await node.rows()}
    return [rows.get(one["run"], "absent") for one in await children(world, run)]


async def _all(node: Node, agent: str) -> list[str]:
    return [str(row.status) for row in await node.rows(agent=agent)]


async def until(look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Wait until something is as it should be: models run in threads, whatever the clock says."""
    async with asyncio.timeout(20):
        while await look() != wanted:  # noqa: ASYNC110  nobody tells of what is looked at
            await asyncio.sleep(0.001)


async def patiently(world: World, run: Any) -> Any:
    """Return what a run answers, while time passes: what was at work in a crash is on probation."""
    result = asyncio.ensure_future(run.result())
    async with asyncio.timeout(20):
        while not result.done():
            await world.pass_time(1)
            await asyncio.wait([result], timeout=0.001)
    return result.result()


async def test_children_work_at_the_same_time_and_are_waited_for() -> None:
    here: list[World] = []
    world = office(boss("ann", "bob"), worker("ann", here), worker("bob", here), here=here)
    node = await world.node()
    run = await node.send("boss", "do it")
    assert await run.result() == "ann: go 0 | bob: go 1"
    assert world.ran == {"ann": 1, "bob": 1}
    for child in await children(world, run):
        types = [
            item.type
            async for item in node.read(SessionId("default", child["agent"], child["key"]), 0)
        ]
        assert types[-1] == "letters_delivered"
    await node.stop()


@pytest.mark.parametrize("when", ["at once", "child waits", "child is done"])
async def test_a_tree_goes_on_wherever_its_node_died_and_nothing_is_paid_twice(when: str) -> None:
    here: list[World] = []

    def reply(request: ModelRequest) -> ModelReply | str:
        if turn(request):
            return f"ann: {last(request)}"
        return ModelReply(tool_calls=(ToolRequest("q", "ask_human", {"question": "Sure?"}),))

    world = office(boss("ann"), worker("ann", here, reply), here=here)
    node = await world.node()
    run = await node.send("boss", "do it")
    if when != "at once":
        await until(lambda: statuses(node, world, run), ["waiting"])
    if when == "child is done":
        (child,) = await children(world, run)
        await node.reply(child["run"], "yes")
    await world.crash(node)
    node = await world.node()
    again = await node.run(run.id)
    await world.settle()
    if when != "child is done":
        await until(lambda: statuses(node, world, again), ["waiting"])
        (child,) = await children(world, again)
        await node.reply(child["run"], "yes")
    assert await patiently(world, again) == "ann: yes"
    assert world.ran["ann"] == 2
    await node.stop()


def asks_first(request: ModelRequest) -> ModelReply | str:
    """Ask a person, then say what they said."""
    if turn(request):
        return f"told {last(request)}"
    return ModelReply(tool_calls=(ToolRequest("q", "ask_human", {"question": "Sure?"}),))


def passes_on(name: str) -> Any:
    """Return a model that launches one other agent and repeats it."""

    def model(request: ModelRequest) -> ModelReply | str:
        return launches(name) if turn(request) == 0 else str(last(request))

    return model


async def test_a_cancelled_run_takes_all_below_it_along() -> None:
    here: list[World] = []
    world = office(
        boss("ann", "bob"),
        worker("ann", here, passes_on("eve")),
        worker("bob", here, asks_first),
        worker("eve", here, asks_first),
        here=here,
    )
    node = await world.node()
    run = await node.send("boss", "do it")
    await until(lambda: statuses(node, world, run), ["waiting", "waiting"])
    await until(lambda: _all(node, "eve"), ["waiting"])
    await node.cancel(run.id)
    await until(lambda: statuses(node, world, run), ["cancelled", "cancelled"])
    await until(lambda: _all(node, "eve"), ["cancelled"])
    await node.stop()


async def test_a_parent_that_waits_is_not_kept_in_memory() -> None:
    here: list[World] = []
    world = office(boss("ann"), worker("ann", here, asks_first), here=here)
    node = await world.node()
    run = await node.send("boss", "do it")
    await until(lambda: statuses(node, world, run), ["waiting"])
    await world.pass_time(1)
    assert node._host.active() == 0
    assert [one["what"] for one in (await run.row()).waiting_for] == ["child"]
    (child,) = await children(world, run)
    await node.reply(child["run"], "yes")
    assert await run.result() == "told yes"
    await node.stop()


async def test_a_child_that_fails_is_launched_again_and_paid_once_each() -> None:
    here: list[World] = []

    def fails_once(request: ModelRequest) -> str:
        if here[0].ran["ann"] == 1:
            raise ValueError("no luck")
        return "luck"

    policy = Subagents(on_failure="restart")
    world = office(boss("ann", subagents=policy), worker("ann", here, fails_once), here=here)
    node = await world.node()
    run = await node.send("boss", "do it")
    assert await run.result() == "luck"
    assert world.ran["ann"] == 2
    assert len(await node.rows(agent="ann")) == 2
    await node.stop()


async def test_a_launch_that_its_inbox_refuses_is_told() -> None:
    here: list[World] = []
    long = "x" * 300_000

    def model(request: ModelRequest) -> ModelReply | str:
        asked = ToolRequest("c", "launch_agent", {"agent_name": "ann", "message": long})
        return str(last(request)) if turn(request) else ModelReply(tool_calls=(asked,))

    world = office(Agent("boss", model=model, tools=[launch_agent]), worker("ann", here), here=here)
    node = await world.node()
    run = await node.send("boss", "do it")
    assert "MESSAGE_BYTES_MAX" in await run.result()
    assert not world.ran
    await node.stop()


async def test_a_child_is_shown_only_what_all_above_it_may_call() -> None:
    here: list[World] = []
    shown: list[list[str]] = []

    @tool(effect="read", capabilities=["net.http"])
    async def fetch() -> str:
        """Fetch."""
        return "page"

    def model(request: ModelRequest) -> str:
        shown.append([one.name for one in request.tools])
        return "seen"

    ann = Agent("ann", model=model, tools=[fetch], grants=["net.http"])
    world = office(boss("ann"), ann, here=here)
    node = await world.node()
    assert await (await node.send("boss", "do it")).result() == "seen"
    assert await (await node.send("ann", "do it")).result() == "seen"
    assert shown == [[], ["fetch"]]
    await node.stop()


@pytest.mark.parametrize("seed", range(12))
async def test_a_deep_tree_survives_kills_at_any_moment(seed: int) -> None:
    """Depth 2, 13 runs: whenever its node dies, each is begun once, ends once and is told once."""
    here: list[World] = []

    def spreads(*names: str) -> Any:
        def model(request: ModelRequest) -> ModelReply | str:
            return launches(*names) if turn(request) == 0 else "+".join(answers(request))

        return model

    world = office(
        boss("a", "b", "c"),
        *(worker(name, here, spreads("x", "y", "z")) for name in "abc"),
        *(worker(name, here) for name in "xyz"),
        here=here,
    )
    chance = random.Random(seed)
    node = await world.node()
    run = await node.send("boss", "do it")
    for _ in range(2):
        await world.settle(chance.randrange(60))
        await world.crash(node)
        node = await world.node()
        run = await node.run(run.id)
    each = "x: go 0+y: go 1+z: go 2"
    assert await patiently(world, run) == " | ".join([each] * 3)
    rows = await node.rows()
    assert len(rows) == 13
    assert {row.status for row in rows} == {"completed"}
    await world.settle()
    for row in rows:
        log = [item.type async for item in node.read(row.session, 0)]
        assert log.count("run_started") == 1
        assert (log[-1] == "letters_delivered") == (row.id != run.id)
    await node.stop()


@pytest.mark.parametrize("what", ["start:", "end:"])
async def test_a_letter_that_another_version_wrote_is_there(what: str) -> None:
    """Its id is known with other bytes: it was accepted, and nobody is told otherwise."""
    here: list[World] = []
    world = office(boss("ann"), worker("ann", here), here=here)
    accept, seen = world.store.accept, set[str]()

    async def once_and_again(entry: Any, *more: Any) -> Any:
        receipt = await accept(entry, *more)
        named = "start:" if b'"parent"' in entry.command else entry.id[:4]
        if named == what and entry.id not in seen:
            seen.add(entry.id)
            raise KeyReused("the same id with another command")
        return receipt

    world.store.accept = once_and_again  # type: ignore[method-assign]
    node = await world.node()
    run = await node.send("boss", "do it")
    assert await patiently(world, run) == "ann: go 0"
    assert seen
    await node.stop()


async def test_an_end_that_cannot_be_told_sets_its_session_aside() -> None:
    """What it owes is not forgotten: whoever lifts the quarantine has it sent again."""
    here: list[World] = []
    world = office(boss("ann"), worker("ann", here), here=here)
    accept, broken = world.store.accept, [True]

    async def refuses_ends(entry: Any, *more: Any) -> Any:
        if broken[0] and entry.id.startswith("end:"):
            raise LookupError("a driver's mistake")
        return await accept(entry, *more)

    world.store.accept = refuses_ends  # type: ignore[method-assign]
    node = await world.node()
    run = await node.send("boss", "do it")
    await until(lambda: statuses(node, world, run), ["completed"])
    (child,) = await children(world, run)
    session = SessionId("default", child["agent"], child["key"])
    await until(lambda: _is_set_aside(node, session), True)
    broken[0] = False
    await node.release(child["agent"], child["key"])
    assert await patiently(world, run) == "ann: go 0"
    await node.stop()


async def _is_set_aside(node: Node, session: SessionId) -> bool:
    return await node.set_aside(session) is not None
