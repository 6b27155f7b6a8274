"""Budgets on whole nodes: parked durably, raised anywhere, and never forgotten by who dies."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.api.cost import Prices, price
from perdure.core.budget import Budget, Purse
from perdure.core.errors import InvalidInput, Refused
from perdure.core.messages import ToolRequest, Usage
from perdure.ports.models import ModelReply, ModelRequest
from perdure.runtime.settings import NodeSettings
from perdure.worker import Agent, ask_human, tool
from tests.runtime.world import World, turn

PRICES = Prices({"model": price("3", "15")}, "2026-11-20")
SETTINGS = NodeSettings(linger_ms=100, prices=PRICES)
PLENTY = 1_000_000


def searching(budget: Budget | None, searches: int = 3) -> World:
    """Return a world with an agent that searches so often, one search a step, and answers."""
    here: list[World] = []

    @tool(effect="read")
    async def search(q: str) -> str:
        """Search."""
        here[0].ran["search"] += 1
        return f"nothing about {q}"

    def model(request: ModelRequest) -> ModelReply:
        here[0].ran["asked"] += 1
        usage = Usage(input_tokens=200, output_tokens=50)
        if turn(request) < searches:
            wanted = ToolRequest(f"c{turn(request)}", "search", {"q": "x"})
            return ModelReply(tool_calls=(wanted,), usage=usage)
        return ModelReply(content="done", usage=usage)

    clerk = Agent("clerk", model=model, tools=[search, ask_human], max_tokens=100, budget=budget)
    world = World(clerk, settings=SETTINGS)
    here.append(world)
    return world


async def purse(run: Any) -> Purse:
    """Return the purse in the row of a run."""
    found = (await run.row()).purse
    assert isinstance(found, Purse)
    return found


async def test_a_run_is_parked_and_goes_on_at_the_same_step_when_it_is_raised() -> None:
    world = searching(Budget(calls_max={"search": 1}))
    node = await world.node()
    run = await node.send("clerk", "search")
    await world.settle()
    row = await run.row()
    assert (row.status, row.waiting_for[0]["what"], world.ran["search"]) == ("waiting", "budget", 1)
    await node.raise_budget(run.id, calls={"search": 5}, by="ann")
    await world.settle()
    assert await run.result() == "done"
    assert (world.ran["search"], world.ran["asked"]) == (3, 4)
    assert (await purse(run)).tokens == 4 * 250
    await node.stop()


async def test_what_is_spent_is_known_to_the_millionth_and_never_more_than_there_is() -> None:
    world = searching(Budget(cost_micros_max=20_000))
    node = await world.node()
    run = await node.send("clerk", "search")
    await world.settle()
    assert await run.result() == "done"
    has = await purse(run)
    assert (has.cost_micros, has.reserved, has.doubtful_micros) == (4 * (600 + 750), {}, 0)
    await node.stop()


async def test_a_parked_run_outlives_its_node_and_is_raised_at_another() -> None:
    world = searching(Budget(tokens_max=1))
    node = await world.node()
    run = await node.send("clerk", "search")
    await world.settle()
    assert (await run.row()).status == "waiting"
    await world.crash(node)
    second = await world.node()
    await world.settle()
    assert world.ran["asked"] == 0
    await second.raise_budget(run.id, tokens=PLENTY)
    await world.settle()
    again = await second.run(run.id)
    assert await again.result() == "done"
    assert (await purse(again)).allotted.tokens_max == PLENTY + 1
    await second.stop()


async def test_a_model_that_a_dead_node_had_asked_is_paid_for_twice_in_the_purse() -> None:
    world = searching(Budget(tokens_max=PLENTY), searches=0)
    node = await world.node()
    run = await node.send("clerk", "search")
    while "model_call_intended" not in await world.events(run):
        await world.settle(1)
    await world.crash(node)
    second = await world.node()
    await world.settle()
    again = await second.run(run.id)
    assert await again.result() == "done"
    events = await world.events(again)
    assert events.count("model_call_resent") == 1
    has = await purse(again)
    assert has.doubtful_tokens > 100
    assert has.tokens == has.doubtful_tokens + 250
    await second.stop()


async def test_a_message_may_bring_less_than_its_agent_has() -> None:
    world = searching(Budget(tokens_max=PLENTY, calls_max={"search": 2}))
    node = await world.node()
    run = await node.send("clerk", "x", budget=Budget(calls_max={"search": 9}, tokens_max=5))
    await world.settle()
    allotted = (await purse(run)).allotted
    assert (allotted.tokens_max, allotted.calls_max) == (5, {"search": 2})
    await node.deny_budget(run.id, by="ann", reason="no")
    await world.settle()
    row = await run.row()
    assert (row.status, row.code) == ("failed", "budget_exceeded")
    assert "ann gave no more" in (row.message or "")
    with pytest.raises(Refused, match="is not in progress"):
        await node.raise_budget(run.id, tokens=5)
    await node.stop()


@pytest.mark.parametrize(
    ("budget", "mode", "wrong"),
    [
        (Budget(tokens_max=-1), "queue", "the message: budget.tokens_max is between"),
        (Budget(currency="EUR"), "queue", "currency is 'EUR'"),
        (Budget(calls_max={"serch": 1}), "queue", "'serch', which is no tool .* are: search"),
        (Budget(calls_max={"ask_human": 1}), "queue", "'ask_human', which is no tool"),
        (Budget(), "steer", "joins a run"),
    ],
)
async def test_a_budget_that_cannot_be_kept_is_not_accepted(
    budget: Budget, mode: Any, wrong: str
) -> None:
    world = searching(None)
    node = await world.node()
    with pytest.raises(InvalidInput, match=wrong):
        await node.send("clerk", "x", budget=budget, mode=mode)
    await node.stop()


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"budget": Budget(currency="EUR")}, "agent 'clerk': budget.currency is 'EUR'"),
        ({"budget": Budget(calls_max={"pay": 1})}, "'pay', which is no tool .*: none"),
        ({"budget": {"tokens_max": 5}}, r"budget is Budget\(\.\.\.\)"),
    ],
)
def test_an_agent_with_a_budget_that_cannot_be_kept_is_not_made(given: Any, wrong: str) -> None:
    with pytest.raises(InvalidInput, match=wrong):
        Agent("clerk", model="m", **given)


async def test_amounts_are_checked_before_anybody_is_asked() -> None:
    world = searching(Budget(tokens_max=1))
    node = await world.node()
    run = await node.send("clerk", "x")
    await world.settle()
    with pytest.raises(InvalidInput, match="tokens to be added is between 0 and .*, not -5"):
        await node.raise_budget(run.id, tokens=-5)
    with pytest.raises(Refused, match="has no limit of cost_micros"):
        await node.raise_budget(run.id, cost_micros=5)
    await node.stop()
