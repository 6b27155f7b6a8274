"""Several nodes on one store: whoever accepts, whoever runs, whoever waits, and whoever dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.adapters.cluster.memory import Hub, MemoryCluster
from perdure.adapters.models import asks, call, resolve
from perdure.adapters.stores.memory import MemoryStore
from perdure.core.codec import GENERATION
from perdure.core.errors import Broken, NotFound, Quarantined, Refused, RunFailed, Unavailable
from perdure.core.ids import SessionId
from perdure.ports.cluster import NodeCard
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import CommitDone, Receipt, StepCommit
from perdure.runtime import host, loader, recovery, tenancy
from perdure.runtime import node as node_module
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.worker import Agent, LocalWorker, ask_human, tool, wait
from tests.runtime.world import World, last, turn

SETTINGS = NodeSettings(linger_ms=100, scan_interval_ms=1_000)


class Deaf(MemoryCluster):
    """A bus that loses everything."""

    def send(self, node: str | None, message: bytes) -> None:
        """Lose it."""


class Twice(MemoryCluster):
    """A bus on which everything comes twice, the second time late and out of order."""

    def send(self, node: str | None, message: bytes) -> None:
        """Send it now, and again later."""
        super().send(node, message)
        asyncio.get_running_loop().call_later(0.001, super().send, node, message)


class Town(World):
    """One store, one clock, and several nodes that know each other."""

    def __init__(self, *agents: Agent, bus: type[MemoryCluster] = MemoryCluster) -> None:
        super().__init__(*agents, settings=SETTINGS)
        self.hub = Hub(self.clock.now_ms)
        self.bus = bus
        self.nodes: dict[str, Node] = {}

    async def open(self, name: str) -> Node:
        """Start a node."""
        node = Node(
            self.store,
            [LocalWorker(list(self.agents), resolve, self.clock)],
            self.registered(),
            self.clock,
            self.telemetry,
            settings=self.settings,
            cluster=self.bus(self.hub),
            card=lambda: NodeCard(id="", name=name),
        )
        await node.start()
        self.nodes[name] = node
        return node

    async def vanish(self, name: str) -> None:
        """Let a node die without a word."""
        node = self.nodes.pop(name)
        assert node._presence is not None
        assert node._elsewhere is not None
        for part in (node._heartbeat, node._presence):
            part._stopped = True
            assert part._timer is not None
            part._timer.cancel()
        del self.hub.members[node.owner]
        await node._elsewhere.stop()
        await node._recovery.stop()
        node._host.draining = node._dispatcher_is_gone = True
        node._host.lose_all(Broken("it is dead"))
        for worker in node._workers:
            await worker.close()

    async def close(self) -> None:
        """Stop every node."""
        for node in self.nodes.values():
            await node.stop()

    async def until(self, what: asyncio.Future[Any], seconds: float = 30) -> Any:
        """Let time pass until something is done, and return its result."""
        for _ in range(int(seconds * 10)):
            await self.settle(10)
            if what.done():
                return what.result()
            self.clock.advance(100)
        raise AssertionError(f"not done within {seconds} s")

    async def result(self, run: Any, seconds: float = 30) -> Any:
        """Let time pass until a run has ended, and return its answer."""
        return await self.until(asyncio.ensure_future(run.result()), seconds)


def echo(request: ModelRequest) -> str:
    """Play a model that repeats what it was told."""
    return f"you said {last(request)}"


def asking(request: ModelRequest) -> Any:
    """Play a model that asks a person, and repeats the answer."""
    if turn(request) == 0:
        return asks(call("ask_human", question="well?"))
    return f"{request.messages[-1].content}"


buses = pytest.mark.parametrize("bus", [MemoryCluster, Twice, Deaf])


@buses
async def test_a_message_for_a_session_that_another_node_runs_is_answered_here(
    bus: type[MemoryCluster],
) -> None:
    town = Town(Agent("a", model=asking, tools=[ask_human]), bus=bus)
    there, here = await town.open("there"), await town.open("here")
    first = await there.send("a", "hello", session="s")
    await town.settle()
    second = await here.send("a", "and again", session="s")
    answering = asyncio.ensure_future(here.reply(first.id, "fine"))
    await town.until(answering)
    assert "fine" in await town.result(first)
    assert (await second.row()).session == SessionId("default", "a", "s")
    await town.close()


@buses
async def test_what_a_person_says_at_one_node_is_judged_by_the_one_that_runs_the_session(
    bus: type[MemoryCluster],
) -> None:
    town = Town(Agent("a", model=asking, tools=[ask_human]), bus=bus)
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello", session="s")
    await town.settle()
    with pytest.raises(Refused) as refused:
        await town.until(asyncio.ensure_future(here.reply(run.id, "fine", call="no such call")))
    assert refused.value.code == "not_asked"
    await town.until(asyncio.ensure_future(here.cancel(run.id)))
    assert (await run.row()).status == "cancelled"
    with pytest.raises(Refused) as too_late:
        await town.until(asyncio.ensure_future(here.cancel(run.id)))
    assert too_late.value.code == "not_running"
    await town.close()


@buses
async def test_who_waits_at_another_node_is_told_the_end_and_every_event(
    bus: type[MemoryCluster],
) -> None:
    town = Town(Agent("a", model=asking, tools=[ask_human]), bus=bus)
    there, here = await town.open("there"), await town.open("here")
    asked = await there.send("a", "hello", session="s")
    await town.settle()
    watching = await here.run(asked.id)

    async def follow() -> list[str]:
        return [event.type async for event in watching.events()]

    events = asyncio.ensure_future(follow())
    ending = asyncio.ensure_future(watching.result())
    await town.settle()
    await town.until(asyncio.ensure_future(there.reply(asked.id, "fine")))
    assert "fine" in await town.until(ending)
    assert (await town.until(events))[-1] == "run_completed"
    await town.close()


@buses
async def test_a_dead_nodes_sessions_go_on_elsewhere_and_who_waited_is_answered(
    bus: type[MemoryCluster],
) -> None:
    ran: list[str] = []

    @tool(effect="read")
    async def look(where: str) -> str:
        """Look."""
        ran.append(where)
        if len(ran) == 1:
            await asyncio.Event().wait()
        return "seen"

    def model(request: ModelRequest) -> Any:
        return asks(call("look", where="there")) if turn(request) == 0 else "done"

    town = Town(Agent("a", model=model, tools=[look]), bus=bus)
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello", session="s")
    await town.settle()
    waiting = asyncio.ensure_future((await here.run(run.id)).result())
    await town.settle()
    began = town.clock.now_ms()
    await town.vanish("there")
    assert await town.until(waiting) == "done"
    assert ran == ["there", "there"]
    took_ms = town.clock.now_ms() - began
    assert took_ms <= SETTINGS.lease_ms + 2_000
    await town.close()


@buses
async def test_a_node_that_stops_hands_its_sessions_over_within_a_second(
    bus: type[MemoryCluster],
) -> None:
    gate = asyncio.Event()

    async def model(request: ModelRequest) -> str:
        await gate.wait()
        return "done"

    town = Town(Agent("a", model=model), bus=bus)
    there = await town.open("there")
    runs = [await there.send("a", "hello", session=f"s{n}") for n in range(20)]
    await town.settle()
    here = await town.open("here")
    stopping = asyncio.ensure_future(there.stop())
    began = town.clock.now_ms()
    del town.nodes["there"]
    while here._host.active() < len(runs):
        await town.settle(5)
        town.clock.advance(50)
        assert town.clock.now_ms() < began + (1_000 if bus is not Deaf else 3_000)
    await town.until(stopping)
    gate.set()
    for run in runs:
        assert await town.result(await here.run(run.id)) == "done"
    await town.close()


async def test_of_several_nodes_one_claims_and_the_others_leave_it_alone() -> None:
    gate = asyncio.Event()

    async def model(request: ModelRequest) -> str:
        await gate.wait()
        return "done"

    town = Town(Agent("a", model=model))
    claims: list[SessionId] = []
    claim = town.store.claim

    async def counted(session: SessionId, *claimant: Any) -> Any:
        claims.append(session)
        return await claim(session, *claimant)

    town.store.claim = counted  # type: ignore[method-assign]
    writer = await town.open("writer")
    for n in range(60):
        await writer.send("a", "hi", session=f"s{n}")
    await town.settle()
    await town.vanish("writer")
    claims.clear()
    for name in ("one", "two", "three"):
        await town.open(name)
    for _ in range(10):
        await town.pass_time(1)
    assert await town.store.due(town.clock.now_ms(), 100) == ([], None)
    gate.set()
    assert len(set(claims)) == 60
    assert len(claims) <= 66
    await town.close()


async def test_a_card_says_what_a_node_is_doing() -> None:
    town = Town(Agent("a", model=echo))
    one, two = await town.open("one"), await town.open("two")
    await town.pass_time(3)
    shown = {card.name: card for card in two.nodes()}
    assert shown.keys() == {"one", "two"}
    assert (shown["one"].id, shown["one"].draining, shown["one"].generation) == (
        one.owner,
        False,
        GENERATION,
    )
    await town.close()


class Silent(MemoryStore):
    """Writes, but for `lost` commits nobody is told in time what became of them."""

    lost = 0
    written = True

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Lose the answer, or the question."""
        if not self.lost or not step.records:
            super().commit(step, done)
            return
        self.lost -= 1
        error = Unavailable("nobody answers")
        if self.written:
            super().commit(step, lambda _: done(error))
        else:
            asyncio.get_running_loop().call_soon(done, error)


