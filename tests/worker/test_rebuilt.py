"""An agent is rebuilt from its template and the code here, or it is said what is missing."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from perdure import (
    Agent,
    ContextPolicy,
    InvalidInput,
    Limits,
    Reminders,
    Tool,
    ask_human,
    tool,
    wait,
)
from perdure.core.agent import AgentSpec, Subagents, ToolSpec
from perdure.core.budget import Budget
from perdure.core.template import template
from perdure.worker.schema import Parameters
from tests.templates import SPECS

LOCAL = {"self"}
"""What an agent is made of that is no part of its definition. `model` and `tools` are named."""


def work() -> str:
    """Stand for the function of any tool."""
    return "done"


def probe(key: str) -> None:
    """Stand for any probe."""


def of(spec: ToolSpec) -> Tool[..., Any]:
    """Return a tool with a function from here."""
    return Tool(work, spec, Parameters(work, spec.name, {}), probe if spec.probe else None)


def play(request: Any) -> str:
    """Stand for a model."""
    return "Hello."


@settings(max_examples=50, deadline=None)
@given(SPECS)
def test_an_agent_is_rebuilt_in_every_field(spec: AgentSpec) -> None:
    """From data and functions; other functions may be there as well."""
    tools = [of(each) for each in spec.tools]
    extra = of(ToolSpec("not-asked-for", "", {}))
    rebuilt = Agent.rebuilt(template(spec), tools=[*tools, extra])
    assert rebuilt.spec == spec
    assert rebuilt.definition.blobs == {rebuilt.definition.digest: template(spec)}
    assert rebuilt.tools == tuple(tools)
    assert Agent.rebuilt(rebuilt.spec, tools=tools).spec == spec
    assert rebuilt.with_model(spec.model).spec == spec


def test_what_code_can_say_is_in_the_definition() -> None:
    """Every parameter of `Agent` and of `tool` changes something in it."""
    plain = {"model": "openai:gpt-5"}
    said: dict[str, Any] = {
        "name": "another",
        "model": "openai:gpt-6",
        "instructions": "Help.",
        "tools": [work],
        "limits": Limits(steps_max=3),
        "context": ContextPolicy("window"),
        "on_failure": "stop",
        "resume": "lazy",
        "max_tokens": 5,
        "model_timeout": 7.5,
        "credentials": {"model": "env:KEY"},
        "durability": "fsynced",
        "grants": ["net.http"],
        "purpose": "Knows prices.",
        "subagents": Subagents(mode="disabled"),
        "reminders": Reminders(after_ms=60_000),
        "budget": Budget(tokens_max=5),
    }
    assert set(inspect.signature(Agent.__init__).parameters) - LOCAL == set(said)
    before = Agent("a", **plain).spec
    for name, value in said.items():
        given: dict[str, Any] = {"name": "a", **plain, name: value}
        assert Agent(**given).spec != before, name
    options: dict[str, Any] = {
        "name": "another",
        "effect": "read",
        "probe": probe,
        "on_unknown": "ask",
        "timeout": 7,
        "capabilities": ["network"],
        "isolated": True,
        "version": 2,
        "credentials": ["shop"],
        "key_window": 3600,
    }
    assert set(inspect.signature(tool).parameters) - {"function"} == set(options)
    for name, value in options.items():
        with_effect = {"effect": "idempotent"} if name == "key_window" else {}
        plain_tool = tool(**with_effect)(work)
        assert tool(**{name: value, **with_effect})(work).spec != plain_tool.spec, name
    assert tool(version=2)(work).spec.version == "2"


@pytest.mark.parametrize(
    "options,said",
    [
        ({}, ["tool 'pay' is missing", "model is None, and should be 'function:play'"]),
        (
            {"tools": ["2"], "model": play},
            ["tool 'pay': version is '2', and should be '1'"],
        ),
        (
            {"tools": ["1"], "model": probe},
            ["model is 'function:probe', and should be 'function:play'"],
        ),
        ({"tools": ["1"], "model": play}, []),
    ],
)
def test_what_is_missing_or_different_is_named(options: dict[str, Any], said: list[str]) -> None:
    """All of it at once."""

    def pay(version: str) -> Tool[..., Any]:
        return tool(name="pay", version=version)(work)

    agent = Agent("a", model=play, tools=[pay("1"), wait, ask_human])
    options = {**options, "tools": [pay(version) for version in options.get("tools", ())]}
    if not said:
        assert Agent.rebuilt(template(agent.spec), **options).spec == agent.spec
        return
    with pytest.raises(InvalidInput) as refused:
        Agent.rebuilt(template(agent.spec), **options)
    assert str(refused.value) == f"agent 'a' cannot be rebuilt here: {'; '.join(said)}"


def test_a_field_that_differs_is_named() -> None:
    """Also of a tool without a version: its promises are part of the definition."""
    agent = Agent("a", model="openai:gpt-5", tools=[tool(effect="read")(work)])
    with pytest.raises(InvalidInput, match="tool 'work': effect is 'once', and should be 'read'"):
        Agent.rebuilt(agent.spec, tools=[work])
    shorter = replace(agent.spec, limits=Limits(steps_max=0))
    with pytest.raises(InvalidInput, match="steps_max is at least 1, not 0"):
        Agent.rebuilt(shorter, tools=[tool(effect="read")(work)])
