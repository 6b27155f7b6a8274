"""What a worker tells of its agents can be read back exactly."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.api.decoding import decode_fields
from perdure.api.definition import agent_spec
from perdure.api.shapes import AgentCreate
from perdure.core.agent import AgentSpec, ContextPolicy, Limits
from perdure.worker import Agent, ask_human, tool
from perdure.worker.offers import agent_body, agent_offers, tool_offers


@tool(effect="once", probe=lambda key: True, timeout=7, capabilities=["money"], isolated=False)
async def pay(amount: int) -> None:
    """Pay."""


@tool(effect="read")
async def look() -> None:
    """Look."""


AGENTS = [
    Agent("plain", model="m"),
    Agent("blank", model="m", instructions=" \n"),
    Agent(
        "full",
        model="anthropic:m",
        instructions="Help.",
        tools=[pay, look, ask_human],
        limits=Limits(steps_max=9, tokens_max=5, wall_ms_max=6),
        context=ContextPolicy("window", window_messages=7),
        on_failure="stop",
        resume="lazy",
        max_tokens=8,
    ),
    Agent("folds", model="m", context=ContextPolicy("compact", 40, 1_000, 5)),
]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_a_definition_arrives_whole(agent: Agent) -> None:
    """The server takes it, and finds every part of it; Norns' words say what they can."""
    body = msgspec.json.decode(msgspec.json.encode(agent_body(agent.spec)))
    taken = decode_fields({name: each for name, each in body.items() if each}, AgentCreate)
    config: Any = taken.model_config
    assert msgspec.convert(config["perdure"], AgentSpec) == agent.spec
    read = agent_spec(
        name=taken.name,
        model=taken.model,
        model_config=config,
        max_steps=taken.max_steps,
        tools=agent.spec.tools,
    )
    spec = agent.spec
    assert (read.on_failure, read.max_tokens) == (spec.on_failure, spec.max_tokens)
    assert read.limits.steps_max == spec.limits.steps_max
    assert read.context.strategy == spec.context.strategy
    assert {each.name for each in read.tools} >= {each.name for each in spec.tools}


def test_tools_are_offered_once() -> None:
    """Of all agents together, with what they promise; the built-in ones are not a worker's."""
    specs = [AGENTS[2].spec, Agent("more", model="m", tools=[look]).spec]
    assert [(each.name, each.effect, each.side_effect) for each in tool_offers(specs)] == [
        ("pay", "once", True),
        ("look", "read", False),
    ]
    assert [(each.name, each.tools) for each in agent_offers(specs)] == [
        ("full", ("pay", "look")),
        ("more", ("look",)),
    ]
