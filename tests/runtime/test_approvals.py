"""Approvals on whole nodes: decided anywhere, at any time, and made once whatever dies."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.agent import Reminders
from perdure.core.errors import Refused
from perdure.core.events import type_of
from perdure.core.gate import Terms, Verdict
from perdure.core.ids import digest
from perdure.core.messages import ToolRequest
from perdure.ports.models import ModelReply, ModelRequest
from perdure.runtime.agents import Registered
from perdure.worker import Agent, tool
from tests.core.rules import HOUR_MS, Rules, ask
from tests.runtime.test_many_nodes import Town
from tests.runtime.world import World, last, turn

RULES = Rules(pay=ask())


def clerk(
    world: list[World], shown: list[Any] | None = None, reminders: Reminders | None = None
) -> Agent:
    """Return an agent that pays once and says what came of it."""

    @tool(effect="once")
    async def pay(cents: int) -> str:
        """Pay."""
        world[0].ran[f"pay {cents}"] += 1
        return f"paid {cents}"

    def model(request: ModelRequest) -> ModelReply | str:
        if shown is not None:
            shown.append([one.name for one in request.tools])
        if turn(request):
            return f"done: {last(request)}"
        return ModelReply(tool_calls=(ToolRequest("c", "pay", {"cents": 5}),))

    return Agent("clerk", model=model, tools=[pay], reminders=reminders)


def governed(
    rules: Rules = RULES, shown: list[Any] | None = None, reminders: Reminders | None = None
) -> World:
    """Return a world in which the clerk may not pay without asking."""
    here: list[World] = []
    world = World(clerk(here, shown, reminders))
    here.append(world)
    world.gate = rules
    return world


async def asked(world: World, node: Any) -> Any:
    """Have the clerk ask, and return the run."""
    run = await node.send("clerk", "pay 5")
    await world.settle()
    row = await run.row()
    assert row.status == "waiting"
    assert [wait["what"] for wait in row.waiting_for] == ["approval"]
    return run


async def test_a_call_waits_until_it_is_approved() -> None:
    world = governed()
    node = await world.node()
    run = await asked(world, node)
    assert not world.ran
    await node.decide(run.id, "approve", call="1.1.t0", by="ann")
    assert await run.result() == "done: paid 5"
    assert world.ran == {"pay 5": 1}
    assert await world.store.blob(digest(b"rules")) is None, "its version is its address, and p1"
    assert await world.store.blob("p1") == b"rules"
    await node.stop()


async def test_who_comes_late_is_told_who_decided() -> None:
    world = governed()
    node = await world.node()
    run = await asked(world, node)
    await node.decide(run.id, "deny", call="1.1.t0", by="ann", reason="no")
    assert await run.result() == "done: This call was not made. ann denied it: no"
    with pytest.raises(Refused, match="denied by ann at") as late:
        await node.decide(run.id, "approve", call="1.1.t0", by="bob")
    assert late.value.code == "already_decided"
    assert not world.ran
    await node.stop()


async def test_nobody_decides_and_time_does() -> None:
    world = governed(Rules(pay=ask(expires_ms=5_000)))
    node = await world.node()
    run = await asked(world, node)
    await world.pass_time(6)
    assert "Nobody approved it in time" in await run.result()
    await node.stop()


async def test_reminders_and_escalation_outlive_the_node() -> None:
    """Their times are in the store, and a session that waits is only rows."""
    later = Verdict("ask", "large", "much", Terms(1, ("finance",), HOUR_MS, 90_000, ("board",)))
    world = governed(Rules(pay=later), reminders=Reminders(after_ms=60_000, times=2))
    node = await world.node()
    run = await asked(world, node)
    await world.crash(node)
    node = await world.node()
    await world.pass_time(70)
    await world.pass_time(30)
    await world.crash(node)
    await world.pass_time(40)
    node = await world.node()
    await world.pass_time(100)
    here = await node.run(run.id)
    events = node.read((await here.row()).session, 5)
    told = [type_of(one.event) async for one in events]
    assert told == ["people_reminded", "approval_reassigned", "people_reminded"]
    [wait] = (await here.row()).waiting_for
    assert (wait["reminded"], wait["roles"]) == (2, ("board",))
    await node.decide(run.id, "approve", call="1.1.t0", by="bob", held=("board",))
    assert await here.result() == "done: paid 5"
    await node.stop()


@pytest.mark.parametrize("before", ["the decision", "the call"])
async def test_a_node_dies_on_the_way(before: str) -> None:
    """What was decided holds, and the call is made once."""
    world = governed()
    node = await world.node()
    run = await asked(world, node)
    if before == "the call":
        await node.decide(run.id, "approve", call="1.1.t0", by="ann")
    await world.crash(node)
    node = await world.node()
    if before == "the decision":
        await node.decide(run.id, "approve", call="1.1.t0", by="ann")
    await world.pass_time(20)
    assert (await (await node.run(run.id)).row()).status in ("completed", "waiting")
    assert world.ran["pay 5"] <= 1
    await node.stop()


async def test_any_node_takes_a_decision() -> None:
    here: list[World] = []
    town = Town(clerk(here))
    here.append(town)
    town.gate = RULES
    owner, other = await town.open("owner"), await town.open("other")
    run = await owner.send("clerk", "pay 5")
    await town.pass_time(1)
    await other.decide(run.id, "approve", call="1.1.t0", by="ann")
    assert await town.result(run) == "done: paid 5"
    assert town.ran == {"pay 5": 1}
    await town.close()


async def test_a_changed_policy_holds_for_the_next_intent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a call that was asked about under the one before."""
    world = governed()
    node = await world.node()
    run = await asked(world, node)
    closed = Rules("p2", pay=Verdict("deny", "closed", "the till is closed"))
    monkeypatch.setattr(Registered, "gate", lambda self, tenant: closed)
    with pytest.raises(Refused, match="the policy changed"):
        await node.decide(run.id, "approve", call="1.1.t0", by="ann")
    assert "the till is closed" in await run.result()
    assert not world.ran
    await node.stop()


async def test_a_gate_that_fails_shows_nothing_and_denies() -> None:
    class Broken(Rules):
        def judge(self, asked: Any) -> Verdict:
            raise ZeroDivisionError("a rule divides by zero")

        def offers(self, tenant: str, agent: Any, tool: Any) -> bool:
            raise ZeroDivisionError("a rule divides by zero")

    shown: list[Any] = []
    world = governed(Broken(), shown)
    node = await world.node()
    run = await node.send("clerk", "pay 5")
    assert "divides by zero" in await run.result()
    assert shown == [[], []]
    assert world.telemetry.count("gate.failed") == 2
    await node.stop()


async def test_a_tool_that_would_be_denied_is_not_shown() -> None:
    class Hidden(Rules):
        def offers(self, tenant: str, agent: Any, tool: Any) -> bool:
            return tool.name != "pay"

    shown: list[Any] = []
    world = governed(Hidden(pay=Verdict("deny", "closed", "no")), shown)
    node = await world.node()
    run = await node.send("clerk", "pay 5")
    assert "'closed' denies it" in await run.result()
    assert shown == [[], []]
    await node.stop()
