"""The node: accept, decide, commit, dispatch, park, recover, drain - over a real worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.adapters.models import asks, call, says
from perdure.core.agent import Limits
from perdure.core.errors import (
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    Refused,
    RunCancelled,
    RunFailed,
)
from perdure.ports.models import ModelError, ModelRequest
from perdure.runtime.node import Node
from perdure.worker import Agent, ToolContext, ask_human, tool, wait
from tests.runtime.world import World, last, turn


def echo(request: ModelRequest) -> str:
    """Play a model that repeats what it was told."""
    return f"you said {last(request)}"


def agent(model: Any, *tools: Any, **more: Any) -> Agent:
    """Return an agent named `a`."""
    return Agent("a", model=model, tools=tools, **more)


async def finished(world: World, run: Any) -> Any:
    """Let things happen until the run has ended; return its answer."""
    await world.settle()
    return await asyncio.wait_for(run.result(), 5)


async def test_a_message_is_answered() -> None:
    world = World(agent(echo))
    node = await world.node()
    run = await node.send("a", "hello")
    assert await finished(world, run) == "you said hello"
    assert (await run.row()).status == "completed"
    await node.stop()


async def test_a_session_keeps_its_history_across_runs_and_passivation() -> None:
    seen: list[int] = []

    def model(request: ModelRequest) -> str:
        seen.append(len(request.messages))
        return "ok"

    world = World(agent(model))
    node = await world.node()
    for _ in range(3):
        await finished(world, await node.send("a", "hi", session="s"))
        await world.pass_time(1)
        assert node._host.active() == 0
    assert seen == [1, 3, 5]
    await node.stop()


async def test_tools_run_once_each_and_their_results_come_back_in_order() -> None:
    ran: list[str] = []

    @tool(effect="read")
    async def look(what: str) -> str:
        """Look."""
        ran.append(what)
        return f"seen {what}"

    def model(request: ModelRequest) -> Any:
        if turn(request) == 0:
            return asks(call("look", what="a"), call("look", what="b"))
        return says(" ".join(message.content for message in request.messages[2:]))

    world = World(agent(model, look))
    node = await world.node()
    assert await finished(world, await node.send("a", "go")) == "seen a seen b"
    assert sorted(ran) == ["a", "b"]
    await node.stop()


class TestIdempotency:
    async def test_the_same_key_gives_the_same_run(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        one = await node.send("a", "x", session="s", idempotency_key="k")
        two = await node.send("a", "x", session="s", idempotency_key="k")
        assert one.id == two.id
        assert two.receipt.duplicate
        assert await finished(world, two) == "you said x"
        assert (await world.events(one)).count("run_started") == 1
        await node.stop()

    async def test_the_same_key_with_another_message_is_an_error(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        await node.send("a", "x", session="s", idempotency_key="k")
        with pytest.raises(KeyReused):
            await node.send("a", "y", session="s", idempotency_key="k")
        await node.stop()


class TestCrashes:
    async def test_a_crash_in_a_model_call_asks_again_and_repeats_no_tool(self) -> None:
        ran: list[str] = []
        hanging = asyncio.Event()

        @tool(effect="idempotent")
        async def save(ctx: ToolContext) -> str:
            """Save."""
            ran.append(ctx.key)
            return "saved"

        async def model(request: ModelRequest) -> Any:
            if turn(request) == 0:
                return asks(call("save"))
            await hanging.wait()
            return says("done")

        world = World(agent(model, save))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        await world.crash(node)
        hanging.set()
        node = await world.node()
        assert await finished(world, await node.run(run.id)) == "done"
        assert len(ran) == 1
        await node.stop()

    @pytest.mark.parametrize(
        ("effect", "times", "events"),
        [
            ("read", 2, "tool_call_succeeded"),
            ("idempotent", 2, "tool_call_succeeded"),
            ("once", 1, "tool_call_unknown"),
        ],
    )
    async def test_a_crash_in_a_tool_is_handled_by_its_class(
        self, effect: Any, times: int, events: str
    ) -> None:
        keys: list[str] = []
        hanging = asyncio.Event()

        @tool(effect=effect, on_unknown="tell")
        async def act(ctx: ToolContext) -> str:
            """Act."""
            keys.append(ctx.key)
            await hanging.wait()
            return "acted"

        def model(request: ModelRequest) -> Any:
            return asks(call("act")) if turn(request) == 0 else says(str(last(request)))

        world = World(agent(model, act))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        assert len(keys) == 1
        await world.crash(node)
        hanging.set()
        node = await world.node()
        answer = await finished(world, await node.run(run.id))
        assert len(keys) == times
        assert len(set(keys)) == 1
        assert events in await world.events(await node.run(run.id))
        assert ("Do not repeat" in answer) == (effect == "once")
        await node.stop()

    @pytest.mark.parametrize("happened", [True, False])
    async def test_a_probe_finds_out_what_became_of_a_once_call(self, happened: bool) -> None:
        ran: list[str] = []
        hanging = asyncio.Event()

        @tool(effect="once", probe=lambda key: happened)
        async def pay(ctx: ToolContext) -> str:
            """Pay."""
            ran.append(ctx.key)
            await hanging.wait()
            return "paid"

        def model(request: ModelRequest) -> Any:
            return asks(call("pay")) if turn(request) == 0 else says(str(last(request)))

        world = World(agent(model, pay))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        await world.crash(node)
        hanging.set()
        node = await world.node()
        answer = await asyncio.wait_for((await node.run(run.id)).result(), 5)
        assert len(ran) == (1 if happened else 2)
        assert answer == ("It took effect." if happened else "paid")
        await node.stop()

    async def test_a_message_accepted_just_before_a_crash_is_not_lost(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        run = await node.send("a", "hello")
        await world.crash(node)
        node = await world.node()
        assert await finished(world, await node.run(run.id)) == "you said hello"
        await node.stop()

    async def test_a_session_that_kills_its_host_is_quarantined_and_the_node_lives(self) -> None:
        hanging = asyncio.Event()

        @tool(effect="read")
        async def poison() -> str:
            """Hang; the test takes the host down meanwhile."""
            await hanging.wait()
            return "never"

        def model(request: ModelRequest) -> Any:
            return asks(call("poison")) if last(request) == "poison" else says("fine")

        world = World(agent(model, poison))
        node = await world.node()
        run = await node.send("a", "poison", session="bad")
        await world.settle()
        for _ in range(4):
            await world.crash(node)
            node = await world.node()
            await world.settle()
        assert world.telemetry.count("session.quarantined") == 1
        assert (await node._store.load(run.session)).quarantine is not None
        assert await finished(world, await node.send("a", "hello", session="good")) == "fine"
        await node.stop()


class TestTime:
    async def test_a_wait_outlives_the_process_and_goes_on_with_the_rest(self) -> None:
        def model(request: ModelRequest) -> Any:
            return asks(call("wait", seconds=100)) if turn(request) == 0 else says("awake")

        world = World(agent(model, wait))
        node = await world.node()
        run = await node.send("a", "sleep")
        await world.settle()
        assert (await run.row()).status == "waiting"
        await world.pass_time(60)
        assert node._host.active() == 0
        await world.crash(node)
        node = await world.node()
        await world.pass_time(30)
        assert (await run.row()).status == "waiting"
        await world.pass_time(10)
        assert await finished(world, await node.run(run.id)) == "awake"
        await node.stop()

    async def test_a_rate_limit_is_waited_for(self) -> None:
        failures = [ModelError("slow down", status=429, retry_after_ms=20_000)]

        def model(request: ModelRequest) -> Any:
            if failures:
                raise failures.pop()
            return "at last"

        world = World(agent(model))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        assert (await run.row()).waiting_for[0]["what"] == "retry"
        await world.pass_time(30)
        assert await finished(world, run) == "at last"
        await node.stop()

    async def test_the_wall_time_of_a_run_is_kept_even_by_a_parked_one(self) -> None:
        def model(request: ModelRequest) -> Any:
            return asks(call("ask_human", question="Well?"))

        world = World(agent(model, ask_human, limits=Limits(wall_ms_max=10_000)))
        node = await world.node()
        run = await node.send("a", "go")
        await world.pass_time(20)
        with pytest.raises(RunFailed, match="wall time"):
            await finished(world, run)
        await node.stop()


class TestPeople:
    async def test_questions_park_the_run_until_each_is_answered(self) -> None:
        def model(request: ModelRequest) -> Any:
            if turn(request) == 0:
                return asks(
                    call("ask_human", question="Colour?"), call("ask_human", question="Size?")
                )
            return says(" ".join(message.content for message in request.messages[2:]))

        world = World(agent(model, ask_human))
        node = await world.node()
        run = await node.send("a", "buy")
        await world.pass_time(5)
        assert node._host.active() == 0
        row = await run.row()
        assert [wait["question"] for wait in row.waiting_for] == ["Colour?", "Size?"]
        await node.reply(run.id, "red")
        await world.pass_time(5)
        await node.reply(run.id, "large")
        assert await finished(world, run) == "red large"
        with pytest.raises(Refused):
            await node.reply(run.id, "too late")
        await node.stop()

    async def test_a_person_decides_about_an_unknown_outcome(self) -> None:
        hanging = asyncio.Event()

        @tool(effect="once")
        async def pay() -> str:
            """Pay."""
            await hanging.wait()
            return "paid"

        def model(request: ModelRequest) -> Any:
            return asks(call("pay")) if turn(request) == 0 else says(str(last(request)))

        world = World(agent(model, pay))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        await world.crash(node)
        node = await world.node()
        await world.settle()
        row = await node.row(run.id)
        assert row.waiting_for[0]["what"] == "decision"
        wait = row.waiting_for[0]
        with pytest.raises(Refused, match="attempt"):
            await node.resolve(run.id, wait["call"], "did_not_happen", attempt=wait["attempt"] + 1)
        await node.resolve(run.id, wait["call"], "happened", content="seen in bank")
        assert await finished(world, await node.run(run.id)) == "seen in bank"
        await node.stop()


class TestCancelling:
    async def test_a_running_run_is_cancelled_and_its_tool_stopped(self) -> None:
        stopped = asyncio.Event()

        @tool(effect="read")
        async def slow() -> str:
            """Run until cancelled."""
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            return ""

        world = World(agent(lambda request: asks(call("slow")), slow))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        await node.cancel(run.id, "enough")
        with pytest.raises(RunCancelled, match="enough"):
            await finished(world, run)
        await world.settle()
        assert stopped.is_set()
        with pytest.raises(Refused):
            await node.cancel(run.id)
        await node.stop()

    async def test_a_failed_run_is_retried_without_repeating_what_it_did(self) -> None:
        ran: list[int] = []
        broken = [True]

        @tool(effect="idempotent")
        async def save() -> str:
            """Save."""
            ran.append(1)
            return "saved"

        def model(request: ModelRequest) -> Any:
            if turn(request) == 0:
                return asks(call("save"))
            if broken[0]:
                raise ModelError("bad request", status=400)
            return says("done")

        world = World(agent(model, save))
        node = await world.node()
        run = await node.send("a", "go", session="s")
        with pytest.raises(RunFailed, match="status_400"):
            await finished(world, run)
        broken[0] = False
        again = await node.retry(run.id)
        assert await finished(world, again) == "done"
        assert len(ran) == 1
        await node.stop()


class TestBadInput:
    async def test_what_cannot_be_accepted_is_refused_by_name(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        with pytest.raises(NotFound, match="'b'.*agents are: a"):
            await node.send("b", "x")
        with pytest.raises(LimitExceeded, match="MESSAGE_BYTES_MAX = 262144"):
            await node.send("a", "x" * 300_000)
        with pytest.raises(InvalidInput, match="JSON"):
            await node.send("a", object())
        with pytest.raises(InvalidInput, match="mode"):
            await node.send("a", "x", mode="shout")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="session key"):
            await node.send("a", "x", session="a\nb")
        with pytest.raises(NotFound):
            await node.run("nothing")
        await node.stop()

    async def test_a_corrupt_event_sets_one_session_aside(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        run = await node.send("a", "x", session="s")
        await finished(world, run)
        await world.pass_time(1)
        log = world.store._sessions[run.session].log
        log[1] = log[1]._replace(body=b'{"type":"dream_had","at":1}')
        await node.send("a", "y", session="s")
        await world.settle()
        loaded = await world.store.load(run.session)
        assert "event 2" in (loaded.quarantine or "")
        assert await finished(world, await node.send("a", "z")) == "you said z"
        await node.stop()


class TestFollowing:
    async def test_the_events_of_a_run_come_without_gap_or_repeat(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        await finished(world, await node.send("a", "one", session="s"))
        run = await node.send("a", "two", session="s")
        seen = [item async for item in run.events()]
        assert [item.type for item in seen] == [
            "message_received",
            "run_started",
            "model_call_intended",
            "model_replied",
            "run_completed",
        ]
        assert [item.seq for item in seen] == [6, 7, 8, 9, 10]
        await node.stop()

    async def test_text_is_streamed_between_the_events(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        run = await node.send("a", "hello")
        pieces = [item.text async for item in run.stream() if hasattr(item, "text")]
        assert "".join(pieces) == "you said hello"
        await node.stop()

    async def test_a_steering_message_shares_the_answer_of_the_run_it_joined(self) -> None:
        gate = asyncio.Event()

        async def model(request: ModelRequest) -> Any:
            await gate.wait()
            return f"{len(request.messages)} messages"

        world = World(agent(model))
        node = await world.node()
        one = await node.send("a", "one", session="s")
        await world.settle()
        two = await node.send("a", "two", session="s", mode="steer")
        await world.settle()
        gate.set()
        assert await finished(world, one) == "3 messages"
        assert await finished(world, two) == "3 messages"
        assert (await two.row()).status == "merged"
        await node.stop()


class TestDraining:
    async def test_a_drain_waits_for_a_begun_once_call_and_cuts_the_rest(self) -> None:
        gate = asyncio.Event()
        ran: list[str] = []

        @tool(effect="once")
        async def pay() -> str:
            """Pay."""
            await gate.wait()
            ran.append("paid")
            return "paid"

        def model(request: ModelRequest) -> Any:
            return asks(call("pay")) if turn(request) == 0 else says(str(last(request)))

        world = World(agent(model, pay))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        stopping = asyncio.ensure_future(node.stop())
        await world.pass_time(1)
        assert not stopping.done()
        gate.set()
        await world.pass_time(1)
        await stopping
        node: Node = await world.node()
        assert await finished(world, await node.run(run.id)) == "paid"
        assert ran == ["paid"]
        await node.stop()
