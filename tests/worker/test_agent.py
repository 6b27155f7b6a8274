"""An agent is checked when it is made, and is data for everybody but the worker."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.agent import ContextPolicy, Limits, Reminders, define
from perdure.core.errors import InvalidInput
from perdure.worker import Agent, tool, wait
from tests.worker.helpers import Speaker


@tool(effect="read")
def look(what: str) -> str:
    """Look it up."""
    return what


def plain(what: str) -> str:
    """Do it."""
    return what


def answer(request: Any) -> str:
    return "yes"


def test_the_specification_has_everything() -> None:
    """As it was given."""
    limits, context = Limits(steps_max=3), ContextPolicy("window", window_messages=9)
    agent = Agent(
        "helper.v-2_x",
        model="anthropic:claude-sonnet-5",
        instructions="Help.",
        tools=[look, plain, wait],
        limits=limits,
        context=context,
        on_failure="stop",
        resume="lazy",
        max_tokens=100,
    )
    spec = agent.spec
    assert (spec.name, spec.model) == ("helper.v-2_x", "anthropic:claude-sonnet-5")
    assert (spec.instructions, spec.limits, spec.context) == ("Help.", limits, context)
    assert (spec.on_failure, spec.resume, spec.max_tokens) == ("stop", "lazy", 100)
    assert [each.name for each in spec.tools] == ["look", "plain", "wait"]
    assert [each.effect for each in spec.tools] == ["read", "once", "read"]
    assert agent.definition == define(spec)
    assert agent.definition is agent.definition
    assert repr(agent) == "<Agent helper.v-2_x (anthropic:claude-sonnet-5, 3 tools)>"


def test_the_digest_depends_on_what_the_agent_is() -> None:
    """And on nothing else: two processes agree on it."""
    first, again = (Agent("a", model="m", tools=[look]) for _ in range(2))
    other = Agent("a", model="m", tools=[plain])
    assert first.definition.digest == again.definition.digest != other.definition.digest


@pytest.mark.parametrize(
    "model,name",
    [
        ("scripted", "scripted"),
        ("openai:gpt-5", "openai:gpt-5"),
        (answer, "function:answer"),
        (Speaker("hi").reply, "function:Speaker.reply"),
        (Speaker("hi"), "object:Speaker"),
    ],
)
def test_how_a_model_is_named(model: Any, name: str) -> None:
    """Code is named by where it is written."""
    assert Agent("a", model=model).spec.model == name


TWIN = tool(name="look")(plain)


@pytest.mark.parametrize(
    "given,message",
    [
        ({"name": ""}, "'' cannot be the name of an agent"),
        ({"name": "a/b"}, "'a/b' cannot be the name of an agent"),
        ({"name": "-a"}, "'-a' cannot be the name of an agent"),
        ({"name": "a\n"}, "cannot be the name of an agent"),
        ({"name": "a" * 65}, "cannot be the name of an agent"),
        ({"reminders": 60}, "agent 'a': reminders is Reminders(...), not 60"),
        ({"reminders": Reminders(999)}, "reminders.after_ms is between 1000 and"),
        ({"reminders": Reminders(1_000, 101)}, "reminders.times is between 1 and 100, not 101"),
        ({"name": 3}, "3 cannot be the name of an agent"),
        ({"model": ""}, "agent 'a': model is a name as in 'anthropic:claude-sonnet-5'"),
        ({"model": "gpt 5"}, "model is a name"),
        ({"model": Speaker}, "model is a name"),
        ({"model": 3}, "or a function of a request, not 3"),
        ({"instructions": 3}, "Expected `str`, got `int` - at `$.instructions`"),
        ({"tools": look}, "tools is a list of tools"),
        ({"tools": 3}, "tools is a list of tools, not 3"),
        ({"tools": [3]}, "3 is neither a tool nor a function"),
        ({"tools": [look, TWIN]}, "has two tools called 'look': give one tool(name=...)"),
        ({"tools": [wait, wait]}, "has two tools called 'wait'"),
        ({"tools": [lambda: 1]}, "'<lambda>' cannot be the name of a tool"),
        ({"limits": {"steps_max": 3}}, "limits is Limits(...), not {'steps_max': 3}"),
        ({"limits": Limits(steps_max=0)}, "limits.steps_max is at least 1, not 0"),
        ({"limits": Limits(steps_max="3")}, "Expected `int`, got `str` - at `$.limits.steps_max`"),  # type: ignore[arg-type]
        ({"limits": Limits(tokens_max=-1)}, "limits.tokens_max is at least 1"),
        ({"limits": Limits(wall_ms_max=0)}, "limits.wall_ms_max is at least 1"),
        ({"context": "window"}, "context is ContextPolicy(...), not 'window'"),
        ({"context": ContextPolicy("all")}, "Invalid enum value 'all' - at `$.context.strategy`"),  # type: ignore[arg-type]
        (
            {"context": ContextPolicy(window_messages=1000)},
            "context.window_messages is between 1 and 400",
        ),
        ({"on_failure": "panic"}, "on_failure is one of ('retry', 'stop'), not 'panic'"),
        ({"resume": None}, "resume is one of ('eager', 'lazy'), not None"),
        ({"max_tokens": 0}, "max_tokens is at least 1, not 0"),
        ({"max_tokens": 1.5}, "Expected `int | null`, got `float` - at `$.max_tokens`"),
        ({"model_timeout": 0}, "model_timeout is a number of seconds, not 0"),
        ({"model_timeout": "5"}, "model_timeout is a number of seconds, not '5'"),
        ({"durability": "disk"}, "durability is memory, os, fsynced or replicated(n), not 'disk'"),
        ({"durability": 2}, "durability is memory, os, fsynced or replicated(n), not 2"),
    ],
)
def test_what_cannot_be_an_agent_is_refused(given: dict[str, Any], message: str) -> None:
    """With what was expected."""
    with pytest.raises(InvalidInput) as caught:
        Agent(**{"name": "a", "model": "scripted"} | given)
    assert message in str(caught.value)
