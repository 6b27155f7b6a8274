"""Calls that cross nodes: a session here, its worker there, and anybody may die in between."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, ClassVar

import pytest

from perdure.adapters.cluster.memory import Hub, MemoryCluster
from perdure.core.agent import AgentSpec, define
from perdure.core.errors import Broken, Fenced, StoreError, Unavailable
from perdure.ports.cluster import NodeCard
from perdure.ports.session_store import Claimed, CommitDone, Receipt, StepCommit
from perdure.runtime.agents import Registered
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.server.exchange import MISSING_MS, STOP_MS, Exchange
from perdure.server.pool import RETURN_ONCE_MS, Pool
from perdure.wire import table as t
from perdure.wire.registration import FEATURES
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.runtime.test_many_nodes import Deaf
from tests.runtime.world import World
from tests.server.peers import Does, Peer, registration
from tests.server.test_pool_in_node import answer, model_only, spec

DONE = "it says: charged 5"
NATIVE = tuple(FEATURES - {"credit", "message_cache"})


class Lossy(MemoryCluster):
    """A bus that loses half of what is sent, and repeats and delays some of the rest."""

    chance = random.Random(7)

    def send(self, node: str | None, message: bytes) -> None:
        """Send it never, once or twice."""
        fate = self.chance.random()
        if fate < 0.5:
            return
        super().send(node, message)
        if fate > 0.8:
            asyncio.get_running_loop().call_later(0.002, super().send, node, message)


class Repeating(MemoryCluster):
    """A bus on which everything is said twice."""

    def send(self, node: str | None, message: bytes) -> None:
        """Say it twice."""
        super().send(node, message)
        super().send(node, message)


class Office:
    """A node of a town, its pool, and its exchange."""

    def __init__(self, town: Town, name: str) -> None:
        self.town = town
        self.name = name
        self.cluster = town.bus(town.hub)
        self.pool = Pool(town.clock, town.telemetry)
        self.node = Node(
            town.store,
            [self.pool],
            Registered(town.definitions),
            town.clock,
            town.telemetry,
            settings=town.settings,
            cluster=self.cluster,
            card=lambda: NodeCard("", name),
        )
        self.pool.may_start, self.node.on_renewed_late = self.node.may_start, self.pool.serve_all
        self.exchange = Exchange(
            self.node.owner,
            self.pool,
            self.node.bus,
            town.store,
            self.node.nodes,
            self.node.epoch_of,
            town.clock,
            town.telemetry,
        )

    def worker(self, worker_id: str = "w1", does: Does = answer, **more: Any) -> Peer:
        """Let a worker of ours join that has everything; it asks before it acts."""
        what = registration(
            worker_id, "charge", features=NATIVE, agents={"bot": ("charge",)}, **more
        )
        return Careful(self.pool, what, does=does)


class Careful(Peer):
    """A worker that asks to begin its `once` calls, acts when it may, and counts that."""

    acted: ClassVar[Counter[str]] = Counter()

    def _hear(self, frame: str) -> None:
        for thing in self.side.feed(frame):
            if isinstance(thing, str):
                self.say(thing)
                continue
            self.heard.append(thing)
            if isinstance(thing, ToolTask) and thing.perdure.effect == "once":  # type: ignore[union-attr]
                self.say(self.side.begin(thing.task_id))
            elif isinstance(thing, ToolTask | LlmTask):
                self._bring(thing)
            elif isinstance(thing, t.Proceed):
                self.acted[thing.task_id] += 1
                self._bring(next(one for one in self.tasks if one.task_id == thing.task_id))

    def _bring(self, task: LlmTask | ToolTask) -> None:
        result: Result | None = self._does(task)
        if result is not None:
            self.say(self.side.result(result))


class Hasty(Careful):
    """A worker that loses its connection as soon as it has asked to begin."""

    def _hear(self, frame: str) -> None:
        super()._hear(frame)
        if any(isinstance(task, ToolTask) for task in self.tasks):
            self.lose()


class Town(World):
    """Several nodes on one store, whose workers are wherever a test puts them."""

    def __init__(self, *specs: AgentSpec, bus: type[MemoryCluster] = MemoryCluster) -> None:
        super().__init__(settings=NodeSettings(linger_ms=100, scan_interval_ms=1_000))
        self.definitions = {one.name: define(one) for one in specs or (spec(),)}
        self.hub = Hub(self.clock.now_ms)
        self.bus = bus
        self.offices: dict[str, Office] = {}
        Careful.acted = Counter()
        Lossy.chance = random.Random(7)

    async def open(self, name: str) -> Office:
        """Open an office."""
        office = self.offices[name] = Office(self, name)
        await office.node.start()
        office.exchange.start()
        return office

    async def vanish(self, office: Office) -> None:
        """Let a node die without a word; its workers lose their connections."""
        del self.offices[office.name]
        node = office.node
        assert node._presence is not None
        assert node._elsewhere is not None
        for part in (node._heartbeat, node._presence):
            part._stopped = True
            assert part._timer is not None
            part._timer.cancel()
        self.hub.members.pop(node.owner, None)
        office.cluster._card = None
        await node._elsewhere.stop()
        await node._recovery.stop()
        office.exchange._stopped = True
        for timer in (office.exchange._sync, office.exchange._seeking):
            if timer is not None:
                timer.cancel()
        for task in tuple(office.exchange._tasks):
            task.cancel()
        node._host.draining = True
        node._host.lose_all(Broken("it is dead"))
        office.pool.hear = lambda member, fact: None  # type: ignore[method-assign]
        office.exchange._reported = lambda *report: None  # type: ignore[method-assign]

    async def close(self) -> None:
        """Stop every node."""
        for office in self.offices.values():
            await office.exchange.stop()
            await office.node.stop()

    async def result(self, run: Any, seconds: float = 300) -> Any:
        """Let time pass until a run has ended, and return its answer."""
        ending = asyncio.ensure_future(run.result())
        for _ in range(int(seconds * 20)):
            await self.settle(30)
            if ending.done():
                return ending.result()
            self.clock.advance(50)
        raise AssertionError(f"not done within {seconds} s: {await run.row()}")

    async def until(self, seen: Any, seconds: float = 300) -> None:
        """Let time pass until something is seen."""
        for _ in range(int(seconds * 20)):
            await self.settle(30)
            if seen():
                return
            self.clock.advance(50)
        raise AssertionError(f"not seen within {seconds} s")


buses = pytest.mark.parametrize("bus", [MemoryCluster, Lossy])
effects = pytest.mark.parametrize("effect", ["read", "idempotent", "once"])


@buses
@effects
async def test_calls_go_to_the_node_that_has_a_worker(
    bus: type[MemoryCluster], effect: str
) -> None:
    town = Town(spec(effect=effect), bus=bus)
    here, there = await town.open("here"), await town.open("there")
    there.worker()
    run = await here.node.send("bot", "go")
    assert await town.result(run) == DONE
    assert set(Careful.acted.values()) == ({1} if effect == "once" else set())
    await town.close()


@buses
async def test_a_call_waits_for_the_first_worker_that_comes_to_any_node(
    bus: type[MemoryCluster],
) -> None:
    town = Town(bus=bus)
    here, there = await town.open("here"), await town.open("there")
    run = await here.node.send("bot", "go")
    await town.pass_time(5)
    assert (await run.row()).status == "running"
    there.worker()
    assert await town.result(run) == DONE
    await town.close()


async def test_what_a_model_writes_at_another_node_is_heard_where_its_session_runs() -> None:
    town = Town()
    here, there = await town.open("here"), await town.open("there")
    heard: list[str] = []

    def does(task: LlmTask | ToolTask) -> Result | None:
        if isinstance(task, LlmTask):
            peer.say(*peer.side.text({task.task_id: "piece"}))
        return answer(task)

    peer = there.worker(does=does)
    run = await here.node.send("bot", "go")
    leave = here.node.follow(run.session, lambda run, piece: heard.append(piece))
    assert await town.result(run) == DONE
    assert "piece" in heard
    leave()
    await town.close()


@buses
@effects
async def test_a_result_counts_although_the_node_that_lent_the_call_is_dead(
    bus: type[MemoryCluster], effect: str
) -> None:
    town = Town(spec(effect=effect), bus=bus)
    here, there = await town.open("here"), await town.open("there")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: any(isinstance(task, ToolTask) for task in slow.tasks))
    if effect == "once":
        await town.until(lambda: Careful.acted)
    await town.vanish(here)
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    slow.say(slow.side.result(answer(task)))
    slow._does = answer
    assert await town.result(await there.node.run(run.id)) == DONE
    assert max(Careful.acted.values(), default=0) <= 1
    await town.close()


@buses
async def test_a_call_that_began_is_taken_up_where_its_worker_is_and_runs_once(
    bus: type[MemoryCluster],
) -> None:
    """Its lender dies after the begin is durable, whether or not the word to go on arrived."""
    town = Town(spec(effect="once"), bus=bus)
    here, there = await town.open("here"), await town.open("there")
    third = await town.open("third")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")

    async def begun() -> bool:
        events = [item.type async for item in third.node.read(run.session, 0)]
        return "tool_call_begun" in events

    for _ in range(1_000):
        await town.settle(3)
        if await begun():
            break
        town.clock.advance(20)
    await town.vanish(here)
    await town.until(lambda: Careful.acted)
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    slow._does = answer
    slow.say(slow.side.result(answer(task)))
    assert await town.result(await third.node.run(run.id)) == DONE
    assert set(Careful.acted.values()) == {1}
    await town.close()


@buses
@pytest.mark.parametrize("effect", ["read", "idempotent"])
async def test_a_call_is_lent_again_when_the_borrower_is_dead(
    bus: type[MemoryCluster], effect: str
) -> None:
    town = Town(spec(effect=effect), bus=bus)
    here, there = await town.open("here"), await town.open("there")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: any(isinstance(task, ToolTask) for task in slow.tasks))
    await town.vanish(there)
    third = await town.open("third")
    third.worker("w3")
    assert await town.result(run, MISSING_MS / 1000 + 180) == DONE
    await town.close()


@buses
async def test_a_once_call_whose_worker_comes_back_elsewhere_is_not_in_doubt(
    bus: type[MemoryCluster],
) -> None:
    town = Town(spec(effect="once"), bus=bus)
    here, there = await town.open("here"), await town.open("there")
    third = await town.open("third")
    before = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: Careful.acted)
    (task,) = [task for task in before.tasks if isinstance(task, ToolTask)]
    await town.vanish(there)
    after = third.worker(does=answer)
    await town.settle()
    after.holds(task.task_id)
    await town.pass_time(2)
    after.say(after.side.result(answer(task)))
    assert await town.result(run, 60) == DONE
    assert set(Careful.acted.values()) == {1}
    await town.close()


async def test_a_once_call_is_unknown_when_borrower_and_worker_are_gone() -> None:
    town = Town(spec(effect="once", on_unknown="ask"))
    here, there = await town.open("here"), await town.open("there")
    there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: Careful.acted)
    await town.vanish(there)
    here.worker("w2")
    await town.pass_time((MISSING_MS + RETURN_ONCE_MS) / 1000 + 10)
    row = await run.row()
    assert [wait["what"] for wait in row.waiting_for] == ["decision"]
    assert sum(Careful.acted.values()) == 1
    await town.close()


async def test_a_run_that_is_cancelled_stops_its_call_at_the_other_node() -> None:
    town = Town()
    here, there = await town.open("here"), await town.open("there")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: any(isinstance(task, ToolTask) for task in slow.tasks))
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    await here.node.cancel(run.id)
    await town.until(lambda: t.Cancel(task.task_id) in slow.heard)
    assert there.pool.queues.held == {}
    await town.close()


async def test_a_nodes_own_workers_are_asked_first() -> None:
    town = Town()
    here, there = await town.open("here"), await town.open("there")
    own, other = here.worker("own"), there.worker("other")
    runs = [await here.node.send("bot", "go") for _ in range(10)]
    for run in runs:
        assert await town.result(run) == DONE
    assert len(own.tasks) == 30
    assert other.tasks == []
    await town.close()


async def test_many_calls_are_shared_by_the_nodes_that_have_room() -> None:
    town = Town()
    here = await town.open("here")
    offices = [await town.open(name) for name in ("one", "two")]
    peers = [office.worker(office.name, concurrency=4) for office in offices]
    runs = [await here.node.send("bot", "go") for _ in range(40)]
    for run in runs:
        assert await town.result(run) == DONE
    assert sum(len(peer.tasks) for peer in peers) == 120
    assert min(len(peer.tasks) for peer in peers) > 10
    await town.close()


@buses
async def test_a_node_that_lost_a_session_brings_what_its_worker_did_to_the_new_owner(
    bus: type[MemoryCluster],
) -> None:
    """It was stopped for longer than its lease, and its worker went on."""
    town = Town(spec(effect="once"), bus=bus)
    here, there = await town.open("here"), await town.open("there")
    slow = here.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: Careful.acted)
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    town.store._leases[here.node.owner] = 0
    claimed = await town.store.claim(run.session, there.node.owner, "taken over")
    assert isinstance(claimed, Claimed)
    there.node._host.activate(run.session)
    await town.pass_time(1)
    slow._does = answer
    slow.say(slow.side.result(answer(task)))
    assert await town.result(await there.node.run(run.id)) == DONE
    assert set(Careful.acted.values()) == {1}
    await town.pass_time(3)
    await town.close()


async def test_who_asks_in_the_place_of_one_who_is_gone_may_act() -> None:
    town = Town(spec(effect="once"))
    here = await town.open("here")
    what = registration("hasty", "charge", features=NATIVE, agents={"bot": ("charge",)})
    hasty = Hasty(here.pool, what, does=model_only)
    here.worker("w2", llm=False)
    run = await here.node.send("bot", "go")
    await town.until(lambda: hasty.member is not None and hasty.member.gone)
    here.worker("w3")
    assert await town.result(run) == DONE
    assert set(Careful.acted.values()) == {1}
    await town.close()


async def test_who_ran_a_session_before_cannot_stop_what_was_lent_since() -> None:
    """It gives up what it had lent long after another node took the session over."""
    town = Town(spec(effect="once", timeout_ms=600_000))
    here, there = await town.open("here"), await town.open("there")
    third = await town.open("third")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: Careful.acted)
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    town.store._leases[here.node.owner] = 0
    claimed = await town.store.claim(run.session, third.node.owner, "taken over")
    assert isinstance(claimed, Claimed)
    third.node._host.activate(run.session)
    for _ in range(10):
        await town.pass_time(8)
    assert t.Cancel(task.task_id) not in slow.heard
    slow._does = answer
    slow.say(slow.side.result(answer(task)))
    assert await town.result(await third.node.run(run.id)) == DONE
    assert set(Careful.acted.values()) == {1}
    await town.close()


async def test_what_a_borrower_has_no_room_for_goes_to_who_has() -> None:
    """It said twice that it has room for one, and got two."""
    town = Town(bus=Repeating)
    here, there = await town.open("here"), await town.open("there")
    third = await town.open("third")
    runs = [await here.node.send("bot", "go") for _ in range(2)]
    slow = there.worker(does=lambda task: None, concurrency=1)
    await town.until(lambda: slow.tasks)
    await town.pass_time(3)
    third.worker("w3")
    await town.pass_time(5)
    assert sorted([(await run.row()).status for run in runs]) == ["completed", "running"]
    slow._does = answer
    slow.say(slow.side.result(answer(slow.tasks[0])))
    for run in runs:
        assert await town.result(run) == DONE
    await town.close()


async def test_a_borrower_that_takes_the_session_over_has_not_borrowed_its_call_any_more() -> None:
    town = Town(spec(effect="once"))
    here, there = await town.open("here"), await town.open("there")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: Careful.acted)
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    await town.vanish(here)
    await town.pass_time(12)
    assert t.Cancel(task.task_id) not in slow.heard
    assert there.exchange._borrowed == {}
    slow._does = answer
    slow.say(slow.side.result(answer(task)))
    assert await town.result(await there.node.run(run.id)) == DONE
    await town.close()


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_who_ran_a_session_before_cannot_take_its_call_from_who_runs_it(effect: str) -> None:
    """It had lent the call to the node that has the session now, and asks who has it."""
    town = Town(spec(effect=effect, timeout_ms=600_000))
    here, there = await town.open("here"), await town.open("there")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: any(isinstance(task, ToolTask) for task in slow.tasks))
    if effect == "once":
        await town.until(lambda: Careful.acted)
    await taken_over(town, run, there, here)
    cancels = sum(isinstance(said, t.Cancel) for said in slow.heard)
    for _ in range(10):
        await town.pass_time(8)
    assert sum(isinstance(said, t.Cancel) for said in slow.heard) == cancels
    (*_, task) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    slow._does = answer
    slow.say(slow.side.result(answer(task)))
    assert await town.result(await there.node.run(run.id)) == DONE
    await town.close()


@pytest.mark.parametrize("what", [LlmTask, ToolTask])
@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_a_loss_where_a_session_was_run_before_is_not_believed(
    effect: str, what: type[Any]
) -> None:
    """Its new owner has the call executed by a worker of its own."""
    town = Town(spec(effect=effect, timeout_ms=600_000), bus=Deaf)
    here, there = await town.open("here"), await town.open("there")

    def slow(task: LlmTask | ToolTask) -> Result | None:
        return None if isinstance(task, what) else answer(task)

    def at_it(peer: Peer) -> bool:
        return any(isinstance(task, what) for task in peer.tasks)

    before, after = here.worker("w1", slow), there.worker("w2", slow)
    if effect == "once" and what is ToolTask:
        idle = registration("w1", "charge", features=NATIVE, agents={"bot": ("charge",)})
        before = Peer(here.pool, idle, does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: at_it(before))
    await taken_over(town, run, there, here)
    await town.until(lambda: at_it(after))
    await town.pass_time(3)
    before.say(before.side.leave())
    await town.pass_time(3)
    (task,) = [task for task in after.tasks if isinstance(task, what)]
    after._does = answer
    after.say(after.side.result(answer(task)))
    assert await town.result(await there.node.run(run.id)) == DONE
    events = [item.type async for item in there.node.read(run.session, 0)]
    assert not {"model_call_failed", "tool_call_lost"} & {*events}
    await town.close()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("lends", [False, True])
async def test_what_waits_is_given_to_nobody_while_the_lease_is_in_doubt(
    late: bool, lends: bool
) -> None:
    """The store does not answer a node; if that takes too long another one has what waits there."""
    town = Town(bus=MemoryCluster if lends else Deaf)
    here, there = await town.open("here"), await town.open("there")
    full = here.worker("w1", lambda task: None, concurrency=1)
    first, second = [await here.node.send("bot", "go") for _ in range(2)]
    await town.until(lambda: full.tasks)
    renew, away = town.store.renew, here.node.owner

    async def unanswered(owner: str, lease_ms: int) -> bool:
        if owner == away:
            raise Unavailable("nobody answers")
        return await renew(owner, lease_ms)

    town.store.renew = unanswered  # type: ignore[method-assign]
    await town.until(lambda: not here.node.may_start())
    free = there.worker("w2")
    full.say(full.side.result(answer(full.tasks[0])))
    await town.settle()
    assert [len(full.tasks), len(free.tasks)] == [1, 0]
    if late:
        await taken_over(town, second, there, here)
        assert await town.result(await there.node.run(second.id)) == DONE
    full._does, away = answer, ""
    for run in first, second:
        assert await town.result(await there.node.run(run.id)) == DONE
    ended = [task.run_id for task in full.tasks + free.tasks if task.run_id == second.id]
    assert len(ended) == 3
    assert not late or second.id not in {task.run_id for task in full.tasks}
    await town.close()


async def taken_over(town: Town, run: Any, office: Office, lost: Office) -> None:
    """Let a node claim a session whose owner does not know yet that its lease ran out."""
    town.store._leases[lost.node.owner] = 0
    claimed = await town.store.claim(run.session, office.node.owner, "taken over")
    assert isinstance(claimed, Claimed)
    office.node._host.activate(run.session)
    await town.settle()


@pytest.mark.parametrize("first", [Fenced, Unavailable])
async def test_a_result_that_could_not_be_written_is_brought_to_the_next_owner(
    first: type[StoreError],
) -> None:
    """The store does not answer, and when it does again another node has the session."""
    town = Town(spec(effect="once"))
    here, there = await town.open("here"), await town.open("there")
    slow = here.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: Careful.acted)
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    await taken_over(town, run, there, here)
    commit, accept, fails = town.store.commit, town.store.accept, [1, 2, 3]

    def no_commit(step: StepCommit, done: CommitDone) -> None:
        town.store.commit = commit  # type: ignore[method-assign]
        asyncio.get_running_loop().call_soon(done, first("it was not written"))

    async def later(*entry: Any) -> Receipt:
        if fails:
            fails.pop()
            raise Unavailable("nobody answers")
        return await accept(*entry)

    town.store.commit, town.store.accept = no_commit, later  # type: ignore[method-assign]
    slow._does = answer
    slow.say(slow.side.result(answer(task)))
    assert await town.result(await there.node.run(run.id)) == DONE
    assert fails == []
    await town.close()


async def test_a_borrower_that_stops_brings_what_was_reported_although_that_takes_a_while() -> None:
    """The store does not answer it until the end of its patience."""
    town = Town(spec(effect="once"))
    here, there = await town.open("here"), await town.open("there")
    slow = there.worker(does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: Careful.acted)
    (task,) = [task for task in slow.tasks if isinstance(task, ToolTask)]
    accept, answers = town.store.accept, asyncio.Event()

    async def later(*entry: Any) -> Receipt:
        await answers.wait()
        return await accept(*entry)

    town.store.accept = later  # type: ignore[method-assign]
    slow._does = answer
    slow.say(slow.side.result(answer(task)))
    stopping = asyncio.ensure_future(there.exchange.stop())
    await town.pass_time(STOP_MS / 1000 - 1)
    answers.set()
    await stopping
    await there.node.stop()
    del town.offices["there"]
    here.worker("w2")
    assert await town.result(run) == DONE
    assert set(Careful.acted.values()) == {1}
    await town.close()


async def test_nobody_begins_for_a_worker_that_was_told_to_stop() -> None:
    """It asked when its session was another node's already: nothing of that is brought there."""
    town = Town(spec(effect="once"))
    here, there = await town.open("here"), await town.open("there")
    what = registration("w1", "charge", features=NATIVE, agents={"bot": ("charge",)})
    idle = Peer(here.pool, what, does=model_only)
    run = await here.node.send("bot", "go")
    await town.until(lambda: any(isinstance(task, ToolTask) for task in idle.tasks))
    (task,) = [task for task in idle.tasks if isinstance(task, ToolTask)]
    await taken_over(town, run, there, here)
    idle.say(idle.side.begin(task.task_id))
    await town.pass_time(3)
    idle.say(idle.side.leave())
    there.worker("w2")
    assert await town.result(await there.node.run(run.id)) == DONE
    assert set(Careful.acted.values()) == {1}
    await town.close()
