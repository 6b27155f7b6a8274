"""The whole way over real HTTP: a bad provider, a real worker, and effects that happen once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.adapters.models import DirectModel, asks, call, says
from perdure.core.errors import RunFailed
from perdure.testing.stub_provider import (
    StubProvider,
    cut,
    hang,
    huge_arguments,
    loose_arguments,
    repeated_ids,
    status,
)
from perdure.worker import Agent, tool
from tests.runtime.world import World

FORMATS = ["anthropic:claude-sonnet-5", "openai:gpt-5"]
WANTS = asks(call("pay", cents=5), text="I pay.")


def model_at(stub: StubProvider, name: str) -> DirectModel:
    """Return a model that asks the stub."""
    url = stub.openai_url if name.startswith("openai") else stub.anthropic_url
    return DirectModel(name, base_url=url, api_key="any", read_timeout_s=0.3)


class Payments:
    """A tool that pays, and what it paid."""

    def __init__(self) -> None:
        self.paid: list[int] = []

    def agent(self, model: Any) -> Agent:
        """Return an agent that can pay."""

        @tool(effect="once")
        async def pay(cents: int) -> str:
            """Pay."""
            self.paid.append(cents)
            return f"paid {cents}"

        return Agent("a", model=model, tools=[pay])


async def run_to_its_end(world: World) -> tuple[Any, list[str]]:
    """Send a message and let time pass until the run has ended; return its end and its events."""
    node = await world.node()
    run = await node.send("a", "Pay 5 cents.", session="s")
    ending = asyncio.ensure_future(run.ended())
    for _ in range(200):
        done, _pending = await asyncio.wait([ending], timeout=0.05)
        if done:
            break
        world.clock.advance(1_000)
    ended = await asyncio.wait_for(ending, 5)
    events = await world.events(run)
    await node.stop()
    await world.agents[0].model.aclose()
    return ended, events


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("at_byte", [0, 40, 200, 400])
@pytest.mark.parametrize("cleanly", [True, False])
async def test_nothing_is_dispatched_from_a_reply_that_was_cut(
    name: str, at_byte: int, cleanly: bool
) -> None:
    payments = Payments()
    with StubProvider(cut(at_byte, WANTS, cleanly=cleanly), WANTS, says("Done.")) as stub:
        world = World(payments.agent(model_at(stub, name)))
        ended, events = await run_to_its_end(world)
        assert (ended.row.status, ended.content) == ("completed", "Done.")
        assert payments.paid == [5]
        assert events.count("retry_scheduled") == len(stub.requests) - 2 == 1


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "trouble", [status(429, retry_after=2), status(529), status(500), hang(100, WANTS), hang()]
)
async def test_a_bad_moment_of_the_provider_is_waited_out(name: str, trouble: Any) -> None:
    payments = Payments()
    with StubProvider(trouble, WANTS, trouble, says("Done.")) as stub:
        ended, events = await run_to_its_end(World(payments.agent(model_at(stub, name))))
        assert (ended.row.status, ended.content) == ("completed", "Done.")
        assert payments.paid == [5]
        assert events.count("retry_scheduled") == 2
        assert len(stub.requests) == 4


@pytest.mark.parametrize("name", FORMATS)
async def test_two_calls_with_one_id_and_arguments_that_are_no_json_are_answered(name: str) -> None:
    payments = Payments()
    script = (repeated_ids("pay"), loose_arguments(name="pay"), says("Enough."))
    with StubProvider(*script) as stub:
        ended, events = await run_to_its_end(World(payments.agent(model_at(stub, name))))
        assert ended.content == "Enough."
        assert payments.paid == []
        assert events.count("tool_call_denied") == 2
        assert events.count("tool_call_failed") == 1


@pytest.mark.parametrize("name", FORMATS)
async def test_ten_megabytes_of_arguments_fail_the_run_by_name(name: str) -> None:
    payments = Payments()
    with StubProvider(huge_arguments(10_000_000, "pay")) as stub:
        world = World(payments.agent(model_at(stub, name)))
        node = await world.node()
        run = await node.send("a", "go")
        with pytest.raises(RunFailed, match="reply_too_large"):
            await asyncio.wait_for(run.result(), 60)
        assert payments.paid == []
        await node.stop()
        await world.agents[0].model.aclose()