@pytest.mark.parametrize("written", [True, False])
async def test_a_session_is_loaded_again_when_a_commit_is_not_answered(written: bool) -> None:
    ran: list[str] = []

    @tool(effect="once")
    async def pay(amount: int) -> str:
        """Pay."""
        ran.append("paid")
        store.lost, store.written = 1, written
        return "paid"

    def model(request: ModelRequest) -> Any:
        return asks(call("pay", amount=1)) if turn(request) == 0 else last(request)

    town = Town(Agent("a", model=model, tools=[pay]))
    store = town.store = Silent(town.clock)
    node = await town.open("node")
    run = await node.send("a", "hello")
    assert await town.result(run) == "paid"
    assert ran == ["paid"]
    assert node.failure is None
    await town.close()


@pytest.mark.parametrize("tries", [0, 3])
async def test_what_a_worker_did_is_not_lost_when_its_node_stops_before_it_is_written(
    tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit was not answered, and maybe the store does not answer for a while after that."""
    ran: list[str] = []

    @tool(effect="once")
    async def pay(amount: int) -> str:
        """Pay."""
        ran.append("paid")
        store.lost, store.written = 1, False
        return "paid"

    def model(request: ModelRequest) -> Any:
        return asks(call("pay", amount=1)) if turn(request) == 0 else last(request)

    town = Town(Agent("a", model=model, tools=[pay]))
    store = town.store = Silent(town.clock)
    node = await town.open("node")
    run = await node.send("a", "hello")
    await town.settle()
    assert node._host._unsaved
    accept, fails = store.accept, [*range(tries)]

    async def later(*entry: Any) -> Receipt:
        if fails:
            fails.pop()
            raise Unavailable("nobody answers")
        return await accept(*entry)

    monkeypatch.setattr(store, "accept", later)
    stopping = asyncio.ensure_future(node.stop())
    await town.pass_time(3)
    await stopping
    del town.nodes["node"]
    loaded = await store.load(run.session)
    assert loaded is not None
    assert [entry.id for entry in loaded.inbox] != []
    other = await town.open("other")
    assert await town.result(await other.run(run.id)) == "paid"
    assert ran == ["paid"]
    await town.close()


async def test_a_call_goes_on_while_its_session_is_lost_and_its_outcome_counts() -> None:
    gate = asyncio.Event()
    ran: list[str] = []

    @tool(effect="once")
    async def pay(amount: int) -> str:
        """Pay."""
        ran.append("paid")
        await gate.wait()
        return "the receipt"

    def model(request: ModelRequest) -> Any:
        return asks(call("pay", amount=1)) if turn(request) == 0 else last(request)

    town = Town(Agent("a", model=model, tools=[pay]))
    node = await town.open("node")
    run = await node.send("a", "hello", session="s")
    await town.settle()
    assert ran == ["paid"]
    town.store._leases[node.owner] = town.clock.now_ms() - 1  # as after a pause beyond the lease
    await town.pass_time(3)
    assert town.telemetry.count("session.claimed") == 2
    gate.set()
    assert await town.result(run) == "the receipt"
    assert ran == ["paid"]
    await town.close()


async def test_a_suspect_session_repeats_nothing_and_takes_what_is_new() -> None:
    ran: list[str] = []

    @tool(effect="idempotent")
    async def book(what: str) -> str:
        """Book."""
        ran.append(what)
        if len(ran) == 1:
            await asyncio.Event().wait()
        return "booked"

    def model(request: ModelRequest) -> Any:
        return asks(call("book", what="a room")) if turn(request) == 0 else "done"

    town = Town(Agent("a", model=model, tools=[book]))
    before = await town.open("before")
    run = await before.send("a", "hello", session="s")
    queued = await before.send("a", "and then", session="s")
    await town.settle()
    await town.vanish("before")
    town.clock.advance(10)
    await town.store.distrust()
    town.clock.advance(10)
    after = await town.open("after")
    await town.pass_time(10)
    assert ran == ["a room"]
    with pytest.raises(RunFailed) as failed:
        await town.result(await after.run(run.id))
    assert failed.value.code == "suspect"
    assert (await queued.row()).status == "cancelled"
    assert await town.result(await after.send("a", "something new", session="s")) == "done"
    await town.close()


async def test_a_timer_set_at_one_node_fires_at_another() -> None:
    def model(request: ModelRequest) -> Any:
        return asks(call("wait", seconds=3)) if turn(request) == 0 else "done"

    town = Town(Agent("a", model=model, tools=[wait]))
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello")
    await town.pass_time(1)
    await town.vanish("there")
    assert await town.result(await here.run(run.id)) == "done"
    await town.close()


async def test_old_and_new_nodes_run_side_by_side_and_what_is_new_stays_with_the_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rolling upgrade: the old version leaves alone what the new one wrote."""
    gate = asyncio.Event()

    async def model(request: ModelRequest) -> str:
        await gate.wait()
        return "done"

    town = Town(Agent("a", model=model))
    old = await town.open("old")
    before = await old.send("a", "hi", session="before")
    await town.settle()
    for module in (host, loader, recovery, node_module, tenancy):
        monkeypatch.setattr(module, "GENERATION", GENERATION + 1)
    new = await town.open("new")
    assert [card.generation for card in new.nodes()] == [GENERATION, GENERATION + 1]
    after = await new.send("a", "hi", session="after")
    await town.settle()
    await town.vanish("new")
    for module in (host, loader, recovery, node_module, tenancy):
        monkeypatch.setattr(module, "GENERATION", GENERATION)
    gate.set()
    assert await town.result(before) == "done"
    await town.pass_time(20)
    assert (await after.row()).status == "running"
    loaded = await town.store.load(after.session)
    assert loaded is not None
    assert loaded.quarantine is None
    for module in (host, loader, recovery, node_module, tenancy):
        monkeypatch.setattr(module, "GENERATION", GENERATION + 1)
    newer = await town.open("newer")
    assert await town.result(await newer.run(after.id)) == "done"
    await town.close()


async def test_what_is_let_go_during_a_scan_is_found_by_another_scan_at_once() -> None:
    gate, asked = asyncio.Event(), asyncio.Event()
    town = Town(Agent("a", model=echo))
    node = await town.open("node")
    await town.settle()
    due = town.store.due

    async def slow(*scan: Any) -> Any:
        found = await due(*scan)
        asked.set()
        await gate.wait()
        return found

    town.store.due = slow  # type: ignore[method-assign]
    scanning = asyncio.ensure_future(node._recovery.run_once())
    await asked.wait()
    node._recovery.nudge(town.clock.now_ms())
    gate.set()
    asked.clear()
    await scanning
    town.clock.advance(1)
    await town.settle()
    assert asked.is_set()
    await town.close()


@pytest.mark.parametrize("alone", [True, False])
async def test_who_waits_is_told_although_the_last_commit_was_not_answered(alone: bool) -> None:
    """It was written, and nobody here was told so."""

    def model(request: ModelRequest) -> Any:
        if turn(request) == 0:
            return asks(call("ask_human", question="well?"))
        store.lost = 1
        return "done"

    town = Town(Agent("a", model=model, tools=[ask_human]))
    store = town.store = Silent(town.clock)
    node = await (town.node() if alone else town.open("node"))
    run = await node.send("a", "hello")
    await town.settle()
    await node.reply(run.id, "fine")
    assert await town.result(run) == "done"
    again = await node.send("a", "hello")
    await town.settle()
    store.lost = 1
    await town.until(asyncio.ensure_future(node.cancel(again.id)))
    assert (await again.row()).status == "cancelled"
    await node.stop()


async def test_a_verdict_comes_although_its_session_could_not_be_claimed_at_first() -> None:
    async def model(request: ModelRequest) -> str:
        await asyncio.Event().wait()
        return "never"

    town = Town(Agent("a", model=model))
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello", session="s")
    await town.settle()
    claim = town.store.claim

    async def fail_once(*_: Any) -> Any:
        town.store.claim = claim  # type: ignore[method-assign]
        raise Unavailable("nobody answers")

    town.store.claim = fail_once  # type: ignore[method-assign]
    await town.until(asyncio.ensure_future(here.cancel(run.id)))
    assert (await run.row()).status == "cancelled"
    await town.close()


async def test_who_commanded_a_session_that_another_node_sets_aside_is_told_so() -> None:
    town = Town(Agent("a", model=asking, tools=[ask_human]), bus=Deaf)
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello", session="s")
    await town.settle()
    replying = asyncio.ensure_future(here.reply(run.id, "fine"))
    await town.settle(5)
    there._host._set_aside(there._host._actors[run.session], "it is broken")
    with pytest.raises(Quarantined):
        await town.until(replying)
    await town.close()


async def test_who_waits_for_a_verdict_is_told_when_his_node_stops() -> None:
    town = Town(Agent("a", model=asking, tools=[ask_human]), bus=Deaf)
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello", session="s")
    await town.settle()
    replying = asyncio.ensure_future(here.reply(run.id, "fine"))
    await town.settle(5)
    await town.until(asyncio.ensure_future(town.nodes.pop("here").stop()))
    with pytest.raises(Refused):
        await town.until(replying)
    await town.close()


async def test_text_does_not_go_back_and_forth_between_two_who_believe_that_they_run_it() -> None:
    """As while a node does not know yet that it was taken over."""
    gate = asyncio.Event()

    async def model(request: ModelRequest) -> str:
        await gate.wait()
        return "done"

    town = Town(Agent("a", model=model))
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello", session="s")
    await town.settle()
    heard: list[str] = []
    leave = there.follow(run.session, lambda run, piece: heard.append(piece))
    assert there._elsewhere is not None
    assert here._elsewhere is not None
    here._elsewhere._is_active = lambda session: True
    there._elsewhere._listens(run.session, here.owner)
    here._elsewhere._listens(run.session, there.owner)
    here._elsewhere.text(run.session, run.id, "piece")
    await town.settle()
    assert heard.count("piece") == 1
    leave()
    gate.set()
    await town.result(run)
    await town.close()


@buses
async def test_who_waits_for_a_run_that_the_store_lost_is_told(bus: type[MemoryCluster]) -> None:
    """As when it was set back to an older copy: nobody would ever end the run."""
    gate = asyncio.Event()

    async def model(request: ModelRequest) -> str:
        await gate.wait()
        return "done"

    town = Town(Agent("a", model=model), bus=bus)
    there, here = await town.open("there"), await town.open("here")
    run = await there.send("a", "hello", session="s")
    await town.settle()
    watching = await here.run(run.id)

    async def follow() -> list[str]:
        return [event.type async for event in watching.events()]

    events, ending = (asyncio.ensure_future(work) for work in (follow(), watching.result()))
    await town.settle()
    await town.vanish("there")
    town.store._sessions.clear()
    town.store._rows.clear()
    for waiting in (ending, events):
        with pytest.raises(NotFound, match="send it again"):
            await town.until(waiting)
    gate.set()
    await town.close()
