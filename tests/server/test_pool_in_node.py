"""Whole runs on a real node whose only workers are behind the pool."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from perdure.core.agent import AgentSpec, ToolSpec, define
from perdure.core.errors import RunFailed
from perdure.core.events import ToolCallIntended
from perdure.core.messages import AssistantMessage
from perdure.runtime.agents import Registered
from perdure.runtime.handles import Run
from perdure.runtime.node import Node
from perdure.server.pool import Pool
from perdure.wire import table as t
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.runtime.world import World
from tests.server.peers import Does, Peer, registration

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}


def spec(name: str = "bot", **tool: Any) -> AgentSpec:
    """Return an agent with one tool."""
    charge = ToolSpec("charge", "Takes money.", SCHEMA, **{"effect": "idempotent", **tool})
    return AgentSpec(name, "m", "You help.", (charge,))


class Service(World):
    """A world whose node has no workers but those that join."""

    def __init__(self, *specs: AgentSpec) -> None:
        super().__init__()
        self.definitions = {one.name: define(one) for one in specs or (spec(),)}
        self.pool: Pool

    async def node(self) -> Node:
        """Start a node with a pool of its own, as a new process would."""
        self.pool = Pool(self.clock, self.telemetry)
        node = Node(
            self.store, [self.pool], Registered(self.definitions), self.clock, self.telemetry,
            settings=self.settings,
        )  # fmt: skip
        await node.start()
        return node

    def peer(self, worker_id: str = "w1", does: Does | None = None, **more: Any) -> Peer:
        """Let a worker join that has everything; without `does` it never answers."""
        what = registration(worker_id, "charge", **more)
        return Peer(self.pool, what, does=does or (lambda task: None))


def answer(task: LlmTask | ToolTask) -> Result:
    """Play a model that charges once and then says so, and the tool."""
    if isinstance(task, ToolTask):
        said = f"charged {task.input['n']}"
        return Result(task_id=task.task_id, status="ok", result=said)
    assert isinstance(task.messages, tuple)
    if any(isinstance(message, AssistantMessage) for message in task.messages):
        content = f"it says: {task.messages[-1].content}"
        return Result(task_id=task.task_id, status="ok", content=content, finish_reason="stop")
    calls = [{"id": "call_1", "name": "charge", "arguments": {"n": 5}}]
    return Result(task_id=task.task_id, status="ok", content=None, tool_calls=calls)


def model_only(task: LlmTask | ToolTask) -> Result | None:
    """Play the model, and never answer for the tool."""
    return answer(task) if isinstance(task, LlmTask) else None


def tool_only(task: LlmTask | ToolTask) -> Result | None:
    """Play the tool, and never answer for the model."""
    return answer(task) if isinstance(task, ToolTask) else None


async def result(run: Run) -> Any:
    """Return a run's answer, which must come without any time passing."""
    return await asyncio.wait_for(run.result(), 5)


DONE = "it says: charged 5"


@pytest.mark.parametrize(
    "features",
    [
        (),
        ("message_cache",),
        ("results", "text", "progress", "cancel", "begin"),
        ("native", "begin", "cancel"),
    ],
)
@pytest.mark.parametrize("effect", ["read", "idempotent", "once"])
async def test_a_run_from_its_message_to_its_answer(features: tuple[str, ...], effect: str) -> None:
    """Whatever the worker can and the tool promises."""
    service = Service(spec(effect=effect))
    node = await service.node()
    peer = service.peer(features=features, agents={"bot": ("charge",)})

    def begins_first(task: LlmTask | ToolTask) -> Result | None:
        once = isinstance(task, ToolTask) and effect == "once" and "begin" in features
        if once:
            peer.say(peer.side.begin(task.task_id))
        return None if once else answer(task)

    peer._does = begins_first
    run = await node.send("bot", "go")
    await service.settle()
    if t.Proceed in map(type, peer.heard):
        peer.ok(peer.ids[1], "charged 5")
    assert await result(run) == DONE
    begins = ["tool_call_begun"] if effect == "once" else []
    assert [e for e in await service.events(run) if e.startswith("tool_call")] == [
        "tool_call_intended", *begins, "tool_call_succeeded"
    ]  # fmt: skip
    await node.stop()
    assert peer.closed == 1012


