"""The client and the worker against a real server: what they promise when it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.adapters.clock import SystemClock
from perdure.api.shapes import AgentCreate, Event
from perdure.client import ApiError, AsyncClient, Client, RunWaits
from perdure.core.agent import ContextPolicy, Limits
from perdure.core.errors import InvalidInput, NotFound, RunCancelled, RunFailed, WorkerRefused
from perdure.core.messages import ModelReply, ToolMessage, ToolRequest
from perdure.ports.models import ModelError, ModelRequest
from perdure.worker import Agent, ask_human, tool
from perdure.worker.remote import RemoteWorker
from tests.client.served import KEY, a_server, agents_on
from tests.worker.helpers import unknown
from tests.worker.node_played import until

PATIENCE_SECONDS = 20


def calls_then_says(name: str, **arguments: Any) -> Callable[[ModelRequest], ModelReply]:
    """Return a model that calls a tool once for each message, and then tells its result."""

    def model(request: ModelRequest) -> ModelReply:
        last = request.messages[-1]
        if isinstance(last, ToolMessage):
            return ModelReply(content=f"I got: {last.content}")
        asked = ToolRequest(f"c{len(request.messages)}", name, arguments)
        return ModelReply(content="", tool_calls=(asked,), finish="tool_call")

    return model


class Gate:
    """A tool `work` that waits until it is let, and counts its calls."""

    def __init__(self, effect: Any = "idempotent", **options: Any) -> None:
        self.calls = 0
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

        @tool(effect=effect, **options)
        async def work() -> str:
            self.calls += 1
            self.reached.set()
            await self.open.wait()
            return "worked"

        self.tool = work

    def agent(self) -> Agent:
        """Return an agent that calls it."""
        return Agent("worker", model=calls_then_says("work"), tools=[self.tool])


async def collected(run: Any) -> list[Event]:
    """Return all events of a run, once it has ended."""
    return [event async for event in run.events()]


def are_whole(events: list[Event]) -> bool:
    """Say whether events are those of a whole run, each once and in order."""
    numbers = [event.sequence for event in events]
    return numbers == [*range(1, len(events) + 1)] and events[-1].event_type == "run_completed"


async def test_a_message_is_sent_and_answered(tmp_path: Path) -> None:
    """From the client over the node to the worker and back, and its events meanwhile."""
    echo = Agent("echo", model=lambda request: f"You said {request.messages[-1].content}")
    async with (
        a_server(tmp_path) as served,
        agents_on(served, echo),
        AsyncClient(served.url, KEY) as client,
    ):
        run = await client.send("echo", "hello", session="s")
        events = await collected(run)
        assert are_whole(events)
        assert await run.result(PATIENCE_SECONDS) == "You said hello"
        assert [event async for event in run.events(after=2)] == events[2:]
        again = await client.send("echo", "more", session="s")
        await again.wait(PATIENCE_SECONDS)
        (session,) = await client.sessions()
        assert (session.key, session.agent_name) == ("s", "echo")
        whole = await client.session(session.id)
        assert [each.id for each in whole.runs] == [run.id, again.id]
        latest = await client.runs("echo", status="completed", limit=1)
        assert [each.id for each in latest] == [again.id]


async def test_a_program_without_an_event_loop(tmp_path: Path) -> None:
    """The same, from a thread."""
    echo = Agent("echo", model=lambda request: "Good day")

    def program(url: str) -> tuple[Any, list[Event]]:
        with Client(url, KEY) as client:
            run = client.send("echo", "hello", idempotency_key="k")
            assert client.send("echo", "hello", idempotency_key="k").id == run.id
            answer = run.result(PATIENCE_SECONDS)
            return answer, list(run.events())

    async with a_server(tmp_path) as served, agents_on(served, echo):
        answer, events = await asyncio.to_thread(program, served.url)
        assert answer == "Good day"
        assert are_whole(events)


async def test_a_node_that_goes_away_loses_nothing(tmp_path: Path) -> None:
    """The call goes on without it, and is not made again; whoever follows misses nothing."""
    gate = Gate()
    async with (
        a_server(tmp_path) as served,
        agents_on(served, gate.agent()),
        AsyncClient(served.url, KEY) as client,
    ):
        run = await client.send("worker", "go")
        events = asyncio.ensure_future(collected(run))
        result = asyncio.ensure_future(run.result(PATIENCE_SECONDS))
        await gate.reached.wait()
        await served.stop()
        gate.open.set()
        await served.start()
        assert await result == "I got: worked"
        assert are_whole(await asyncio.wait_for(events, PATIENCE_SECONDS))
        assert gate.calls == 1


async def test_a_call_that_may_happen_once_outlives_its_node(tmp_path: Path) -> None:
    """The next node finds it begun, and its worker comes back with it: nobody has to ask."""
    probes: list[str] = []
    gate = Gate("once", probe=probes.append)
    async with (
        a_server(tmp_path) as served,
        agents_on(served, gate.agent()),
        AsyncClient(served.url, KEY) as client,
    ):
        run = await client.send("worker", "go")
        await gate.reached.wait()
        await served.stop()
        await served.start()
        gate.open.set()
        assert await run.result(PATIENCE_SECONDS) == "I got: worked"
        types = [event.event_type async for event in run.events()]
        assert "tool_call_unknown" not in types
        assert (gate.calls, probes) == (1, [])


async def test_a_person_is_asked(tmp_path: Path) -> None:
    """The result says so, and comes once the answer was given."""
    asks = Agent("asks", model=calls_then_says("ask_human", question="Sure?"), tools=[ask_human])
    async with (
        a_server(tmp_path) as served,
        agents_on(served, asks),
        AsyncClient(served.url, KEY) as client,
    ):
        run = await client.send("asks", "go")
        with pytest.raises(RunWaits, match="waits for a person: Sure\\?") as waits:
            await run.result(PATIENCE_SECONDS)
        assert waits.value.run.waits[0].what == "answer"
        await run.reply("yes")
        assert await run.result(PATIENCE_SECONDS) == "I got: yes"
        with pytest.raises(ApiError, match="run is not waiting for input") as refused:
            await run.reply("again")
        assert refused.value.status == 409


async def test_a_run_without_a_result(tmp_path: Path) -> None:
    """It failed, it was cancelled, or its time was up: each has its own exception."""

    def broken(request: ModelRequest) -> ModelReply:
        raise ModelError("no such model", error_class="validation", code="no_model")

    gate = Gate()
    async with (
        a_server(tmp_path) as served,
        agents_on(served, Agent("broken", model=broken), gate.agent()),
        AsyncClient(served.url, KEY) as client,
    ):
        failed = await client.send("broken", "go")
        with pytest.raises(RunFailed, match="no such model") as told:
            await failed.result(PATIENCE_SECONDS)
        assert (told.value.error_class, told.value.code) == ("validation", "no_model")
        again = await failed.retry()
        assert again.id != failed.id
        with pytest.raises(RunFailed):
            await again.result(PATIENCE_SECONDS)
        slow = await client.send("worker", "go")
        await gate.reached.wait()
        with pytest.raises(TimeoutError, match="has not ended within 0.01 s"):
            await slow.result(0.01)
        await slow.cancel("enough")
        with pytest.raises(RunCancelled, match="enough"):
            await slow.result(PATIENCE_SECONDS)
        assert (await collected(slow))[-1].event_type == "run_failed"


async def test_a_run_is_forked(tmp_path: Path) -> None:
    """A worker of ours serves the copy of its agent that another prompt makes."""

    def model(request: ModelRequest) -> str:
        said = [str(message.content) for message in request.messages]
        return f"{request.instructions}: {' | '.join(said)}"

    async with (
        a_server(tmp_path) as served,
        agents_on(served, Agent("bot", model=model, instructions="Help.")),
        AsyncClient(served.url, KEY) as client,
    ):
        run = await client.send("bot", "go")
        assert await run.result(PATIENCE_SECONDS) == "Help.: go"
        fork = await run.fork(0, "no, wait", system_prompt="Doubt.")
        assert await fork.result(PATIENCE_SECONDS) == "Doubt.: go | no, wait"
        with pytest.raises(ApiError, match="step 2 is beyond") as refused:
            await run.fork(2)
        assert refused.value.status == 422


async def test_what_a_worker_defines_is_what_runs(tmp_path: Path) -> None:
    """Every part of an agent arrives as it was written, whatever the API has words for."""
    asked: list[ModelRequest] = []

    def model(request: ModelRequest) -> str:
        asked.append(request)
        return "ok"

    @tool(effect="once", timeout=7, probe=lambda key: True, capabilities=["money"])
    async def pay(amount: int) -> str:
        """Pay.

        Args:
            amount: How much.
        """
        return f"paid {amount}"

    agent = Agent(
        "cashier",
        model=model,
        instructions="Pay what is asked.",
        tools=[pay, ask_human],
        limits=Limits(steps_max=9, tokens_max=1_000),
        context=ContextPolicy("window", window_messages=11),
        on_failure="stop",
        resume="lazy",
        max_tokens=99,
    )
    async with a_server(tmp_path) as served, AsyncClient(served.url, KEY) as client:
        async with agents_on(served, agent):
            await (await client.send("cashier", "go")).result(PATIENCE_SECONDS)
        (request,) = asked
        assert (request.instructions, request.max_tokens) == ("Pay what is asked.", 99)
        assert [each.name for each in request.tools] == ["pay", "ask_human"]
        shown = await client.agent("cashier")
        assert (shown.max_steps, shown.context_window) == (9, 11)
        async with agents_on(served, Agent("cashier", model=model)):
            await (await client.send("cashier", "go")).result(PATIENCE_SECONDS)
        assert (asked[-1].instructions, asked[-1].tools) == ("", ())
        assert (await client.agent("cashier")).id == shown.id


async def test_what_a_server_refuses(tmp_path: Path) -> None:
    """Its status and its words arrive, field by field."""
    async with a_server(tmp_path) as served:
        async with AsyncClient(served.url, KEY) as client:
            with pytest.raises(NotFound, match="no agent 'nobody' on the server; .*: none"):
                await client.send("nobody", "hello")
            with pytest.raises(ApiError) as refused:
                await client.define_agent(AgentCreate(name="a", system_prompt=" "))
            assert refused.value.status == 422
            assert refused.value.error == {"system_prompt": ["can't be blank"]}
            assert "422: system_prompt can't be blank" in str(refused.value)
            with pytest.raises(ApiError, match="GET /api/v1/runs/99 was answered 404: not found"):
                await client.run(99).get()
        async with AsyncClient(served.url, "prd_wrong") as stranger:
            with pytest.raises(ApiError, match="401: unauthorized"):
                await stranger.agents()


async def test_a_worker_that_a_server_does_not_want(tmp_path: Path) -> None:
    """Its key is no good: it ends with a word that says so, and not with the key."""
    async with a_server(tmp_path) as served:
        for register in (True, False):
            worker = RemoteWorker(
                served.url, "prd_wrong", unknown, SystemClock(), register=register
            )
            with pytest.raises(WorkerRefused) as refused:
                await worker.run([Agent("echo", model="m")], signals=False)
            assert refused.value.code == ("unauthorized" if register else "forbidden")
            assert "prd_wrong" not in str(refused.value)


async def test_a_worker_may_be_there_before_its_server(tmp_path: Path) -> None:
    """It defines its agents once the server is up."""
    echo = Agent("echo", model=lambda request: "Good day")
    async with a_server(tmp_path) as served, AsyncClient(served.url, KEY) as client:
        await served.stop()
        worker = RemoteWorker(served.url, KEY, unknown, SystemClock())
        running = asyncio.ensure_future(worker.run([echo], signals=False))
        await until(lambda: worker._failures > 0)
        await served.start()
        while not (await client.call("list_workers")).data:
            assert not running.done(), running.result()
        assert await (await client.send("echo", "hi")).result(PATIENCE_SECONDS) == "Good day"
        worker.stop()
        await asyncio.wait_for(running, PATIENCE_SECONDS)


async def test_every_operation_can_be_asked_for(tmp_path: Path) -> None:
    """By its own id, without a method of its own."""
    async with a_server(tmp_path) as served, AsyncClient(served.url, KEY) as client:
        for name in ("workers", "triggers", "gards", "hooks", "keys", "runs", "agents"):
            assert (await client.call(f"list_{name}")).data is not None
        assert (await client.call("list_tools")).meta.workers_connected == 0
        gard = await client.call("create_gard", body={"name": "g"}, idempotency_key="k")
        assert (await client.call("get_gard", id=gard.id)).name == "g"
        assert await client.call("destroy_gard", id=gard.id) is None
        with pytest.raises(InvalidInput, match="no operation 'list_nothing'"):
            await client.call("list_nothing")
        with pytest.raises(InvalidInput, match="path of get_gard takes id"):
            await client.call("get_gard", key="g")
