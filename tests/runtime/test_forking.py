"""Forks over a real node: the source's log is read, never written, and nothing is done again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from perdure.adapters.models import asks, call, says
from perdure.core.codec import decode_event
from perdure.core.errors import InvalidInput, KeyReused, LimitExceeded, NotFound, Refused
from perdure.core.events import SessionForked
from perdure.core.export import export_lines, verify_export
from perdure.core.messages import AssistantMessage, ToolRequest, UserMessage
from perdure.ports.models import ModelRequest
from perdure.runtime.node import Node
from perdure.testing.trace import check_log
from perdure.worker import Agent, ask_human, tool
from tests.runtime.world import World, last, turn

DONE: Counter[str] = Counter()


@tool(effect="once")
async def pay(what: str) -> str:
    """Pay for something."""
    DONE[what] += 1
    return f"paid {what}"


def model(request: ModelRequest) -> Any:
    """Play a model that pays, then asks if it is told to, then says what it was shown."""
    said = [message.content for message in request.messages if message.content]
    if last(request) == "enough":
        return says(" | ".join(map(str, said)))
    if turn(request) == 0:
        return asks(call("pay", what="rent"))
    if "ask" in said and turn(request) == 1:
        return asks(call("ask_human", question="Sure?"))
    return says(" | ".join(map(str, said)))


def world(*more: Agent) -> World:
    """Return a world with an agent that pays."""
    DONE.clear()
    return World(Agent("a", model=model, tools=[pay, ask_human]), *more)


async def ended(w: World, run: Any) -> Any:
    """Let things happen until the run has ended; return its answer."""
    await w.pass_time(1)
    return await asyncio.wait_for(run.result(), 5)


async def test_a_fork_goes_on_from_a_step_and_does_nothing_again() -> None:
    w = world()
    node = await w.node()
    source = await node.send("a", "go", session="s1")
    assert await ended(w, source) == "go | paid rent"
    before = await w.store.read(source.session, 0, 100)
    fork = await node.fork(source.id, 1, "now otherwise")
    assert await ended(w, fork) == "go | paid rent | now otherwise"
    assert DONE == {"rent": 1}
    assert await w.store.read(source.session, 0, 100) == before
    log = await w.store.read(fork.session, 0, 100)
    first = decode_event(log[0].body)
    assert isinstance(first, SessionForked)
    assert first.origin.head == before[first.origin.upto - 1].hash.hex()
    assert (first.origin.run, first.origin.session) == (source.id, "s1")
    check_log(fork.session, log)
    assert verify_export(export_lines(fork.session, log)).events == len(log)
    row = await fork.row()
    assert (row.status, row.steps) == ("completed", 1)
    await node.stop()


async def test_a_fork_outlives_its_process() -> None:
    w = world()
    node = await w.node()
    source = await node.send("a", "go")
    await ended(w, source)
    fork = await node.fork(source.id, 1, "on")
    await w.crash(node)
    node = await w.node()
    assert await ended(w, await node.run(fork.id)) == "go | paid rent | on"
    assert DONE == {"rent": 1}
    again = await node.fork(fork.id, 0, "and on")
    assert await ended(w, again) == "go | paid rent | on | and on"
    await node.stop()


async def test_a_fork_of_a_run_that_waits_drops_the_question() -> None:
    w = world()
    node = await w.node()
    source = await node.send("a", "ask")
    async with asyncio.timeout(5):
        async for item in source.events():
            if item.type == "question_asked":
                break
    assert (await source.row()).status == "waiting"
    fork = await node.fork(source.id, 2, "enough")
    assert await ended(w, fork) == "ask | paid rent | enough"
    assert (await source.row()).status == "waiting"
    assert DONE == {"rent": 1}
    await node.stop()


async def test_one_key_makes_one_fork_and_another_agent_may_go_on() -> None:
    def other(request: ModelRequest) -> str:
        return f"the other saw {len(request.messages)}"

    w = world(Agent("b", model=other))
    node = await w.node()
    source = await node.send("a", "go")
    await ended(w, source)
    forks = [await node.fork(source.id, 1, "on", agent="b", idempotency_key="k") for _ in range(3)]
    assert len({one.id for one in forks}) == 1
    assert await ended(w, forks[0]) == "the other saw 4"
    with pytest.raises(KeyReused):
        await node.fork(source.id, 1, "off", agent="b", idempotency_key="k")
    await node.stop()


async def _bad(node: Node, run: str, going: str, case: str) -> None:
    match case:
        case "beyond":
            await node.fork(run, 3)
        case "negative":
            await node.fork(run, -1)
        case "missing":
            await node.fork("nothing", 0)
        case "agent":
            await node.fork(run, 0, agent="nobody")
        case "large":
            await node.fork(run, 0, "x" * 300_000)
        case "going":
            await node.fork(going, 0)


BAD = [
    ("beyond", InvalidInput, r"step 3 is beyond the run's last step \(2\)"),
    ("negative", InvalidInput, "step -1 cannot be"),
    ("missing", NotFound, "there is no run 'nothing'"),
    ("agent", NotFound, "there is no agent 'nobody' here"),
    ("large", LimitExceeded, "the message is 300002 bytes long"),
    ("going", Refused, "is running: wait until it has ended"),
]


@pytest.mark.parametrize(("case", "error", "said"), BAD, ids=[case for case, _, _ in BAD])
async def test_a_fork_that_cannot_be(case: str, error: type[Exception], said: str) -> None:
    async def stuck(request: ModelRequest) -> str:
        await asyncio.Event().wait()
        return ""

    w = world(Agent("slow", model=stuck))
    node = await w.node()
    source = await node.send("a", "go")
    await ended(w, source)
    going = await node.send("slow", "go")
    await w.settle()
    with pytest.raises(error, match=said):
        await _bad(node, source.id, going.id, case)
    await w.crash(node)


async def test_a_message_with_a_context() -> None:
    w = world()
    node = await w.node()
    context = [UserMessage("I am Ada"), AssistantMessage("Hello, Ada")]
    run = await node.send("a", "enough", context=context)
    assert await ended(w, run) == "I am Ada | Hello, Ada | enough"
    wrong = [AssistantMessage("", tool_calls=(ToolRequest("c", "pay"),))]
    with pytest.raises(InvalidInput, match="without tool calls"):
        await node.send("a", "enough", context=wrong)
    await node.stop()