async def test_a_run_waits_for_a_worker_and_says_so() -> None:
    """It is owed: nothing times out, nothing is lost."""
    service = Service()
    node = await service.node()
    run = await node.send("bot", "go")
    await service.pass_time(3600)
    (waiting,) = service.pool.queues.waiting_for(run.session)
    assert waiting.needs == "a worker with llm for agent 'bot'"
    service.peer(does=answer)
    assert await result(run) == DONE
    assert service.pool.queues.waiting_for(run.session) == ()
    await node.stop()


async def test_a_lost_tool_call_is_the_same_call_for_the_next_worker() -> None:
    """The same id, the same key; a third loss is the last."""
    service = Service()
    node = await service.node()
    run = await node.send("bot", "go")
    seen = []
    for number in range(3):
        peer = service.peer(f"w{number}", model_only)
        await service.settle()
        seen.append([(task.task_id, task.idempotency_key) for task in peer.tasks
                     if isinstance(task, ToolTask)])  # fmt: skip
        peer.lose()
        await service.settle()
    assert len(seen[0]) == 1
    assert seen[0] == seen[1] == seen[2]
    service.peer("w9", answer)
    assert await result(run) == "it says: Given up after 3 attempts: worker 'w2' was lost"
    await node.stop()


async def test_a_lost_model_call_is_asked_again_after_a_while() -> None:
    """As a call of its own, so that a late answer to the first is nobody's."""
    service = Service()
    node = await service.node()
    run = await node.send("bot", "go")
    first = service.peer("w1")
    await service.settle()
    first.lose()
    second = service.peer("w2", answer)
    await service.settle()
    assert second.tasks == []
    await service.pass_time(2)
    assert await result(run) == DONE
    assert set(first.ids).isdisjoint(second.ids)
    await node.stop()


async def test_a_provider_that_is_busy_is_asked_again_as_the_policy_says() -> None:
    """Though its worker has only the text of an exception."""
    service = Service()
    node = await service.node()
    run = await node.send("bot", "go")
    busy = "litellm.RateLimitError: 429 - slow down"
    service.peer(does=lambda task: Result(task_id=task.task_id, status="error", error=busy))
    await service.settle()
    assert (await service.events(run))[-2:] == ["model_call_failed", "retry_scheduled"]
    service.peer(does=answer)
    await service.pass_time(20)
    assert await result(run) == DONE
    await node.stop()


@pytest.mark.parametrize("features", [(), ("begin",)])
async def test_nobody_repeats_what_may_happen_once(features: tuple[str, ...]) -> None:
    """A worker that dies after the call has begun leaves it unknown; the model is told."""
    service = Service(spec(effect="once"))
    node = await service.node()
    run = await node.send("bot", "go")
    peer = service.peer("w1", model_only, features=features)
    await service.settle()
    if features:
        peer.say(peer.side.begin(peer.ids[-1]))
        await service.settle()
        assert t.Proceed(peer.ids[-1]) in peer.heard
    peer.lose()
    service.peer("w2", answer)
    assert "outcome of this call is unknown" in await result(run)
    assert "tool_call_unknown" in await service.events(run)
    await node.stop()


async def test_a_probe_says_what_became_of_a_lost_call() -> None:
    """It goes to a worker that has the tool itself, under an id of its own."""
    service = Service(spec(effect="once", probe=True))
    node = await service.node()
    run = await node.send("bot", "go")
    native: Any = {"features": ("native", "begin"), "agents": {"bot": ("charge",)}}

    def probe(task: LlmTask | ToolTask) -> Result:
        if isinstance(task, ToolTask):
            assert task.perdure.probe  # type: ignore[union-attr]
            return Result(task_id=task.task_id, status="ok", verdict="happened", result="charged 5")
        return answer(task)

    peer = service.peer("w1", model_only, **native)
    await service.settle()
    peer.say(peer.side.begin(peer.ids[-1]))
    await service.settle()
    peer.lose()
    await service.settle()
    other = service.peer("w2", probe, **native)
    assert await result(run) == DONE
    assert other.ids[0] != peer.ids[-1]
    await node.stop()


