"""What a worker may say of itself when it joins."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.wire.registration import (
    FEATURES,
    AgentOffer,
    InvalidRegistration,
    Registration,
    ToolOffer,
    read_registration,
)

TOOL: dict[str, Any] = {"name": "charge", "description": "Take money.", "input_schema": {}}
BARE: dict[str, Any] = {"worker_id": "w1", "tools": []}

# what the payload has beside or instead of the bare one, and the code that it is refused with
WRONG = [
    ({"worker_id": ""}, "missing_worker_id_or_tools"),
    ({"worker_id": 7}, "missing_worker_id_or_tools"),
    ({"tools": None}, "missing_worker_id_or_tools"),
    ({"tools": {}, "capabilities": 1}, "missing_worker_id_or_tools"),
    ({"tools": ["charge"]}, "invalid_tools"),
    ({"tools": [{**TOOL, "name": ""}]}, "invalid_tools"),
    ({"tools": [TOOL, {**TOOL, "description": None}]}, "invalid_tools"),
    ({"tools": [{**TOOL, "input_schema": "{}"}], "capabilities": 1}, "invalid_tools"),
    ({"tools": [{**TOOL, "effect": "twice"}]}, "invalid_tools"),
    ({"tools": [{**TOOL, "effect": ["once"]}]}, "invalid_tools"),
    ({"capabilities": "llm"}, "invalid_capabilities"),
    ({"capabilities": None}, "invalid_capabilities"),
    ({"capabilities": ["llm", "root"]}, "invalid_capabilities"),
    ({"features": ["native"]}, "invalid_agents"),
    ({"features": ["native"], "agents": [{"name": ""}]}, "invalid_agents"),
    ({"features": ["native"], "agents": [{"name": "a", "tools": [1]}]}, "invalid_agents"),
    ({"features": ["native"], "agents": [{"name": "a", "tools": 1}]}, "invalid_agents"),
    ({"frame_bytes_max": 10}, "invalid_limits"),
    ({"frame_bytes_max": 1e6}, "invalid_limits"),
    ({"concurrency": True}, "invalid_limits"),
    ({"concurrency": 0}, "invalid_limits"),
]


@pytest.mark.parametrize(("said", "code"), WRONG)
def test_the_first_wrong_thing_is_named(said: dict[str, Any], code: str) -> None:
    """The order of the checks is that of Norns."""
    refused = read_registration({**BARE, **said})
    assert isinstance(refused, InvalidRegistration)
    assert refused.code == code
    assert refused.detail


def test_a_bare_join_has_the_defaults_of_norns() -> None:
    """Other clients of Norns leave out all but this."""
    assert read_registration(BARE) == Registration(worker_id="w1", tools=())
    assert Registration(worker_id="w1", tools=()).capabilities == ("tools",)
    assert Registration(worker_id="w1", tools=()).frame_bytes_max == 1_048_576


@pytest.mark.parametrize(
    ("said", "field", "read"),
    [
        ({"gard": 3}, "gard", "3"),
        ({"gard": "3"}, "gard", "3"),
        ({"gard": "3", "claim_token": None}, "claim_token", None),
        ({"claim_token": "tok"}, "claim_token", "tok"),
        ({"features": ["message_cache", "telepathy", 7]}, "features", {"message_cache"}),
        ({"features": "begin"}, "features", set()),
        ({"agents": [{"name": "bot", "tools": ["charge"]}]}, "agents", ()),
        (
            {"features": ["native"], "agents": [{"name": "bot", "tools": ["charge"]}]},
            "agents",
            (AgentOffer("bot", ("charge",)),),
        ),
        ({"frame_bytes_max": 4096}, "frame_bytes_max", 4096),
        ({"concurrency": 5}, "concurrency", 5),
    ],
)
def test_what_is_said_is_read(said: dict[str, Any], field: str, read: Any) -> None:
    """Features that we do not know, and agents of workers that are not bound to them, are left."""
    registration = read_registration({**BARE, **said})
    assert isinstance(registration, Registration)
    assert getattr(registration, field) == read


@pytest.mark.parametrize(
    ("said", "effect"),
    [({}, "read"), ({"side_effect": True}, "idempotent"), ({"effect": "once"}, "once")],
)
def test_a_tool_says_what_may_be_repeated(said: dict[str, Any], effect: str) -> None:
    """A worker of Norns knows side effects, a native one the class."""
    registration = read_registration({**BARE, "tools": [{**TOOL, **said}]})
    assert isinstance(registration, Registration)
    assert registration.tools[0].effect_class() == effect
    assert isinstance(registration.tools[0], ToolOffer)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "tools", "description", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = [
    "worker_id", "tools", "capabilities", "features", "agents", "gard", "claim_token",
    "frame_bytes_max", "concurrency",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), ANY | st.just(["native"])))
def test_anything_is_a_registration_or_refused(payload: dict[str, Any]) -> None:
    """Nothing else ever comes out of it."""
    read = read_registration(json.loads(json.dumps({**BARE, **payload})))
    assert isinstance(read, Registration | InvalidRegistration)
    if isinstance(read, Registration):
        assert read.features <= FEATURES
