"""What an adversary found: each of these once hung, lied, lost something, or took the node down."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.adapters.models import asks, call, says
from perdure.core.agent import ContextPolicy, Limits
from perdure.core.errors import InvalidInput, NotFound, PerdureError, Refused, Unavailable
from perdure.core.messages import ModelReply, ToolRequest
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import StepCommit
from perdure.worker import Agent, ToolContext, ask_human, tool, wait
from tests.runtime.test_node import agent, echo, finished
from tests.runtime.world import World, last, turn


def nested(levels: int) -> dict[str, Any]:
    """Return arguments that are nested this deep."""
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"in": value}
    return value


class TestNothingHangs:
    async def test_a_store_that_fails_in_a_way_nobody_foresaw_ends_the_node_and_the_waiting(
        self,
    ) -> None:
        async def model(request: ModelRequest) -> str:
            return "done"

        async def broken(*claimant: Any) -> Any:
            raise LookupError("a driver's mistake")

        world = World(agent(model))
        node = await world.node()
        world.store.claim = broken  # type: ignore[method-assign]
        run = await node.send("a", "go")
        with pytest.raises(Unavailable, match="could not be claimed: LookupError"):
            await finished(world, run)
        await node.stop()

    async def test_a_late_heartbeat_that_finds_the_lease_alive_changes_nothing(self) -> None:
        gate = asyncio.Event()

        async def model(request: ModelRequest) -> str:
            await gate.wait()
            return "done"

        world = World(agent(model))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        world.clock._now_ms += 4_500
        await world.pass_time(1)
        gate.set()
        assert await finished(world, run) == "done"
        await node.stop()

    async def test_a_lease_that_ran_out_is_taken_anew_and_its_runs_go_on(self) -> None:
        asked: list[int] = []
        gate = asyncio.Event()

        async def model(request: ModelRequest) -> str:
            asked.append(1)
            await gate.wait()
            return "done"

        world = World(agent(model))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        for _ in range(4):
            world.clock._now_ms += 60_000
            await world.pass_time(10)
        gate.set()
        await world.pass_time(10)
        assert await finished(world, run) == "done"
        assert world.telemetry.count("session.quarantined") == 0
        await node.stop()

    async def test_nothing_new_starts_while_the_lease_is_in_doubt(self) -> None:
        asked: list[int] = []

        def model(request: ModelRequest) -> str:
            asked.append(1)
            return "done"

        world = World(agent(model))
        node = await world.node()
        world.clock._now_ms += 4_500
        run = await node.send("a", "go")
        await world.settle()
        assert asked == []
        await world.pass_time(1)
        assert await finished(world, run) == "done"
        await node.stop()

    async def test_what_came_while_a_renewal_was_slow_starts_when_it_is_confirmed(self) -> None:
        """It was sent in time and answered late: in between, nothing could be started."""
        answered = asyncio.Event()

        async def model(request: ModelRequest) -> str:
            return "done"

        world = World(agent(model))
        node = await world.node()
        renew = world.store.renew

        async def renew_slowly(owner: str, lease_ms: int) -> bool:
            alive = await renew(owner, lease_ms)
            await answered.wait()
            return alive

        world.store.renew = renew_slowly  # type: ignore[method-assign]
        await world.pass_time(2)
        world.clock._now_ms += 2_500
        run = await node.send("a", "go")
        await world.settle()
        assert (await world.row(run)).status == "running"
        answered.set()
        await world.settle()
        assert (await world.row(run)).status == "completed"
        await node.stop()

    async def test_who_waits_is_told_when_the_node_stops(self) -> None:
        def model(request: ModelRequest) -> Any:
            return asks(call("ask_human", question="?"))

        world = World(agent(model, ask_human))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        waiting = asyncio.ensure_future(run.result())
        following = asyncio.ensure_future(_all(run.events()))
        await world.settle()
        await node.stop()
        with pytest.raises(PerdureError, match="stopped"):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(PerdureError, match="stopped"):
            await asyncio.wait_for(following, 5)

    @pytest.mark.parametrize("after", range(7))
    async def test_events_after_any_position_end_with_the_run(self, after: int) -> None:
        world = World(agent(echo))
        node = await world.node()
        run = await node.send("a", "x", session="s")
        await finished(world, run)
        seqs = [item.seq for item in await asyncio.wait_for(_all(run.events(after)), 5)]
        assert seqs == [seq for seq in range(1, 6) if seq > after]
        await node.stop()

    async def test_a_full_inbox_can_still_be_emptied(self) -> None:
        def model(request: ModelRequest) -> Any:
            return asks(call("ask_human", question="?")) if turn(request) == 0 else says("ok")

        world = World(agent(model, ask_human))
        node = await world.node()
        run = await node.send("a", "go", session="s")
        await world.settle()
        for number in range(1_000):
            await node.send("a", f"more {number}", session="s")
        await node.reply(run.id, "yes")
        assert await finished(world, run) == "ok"

    async def test_sessions_of_unknown_agents_do_not_keep_others_from_running(self) -> None:
        world = World(agent(echo), Agent("other", model=echo))
        node = await world.node()
        for number in range(300):
            await node.send("other", "x", session=str(number))
        await world.crash(node)
        run_id = (await (await world.node()).send("a", "hello", session="s")).id
        world.agents = (agent(echo),)
        node = await world.node()
        assert await finished(world, await node.run(run_id)) == "you said hello"
        await node.stop()


class TestNothingLies:
    @pytest.mark.parametrize(
        "reply",
        [
            ModelReply("x", usage=None),  # type: ignore[arg-type]
            ModelReply("x", tool_calls=("nope",)),  # type: ignore[arg-type]
            ModelReply("x", finish=None),  # type: ignore[arg-type]
            ModelReply("x", tool_calls=(ToolRequest(1, "t"),)),  # type: ignore[arg-type]
            ModelReply("", (ToolRequest("1", "t", nested(150)),)),
        ],
    )
    async def test_a_reply_that_cannot_be_recorded_fails_the_run_and_the_session_lives(
        self, reply: ModelReply
    ) -> None:
        replies: list[Any] = [reply, "fine"]
        world = World(agent(lambda request: replies.pop(0)))
        node = await world.node()
        run = await node.send("a", "x", session="s")
        await asyncio.wait([asyncio.ensure_future(run.ended())], timeout=5)
        await world.crash(node)
        node = await world.node()
        if replies:
            again = await node.send("a", "x", session="s")
            assert await finished(world, again) == "fine"
        await node.stop()

    async def test_what_was_accepted_is_what_the_model_sees(self) -> None:
        world = World(agent(lambda request: repr(last(request))))
        node = await world.node()
        content = {"items": [1]}
        run = await node.send("a", content)
        content["items"].append(2)
        assert await finished(world, run) == "{'items': [1]}"
        with pytest.raises(InvalidInput, match="sender"):
            await node.send("a", "x", sender=5)  # type: ignore[arg-type]
        await node.stop()

    async def test_a_tool_that_is_gone_may_have_acted(self) -> None:
        hanging = asyncio.Event()

        @tool(effect="idempotent")
        async def transfer() -> str:
            """Transfer."""
            await hanging.wait()
            return "done"

        def model(request: ModelRequest) -> Any:
            return asks(call("transfer")) if turn(request) == 0 else says(str(last(request)))

        world = World(agent(model, transfer))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        await world.crash(node)
        world.agents = (agent(model),)
        node = await world.node()
        assert "may have been sent before" in await finished(world, await node.run(run.id))
        await node.stop()

    @pytest.mark.parametrize("now", ["2", ""])
    async def test_a_call_for_another_version_of_a_tool_is_not_executed(self, now: str) -> None:
        """The model is told which versions, and may call the new one."""
        hanging, ran = asyncio.Event(), []

        def look(version: str) -> Any:
            @tool(name="look", effect="read", version=version)
            async def one() -> str:
                """Look."""
                ran.append(version)
                await hanging.wait()
                return f"seen by {version}"

            return one

        def model(request: ModelRequest) -> Any:
            return asks(call("look")) if turn(request) < 2 else says(str(last(request)))

        world = World(agent(model, look("1")))
        node = await world.node()
        run = await node.send("a", "go")
        await world.settle()
        template = await node.template(run.id)
        await world.crash(node)
        hanging.set()
        world.agents = (agent(model, look(now)),)
        node = await world.node()
        assert await finished(world, await node.run(run.id)) == f"seen by {now}"
        assert ran == ["1", now]
        [told] = [e.event async for e in run.events() if e.type == "tool_call_failed"]
        assert (told.kind, told.content) == (  # type: ignore[union-attr]
            "other_version",
            (
                f"The tool 'look' is now of version {now!r}, and this call was made for version "
                "'1': it is given up."
            ),
        )
        assert Agent.rebuilt(template, tools=[look("1")], model=model).spec.tools[0].version == "1"
        changed = await node.template(run.id)
        with pytest.raises(InvalidInput, match=f"version is '1', and should be {now!r}"):
            Agent.rebuilt(changed, tools=[look("1")], model=model)
        with pytest.raises(NotFound):
            await node.template("no such run")
        await node.stop()

    async def test_a_drain_while_a_beginning_is_being_written_asks_nobody(self) -> None:
        ran: list[int] = []

        @tool(effect="once")
        async def pay() -> str:
            """Pay."""
            ran.append(1)
            return "paid"

        def model(request: ModelRequest) -> Any:
            return asks(call("pay")) if turn(request) == 0 else says(str(last(request)))

        world = World(agent(model, pay))
        node = await world.node()
        held: list[Any] = []
        commit = world.store.commit

        def slow(step: StepCommit, done: Any) -> None:
            if b"tool_call_begun" in b"".join(record.body for record in step.records):
                held.append((step, done))
            else:
                commit(step, done)

        world.store.commit = slow  # type: ignore[method-assign]
        run = await node.send("a", "go")
        await world.settle()
        stopping = asyncio.ensure_future(node.stop())
        await world.settle()
        world.store.commit = commit  # type: ignore[method-assign]
        commit(*held[0])
        await asyncio.wait_for(stopping, 5)
        node = await world.node()
        assert await finished(world, await node.run(run.id)) == "paid"
        assert ran == [1]
        await node.stop()

    async def test_text_reaches_only_the_run_it_is_written_for(self) -> None:
        gate = asyncio.Event()

        async def model(request: ModelRequest) -> str:
            await gate.wait()
            return f"secret of {last(request)}"

        world = World(agent(model))
        node = await world.node()
        await node.send("a", "one", session="s")
        await world.settle()
        two = await node.send("a", "two", session="s")
        collecting = asyncio.ensure_future(_all(two.stream()))
        await world.settle()
        gate.set()
        items = await asyncio.wait_for(collecting, 5)
        text = "".join(getattr(item, "text", "") for item in items)
        assert text in ("secret of two", "")
        await node.stop()

    async def test_an_empty_summary_does_not_replace_the_history(self) -> None:
        seen: list[int] = []

        @tool(effect="read")
        async def look() -> str:
            """Look."""
            return "seen"

        def model(request: ModelRequest) -> Any:
            if request.purpose == "compact":
                return "   "
            seen.append(len(request.messages))
            return asks(call("look")) if turn(request) < 3 else says("done")

        policy = ContextPolicy("compact", compact_at_tokens=1, keep_messages=2)
        replies = agent(_costly(model), look, context=policy)
        world = World(replies)
        node = await world.node()
        run = await node.send("a", "go")
        assert await finished(world, run) == "done"
        assert seen == [1, 3, 5, 7]
        await node.stop()


async def test_nothing_is_sent_before_the_commit_that_intends_it_is_durable() -> None:
    """Also when an earlier commit of the session becomes durable in between."""
    asked: list[int] = []

    @tool(effect="read")
    async def look(n: int) -> str:
        """Look."""
        return f"seen {n}"

    def model(request: ModelRequest) -> Any:
        asked.append(turn(request))
        return asks(call("look", n=1), call("look", n=2)) if turn(request) == 0 else says("done")

    world = World(agent(model, look))
    node = await world.node()
    held: list[Any] = []
    commit = world.store.commit

    def slow(step: StepCommit, done: Any) -> None:
        if b"tool_call_succeeded" in b"".join(record.body for record in step.records):
            held.append((step, done))
        else:
            commit(step, done)

    world.store.commit = slow  # type: ignore[method-assign]
    run = await node.send("a", "go")
    await world.settle()
    assert len(held) == 2
    commit(*held[0])
    await world.settle()
    assert asked == [0]
    commit(*held[1])
    assert await finished(world, run) == "done"
    assert asked == [0, 1]
    await node.stop()


async def test_the_same_idempotency_key_in_two_stores_gives_two_keys() -> None:
    keys: list[str] = []

    @tool(effect="idempotent")
    async def save(ctx: ToolContext) -> str:
        """Save."""
        keys.append(ctx.key)
        return "saved"

    def model(request: ModelRequest) -> Any:
        return asks(call("save")) if turn(request) == 0 else says("done")

    for identity in ("one", "two", "one"):
        world = World(agent(model, save))
        world.store.identity = identity
        node = await world.node()
        run = await node.send("a", "go", session="s", idempotency_key="monday")
        await finished(world, run)
        await node.stop()
    assert keys[0] == keys[2] != keys[1]


class TestNothingIsLost:
    async def test_a_final_answer_beats_a_steer_that_comes_at_the_last_step(self) -> None:
        gate = asyncio.Event()

        async def model(request: ModelRequest) -> str:
            await gate.wait()
            return f"answer to {last(request)}"

        world = World(agent(model, limits=Limits(steps_max=1)))
        node = await world.node()
        one = await node.send("a", "one", session="s")
        await world.settle()
        two = await node.send("a", "two", session="s", mode="steer")
        await world.settle()
        gate.set()
        assert await finished(world, one) == "answer to one"
        assert await finished(world, two) == "answer to two"
        await node.stop()

    async def test_a_lazy_session_wakes_for_a_message_that_waits(self) -> None:
        hanging = asyncio.Event()

        async def model(request: ModelRequest) -> str:
            await hanging.wait()
            return "ok"

        world = World(agent(model, resume="lazy"))
        node = await world.node()
        await node.send("a", "one", session="s")
        await world.settle()
        two = await node.send("a", "two", session="s")
        await world.settle()
        await world.crash(node)
        hanging.set()
        node = await world.node()
        assert await finished(world, await node.run(two.id)) == "ok"
        await node.stop()

    async def test_a_withdrawn_run_is_not_retried_without_its_message(self) -> None:
        def model(request: ModelRequest) -> Any:
            return asks(call("wait", seconds=10))

        world = World(agent(model, wait))
        node = await world.node()
        await node.send("a", "one", session="s")
        await world.settle()
        two = await node.send("a", "two", session="s")
        await world.settle()
        await node.cancel(two.id)
        with pytest.raises(Refused, match="before it began"):
            await node.retry(two.id)
        await node.stop()

    async def test_a_healthy_session_is_not_taken_from_its_owner_by_a_release(self) -> None:
        world = World(agent(echo))
        node = await world.node()
        await finished(world, await node.send("a", "x", session="s"))
        with pytest.raises(Refused, match="not in quarantine"):
            await node.release("a", "s")
        await node.stop()


async def _all(items: Any) -> list[Any]:
    return [item async for item in items]


def _costly(model: Any) -> Any:
    def costly(request: ModelRequest) -> Any:
        reply = model(request)
        if isinstance(reply, str):
            reply = says(reply)
        return ModelReply(
            reply.content, reply.tool_calls, reply.finish, type(reply.usage)(input_tokens=100)
        )

    return costly