@pytest.mark.parametrize("does", [model_only, tool_only])
async def test_what_was_computed_while_the_node_was_down_arrives(does: Does) -> None:
    """The next node owes the same calls under the same ids; nothing is done again."""
    service = Service()
    node = await service.node()
    run = await node.send("bot", "go")
    peer = service.peer("w1", does)
    await service.settle()
    kept = answer(peer.tasks[-1])
    await service.crash(node)
    node = await service.node()
    await service.settle()
    back = service.peer("w1", answer, features=("credit",))
    back.say(back.side.result(kept))
    await service.settle()
    assert back.tasks == []
    back.say(*back.side.credit(10))
    await service.settle()
    assert await result(await node.run(run.id)) == DONE
    assert peer.ids[-1] not in back.ids
    await node.stop()


async def test_a_history_that_no_frame_carries_fails_the_run() -> None:
    """With a reason, and without a loop of closed connections."""
    service = Service()
    node = await service.node()
    run = await node.send("bot", "x" * 5000)
    peer = service.peer(does=answer, frame_bytes_max=4096)
    with pytest.raises(RunFailed, match="more than the 4096 that its worker takes") as failed:
        await result(run)
    assert (failed.value.error_class, failed.value.code) == ("validation", "too_large")
    assert (peer.closed, peer.frames[1:]) == (None, [])
    await node.stop()


async def test_a_cancelled_run_is_taken_from_its_worker() -> None:
    """It hears so, if it can stop."""
    service = Service()
    node = await service.node()
    run = await node.send("bot", "go")
    peer = service.peer(features=("cancel",))
    await service.settle()
    await node.cancel(run.id)
    await service.settle()
    assert peer.heard[1:] == [t.Cancel(peer.ids[0])]
    await node.stop()


@pytest.mark.parametrize("seed", range(6))
async def test_workers_that_come_and_go_lose_nothing(seed: int) -> None:
    """However often: every run ends, and no payment is made twice."""
    chance = random.Random(seed)
    service = Service(spec(), spec("payer", effect="once"))
    node = await service.node()
    acted: Counter[str] = Counter()

    def sometimes(task: LlmTask | ToolTask) -> Result | None:
        if isinstance(task, ToolTask):
            acted[task.idempotency_key or ""] += 1
        return answer(task) if chance.random() < 0.7 else None

    features = [(), ("message_cache",), ("cancel",)]
    runs = [await node.send(chance.choice(["bot", "payer"]), "go") for _ in range(12)]
    peers: list[Peer] = []
    for number in range(40):
        worker_id = f"w{number % 4}"
        peers.append(service.peer(worker_id, sometimes, features=chance.choice(features)))
        await service.settle(chance.randrange(40))
        if chance.random() < 0.5:
            chance.choice(peers).lose()
        await service.pass_time(1)
    service.peer("steady", answer)
    for peer in peers:
        peer.lose()
    await service.pass_time(60)
    for run in runs:
        row = (await asyncio.wait_for(run.ended(), 5)).row
        # Four losses of one step's model call in a row are more than the policy forgives.
        assert (row.status, row.code) in {("completed", None), ("failed", "worker_disconnected")}
        key = await key_of(run)
        if run.session.agent == "payer":
            assert acted[key] <= 1
        elif row.status == "completed":
            assert 1 <= acted[key] <= 3
    assert service.pool.queues.held == {}
    await node.stop()


async def key_of(run: Run) -> str:
    """Return the key under which a run's tool was to be called."""
    async for item in run.events():
        if isinstance(item.event, ToolCallIntended):
            return item.event.key
    return ""
