"""What a catalog's agent becomes, whatever its `model_config` holds."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.api.definition import (
    BUILTINS,
    agent_spec,
    compaction_policy,
    context_strategy,
    context_window,
)
from perdure.core.agent import ContextPolicy, Reminders, Subagents, ToolSpec, define
from perdure.core.limits import WAIT_SECONDS_MAX, WINDOW_MESSAGES_MAX

WINDOW = ContextPolicy("window", 20)


def spec(config: Any = None, **more: Any) -> Any:
    """Return the definition of an agent with this `model_config`."""
    return agent_spec(name="bot", model="m", system_prompt="Help.", model_config=config, **more)


def test_the_defaults_are_these() -> None:
    made = spec()
    assert (made.name, made.model, made.instructions) == ("bot", "m", "Help.")
    assert (made.limits.steps_max, made.on_failure, made.max_tokens) == (50, "stop", None)
    assert made.context == WINDOW
    assert made.tools == BUILTINS
    assert spec({"checkpoint_policy": "manual"}) == made


# `model_config` -> what the model is shown
CONTEXTS: list[tuple[dict[str, Any], ContextPolicy]] = [
    ({"context_strategy": "none"}, ContextPolicy("none")),
    ({"context_strategy": "sliding_window", "context_window": 5}, ContextPolicy("window", 5)),
    ({"context_strategy": "junk", "context_window": "7"}, ContextPolicy("window", 7)),
    ({"context_window": 0}, WINDOW),
    ({"context_window": -1}, WINDOW),
    ({"context_window": True}, WINDOW),
    ({"context_window": "many"}, WINDOW),
    ({"context_window": 10**9}, ContextPolicy("window", WINDOW_MESSAGES_MAX)),
    ({"context_policy": None}, WINDOW),
    ({"context_policy": {"compact_at": 1000}}, ContextPolicy("compact", 40, 1000, 20)),
    ({"context_policy": {"compact_at": 1000, "keep": 4}}, ContextPolicy("compact", 40, 1000, 4)),
    ({"context_policy": {"compact_at": 0}}, WINDOW),
    ({"context_policy": {"compact_at": 5, "keep": 0}}, WINDOW),
    ({"context_policy": {"keep": 4}}, WINDOW),
    ({"context_policy": "soon"}, WINDOW),
]


@pytest.mark.parametrize(("config", "policy"), CONTEXTS)
def test_the_model_is_shown_this_much(config: dict[str, Any], policy: ContextPolicy) -> None:
    assert spec(config).context == policy


@pytest.mark.parametrize(
    ("config", "on_failure"),
    [({}, "stop"), ({"on_failure": "retry_last_step"}, "retry"), ({"on_failure": "junk"}, "stop")],
)
def test_a_failed_model_call_is_tried_again_if_asked_for(config: Any, on_failure: str) -> None:
    assert spec(config).on_failure == on_failure


TOOLS = (
    ToolSpec("look", "Look.", {}, effect="read"),
    ToolSpec("pay", "Pay.", {}, effect="idempotent"),
    ToolSpec("look", "Another.", {}),
    ToolSpec("wait", "Not the built-in one.", {}),
)


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (None, ["look", "pay"]),
        ({"mode": "open"}, ["look", "pay"]),
        ({"mode": "junk", "allowed_tools": []}, ["look", "pay"]),
        ({"mode": "allowlist", "allowed_tools": ["pay", "nothing", 3]}, ["pay"]),
        ({"mode": "allowlist", "allowed_tools": []}, []),
        ({"mode": "allowlist", "allowed_tools": "pay"}, []),
        ({"mode": "allowlist"}, []),
        ("allowlist", ["look", "pay"]),
    ],
)
def test_tools_are_offered_as_the_policy_says(policy: Any, names: list[str]) -> None:
    offered = spec({"tools": policy}, tools=TOOLS).tools
    own = ["wait", "ask_human", "launch_agent", "list_agents"]
    assert [tool.name for tool in offered] == [*own, *names]
    assert offered[:4] == BUILTINS
    assert all(tool.description != "Another." for tool in offered)


@pytest.mark.parametrize(
    ("config", "policy"),
    [
        ({}, Subagents()),
        ({"subagents": "junk", "subagent_conversation": 3}, Subagents()),
        ({"subagents": {"mode": "junk", "max_depth": -1, "allowed_agents": "a"}}, Subagents()),
        ({"subagents": {"max_depth": True, "max_restarts": 1000}}, Subagents(restarts_max=100)),
        ({"subagents": {"mode": "disabled", "max_depth": 0}}, Subagents("disabled", depth_max=0)),
        (
            {"subagents": {"mode": "allowlist", "allowed_agents": ["a", 3, "b"]}},
            Subagents("allowlist", ("a", "b")),
        ),
        ({"subagents": {"allow_list_agents": False}}, Subagents(may_list=False)),
        ({"subagent_conversation": "per_parent"}, Subagents(session="per_parent")),
        (
            {"subagents": {"on_failure": "restart", "max_restarts": 2, "then": "escalate"}},
            Subagents(on_failure="restart", restarts_max=2, then="escalate"),
        ),
    ],
)
def test_who_may_be_launched_comes_from_the_config(config: Any, policy: Subagents) -> None:
    assert spec(config).subagents == policy


def test_limits_come_from_the_row_and_the_config() -> None:
    made = spec({"max_tokens": "100"}, max_steps=7)
    assert (made.limits.steps_max, made.max_tokens) == (7, 100)
    assert spec({"max_tokens": 1.5}).max_tokens is None


def test_an_agents_object_shows_what_is_used() -> None:
    config = {"context_window": "7", "context_policy": {"compact_at": "9"}}
    assert context_strategy(config) == "sliding_window"
    assert context_window(config) == 7
    assert compaction_policy(config) == {"compact_at": 9, "keep": 20}


def test_a_definition_has_an_address() -> None:
    assert define(spec()).digest == define(spec({})).digest
    assert define(spec()).digest != define(spec({"max_tokens": 1})).digest


@pytest.mark.parametrize(
    "reminders,found",
    [
        ({"after_seconds": 60}, Reminders(60_000, 3)),
        ({"after_seconds": "60", "times": 5}, Reminders(60_000, 5)),
        ({"after_seconds": 10**9, "times": 10**6}, Reminders(WAIT_SECONDS_MAX * 1000, 100)),
        ({"after_seconds": 0}, None),
        ({"after_seconds": 60, "times": 0}, None),
        ({"times": 3}, None),
        ("hourly", None),
    ],
)
def test_people_are_reminded_as_it_says(reminders: Any, found: Any) -> None:
    assert spec({"reminders": reminders}).reminders == found
