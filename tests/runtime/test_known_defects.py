"""Defects that comparable systems had, each under its number in the project's list (K1 to K13).

K3 is of collecting garbage. Nothing is collected yet: its test holds that down, because an id that
is forgotten may be used again.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from perdure.adapters.models import DirectModel, asks, call, says
from perdure.adapters.stores.sqlite import operations
from perdure.core import events as e
from perdure.core.agent import ContextPolicy
from perdure.core.codec import decode_event, genesis, verify_chain
from perdure.core.errors import KeyReused
from perdure.core.history import malformed
from perdure.core.runs import TERMINAL
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import NotClaimed, StepCommit
from perdure.testing.stub_provider import StubProvider, cut, hang
from perdure.worker import tool
from tests.core.story import Story
from tests.core.story import call as wants
from tests.runtime.test_node import agent, echo, finished
from tests.runtime.world import World, last, turn


async def logs_are_whole(world: World) -> None:
    """Every log verifies, and its epochs and versions agree with its session."""
    for session in list(world.store._sessions):
        loaded = await world.store.load(session)
        assert loaded is not None
        records = await world.store.read(session, 0, 10_000)
        assert verify_chain(genesis(session), 0, records) == loaded.head


async def test_k1_a_scan_never_adopts_a_session_that_somebody_runs() -> None:
    gate = asyncio.Event()
    asked: list[int] = []

    async def model(request: ModelRequest) -> str:
        asked.append(1)
        await gate.wait()
        return "done"

    world = World(agent(model))
    one, two = await world.node(), await world.node()
    run = await one.send("a", "go", session="s")
    await world.settle()
    assert await two._recovery.run_once() == 0
    claimed = await world.store.claim(run.session, two.owner, "nonce")
    assert claimed == NotClaimed("held", one.owner)
    gate.set()
    assert await finished(world, run) == "done"
    assert asked == [1]
    await one.stop()
    await two.stop()


async def test_k2_whoever_loses_a_claim_does_nothing() -> None:
    asked: list[int] = []

    def model(request: ModelRequest) -> str:
        asked.append(1)
        return "done"

    world = World(agent(model))
    one, two = await world.node(), await world.node()
    run = await one.send("a", "go", session="s")
    two._host.activate(run.session)
    one._host.activate(run.session)
    assert await finished(world, run) == "done"
    assert asked == [1]
    assert (await world.events(run)).count("run_started") == 1
    await one.stop()
    await two.stop()


async def test_k3_no_id_is_ever_forgotten_and_none_replays_another_result() -> None:
    asked: list[Any] = []

    def model(request: ModelRequest) -> str:
        asked.append(last(request))
        return f"answer to {last(request)}"

    world = World(agent(model))
    for life in range(3):
        node = await world.node()
        run = await node.send("a", "pay", session="s", idempotency_key="k")
        assert await finished(world, run) == "answer to pay"
        assert run.receipt is not None
        assert run.receipt.duplicate == (life > 0)
        with pytest.raises(KeyReused):
            await node.send("a", "another", session="s", idempotency_key="k")
        other = await node.send("a", f"more {life}", session="s")
        assert await finished(world, other) == f"answer to more {life}"
        await world.pass_time(10)
        await node.stop()
    assert asked == ["pay", "more 0", "more 1", "more 2"]


def test_k3_the_store_deletes_nothing_but_leases() -> None:
    folder = Path(operations.__file__).parent
    text = " ".join(
        path.read_text() for path in folder.rglob("*") if path.suffix in (".py", ".sql")
    )
    deleted = set(re.findall(r"DELETE\s+FROM\s+(\w+)", text, re.IGNORECASE))
    assert deleted == {"nodes"}


async def test_k4_two_nodes_forced_onto_one_session_consume_a_message_once() -> None:
    world = World(agent(echo))
    one, two = await world.node(), await world.node()
    run = await one.send("a", "go", session="s")
    world.store._leases[one.owner] = 0
    two._host.activate(run.session)
    await world.settle()
    await world.pass_time(20)
    assert (await world.events(run)).count("message_received") == 1
    assert (await two.row(run.id)).status == "completed"
    await logs_are_whole(world)
    await one.stop()
    await two.stop()


@pytest.mark.parametrize("crashes", range(6))
async def test_k5_a_recovered_run_never_stands_between_two_steps(crashes: int) -> None:
    @tool(effect="read")
    async def look() -> str:
        """Look."""
        return "seen"

    def model(request: ModelRequest) -> Any:
        return asks(call("look")) if turn(request) < 3 else says("done")

    world = World(agent(model, look))
    node = await world.node()
    run = await node.send("a", "go")
    for number in range(crashes):
        await world.settle(14 + number)
        await world.crash(node)
        node = await world.node()
    assert await finished(world, await node.run(run.id)) == "done"
    await logs_are_whole(world)
    await node.stop()


async def test_k6_a_result_and_what_follows_from_it_are_one_commit() -> None:
    commits: list[list[str]] = []

    @tool(effect="read")
    async def look() -> str:
        """Look."""
        return "seen"

    def model(request: ModelRequest) -> Any:
        return asks(call("look")) if turn(request) == 0 else says("done")

    world = World(agent(model, look))
    submit = world.store.commit

    def watched(step: StepCommit, done: Any) -> None:
        commits.append([e.type_of(decode_event(record.body)) for record in step.records])
        submit(step, done)

    world.store.commit = watched  # type: ignore[method-assign]
    node = await world.node()
    await finished(world, await node.send("a", "go"))
    assert commits == [
        ["message_received", "run_started", "model_call_intended"],
        ["model_replied", "tool_call_intended"],
        ["tool_call_succeeded", "model_call_intended"],
        ["model_replied", "run_completed"],
    ]
    await node.stop()


async def test_k7_an_accepted_run_survives_a_death_before_its_first_event() -> None:
    world = World(agent(echo))
    node = await world.node()
    run = await node.send("a", "go", idempotency_key="k")
    assert await world.events(run) == []
    await world.crash(node)
    node = await world.node()
    again = await node.send("a", "go", idempotency_key="k")
    assert again.id == run.id
    assert again.receipt is not None
    assert again.receipt.duplicate
    assert await finished(world, again) == "you said go"
    await node.stop()


@pytest.mark.parametrize("effect", ["read", "idempotent", "once"])
async def test_k8_a_crash_in_tool_dispatch_leaves_no_call_without_its_result(effect: Any) -> None:
    hanging = asyncio.Event()

    @tool(effect=effect, on_unknown="tell")
    async def act(n: int) -> str:
        """Act."""
        await hanging.wait()
        return "acted"

    shown: list[list[str]] = []

    def model(request: ModelRequest) -> Any:
        shown.append(malformed(request.messages))
        return asks(call("act", n=1), call("act", n=2)) if turn(request) == 0 else says("done")

    world = World(agent(model, act))
    node = await world.node()
    run = await node.send("a", "go", session="s")
    await world.settle()
    await world.crash(node)
    hanging.set()
    node = await world.node()
    assert await finished(world, await node.run(run.id)) == "done"
    assert shown == [[], []]
    await node.stop()


@pytest.mark.parametrize(("resume", "status"), [("eager", "completed"), ("lazy", "running")])
async def test_k9_the_resume_policy_of_the_public_api_is_kept(resume: str, status: str) -> None:
    hanging = asyncio.Event()

    async def model(request: ModelRequest) -> str:
        await hanging.wait()
        return "done"

    world = World(agent(model, resume=resume))
    node = await world.node()
    run = await node.send("a", "go", session="s")
    await world.settle()
    await world.crash(node)
    hanging.set()
    node = await world.node()
    await world.pass_time(30)
    assert (await node.row(run.id)).status == status
    await node.send("a", "wake up", session="s")
    await world.settle()
    assert (await node.row(run.id)).status in TERMINAL
    await node.stop()


@pytest.mark.parametrize("window", range(1, 8))
@pytest.mark.parametrize("strategy", ["window", "compact"])
def test_k10_no_cut_splits_a_call_from_its_result(strategy: Any, window: int) -> None:
    from tests.core.story import agent as definition

    policy = ContextPolicy(strategy, window, compact_at_tokens=1, keep_messages=window)
    story = Story(definition(context=policy))
    story.message("go")
    for number in range(6):
        while story.state.status == "compacting":
            story.reply(text="summary", tokens=0)
        story.reply(wants("look", id=f"a{number}"), wants("save", id=f"b{number}"), tokens=9)
        story.result("save")
        story.result("look")
    for event in story.log:
        if isinstance(event, e.ModelCallIntended | e.CompactionIntended):
            shown = story.history().messages(event.first, event.upto)
            assert malformed(shown) == []


async def test_k11_a_node_that_lost_its_session_cannot_write_it_and_bills_nothing_twice() -> None:
    gate = asyncio.Event()

    @tool(effect="idempotent")
    async def act() -> str:
        """Act."""
        await gate.wait()
        return "acted"

    def model(request: ModelRequest) -> Any:
        return asks(call("act")) if turn(request) == 0 else says(str(last(request)))

    world = World(agent(model, act))
    frozen = await world.node()
    run = await frozen.send("a", "go", session="s")
    await world.settle()
    world.store._leases[frozen.owner] = 0
    awake = await world.node()
    await world.settle()
    assert run.session in awake._host._actors
    gate.set()
    await world.settle()
    assert await finished(world, await awake.run(run.id)) == "acted"
    events = await world.events(await awake.run(run.id))
    assert events.count("tool_call_succeeded") == 1
    assert events.count("model_call_intended") == 2
    assert world.telemetry.count("session.fenced") >= 1
    await logs_are_whole(world)
    await frozen.stop()
    await awake.stop()


async def test_k12_truncated_arguments_never_become_empty_ones() -> None:
    given: list[Any] = []

    @tool(effect="idempotent")
    async def pay(cents: int = 0) -> str:
        """Pay."""
        given.append(cents)
        return "paid"

    reply = asks(call("pay", cents=500))
    with StubProvider(cut(520, reply, cleanly=True), reply, says("done")) as stub:
        model = DirectModel("openai:any", base_url=stub.openai_url, api_key="any")
        world = World(agent(model, pay))
        node = await world.node()
        run = await node.send("a", "go")
        ending = asyncio.ensure_future(run.result())
        while not ending.done():
            await asyncio.wait([ending], timeout=0.02)
            world.clock.advance(500)
        assert await ending == "done"
        assert given == [500]
        await node.stop()
        await model.aclose()


async def test_k13_a_hanging_provider_is_timed_out_and_every_attempt_is_in_the_log() -> None:
    with StubProvider(hang(), hang(), says("at last")) as stub:
        model = DirectModel(
            "anthropic:any", base_url=stub.anthropic_url, api_key="any", read_timeout_s=0.1
        )
        world = World(agent(model))
        node = await world.node()
        run = await node.send("a", "go")
        ending = asyncio.ensure_future(run.result())
        while not ending.done():
            await asyncio.wait([ending], timeout=0.02)
            world.clock.advance(200)
        assert await ending == "at last"
        events = await world.events(run)
        assert events.count("model_call_intended") == len(stub.requests) == 3
        await node.stop()
        await model.aclose()
