"""A definition travels whole: every field of it survives, and what differs is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.core.agent import (
    AgentSpec,
    ContextPolicy,
    Limits,
    Reminders,
    Subagents,
    ToolSpec,
    define,
)
from perdure.core.errors import InvalidInput
from perdure.core.template import differences, read_template, template
from tests.templates import EVERY_FIELD, FIELDS, SPECS, changes

PAY = ToolSpec("pay", "Pay.", {"type": "object"}, version="1")


def test_every_field_is_known_to_these_tests() -> None:
    """Whoever adds one to a definition says here what it may hold."""
    for kind, fields in FIELDS.items():
        assert list(fields) == list(kind.__struct_fields__)
    whole = AgentSpec("a", "m", reminders=Reminders(1_000))
    inner = {type(getattr(whole, name)) for name in AgentSpec.__struct_fields__}
    structs = {kind for kind in inner if issubclass(kind, msgspec.Struct)} | {AgentSpec, ToolSpec}
    assert structs == set(FIELDS)


@settings(max_examples=50, deadline=None)
@given(SPECS)
def test_a_template_is_the_whole_definition(spec: AgentSpec) -> None:
    """Read by another process it has the same digest; nothing differs."""
    body = template(spec)
    read = read_template(body)
    assert read == spec
    assert define(read).digest == define(spec).digest
    assert define(spec).blobs == {define(spec).digest: body}
    assert differences(spec, read) == []
    assert read_template(msgspec.to_builtins(spec)) == spec


@pytest.mark.parametrize("kind,name", EVERY_FIELD, ids=lambda each: getattr(each, "__name__", each))
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_every_field_counts(kind: Any, name: str, data: st.DataObject) -> None:
    """Two definitions that differ in it have other digests, and the difference is named."""
    spec = AgentSpec("a", "openai:gpt-5", reminders=Reminders(1_000))
    if (kind, name) == (ToolSpec, "builtin"):
        one, other = None, "wait"
    else:
        one, other = data.draw(changes(kind, name))
    first, second = _with(spec, kind, name, one), _with(spec, kind, name, other)
    assert define(first).digest != define(second).digest
    said = differences(first, second)
    by_name = "tool " if name == "tools" or (kind, name) == (ToolSpec, "name") else name
    assert said
    assert all(by_name in difference or "the tools" in difference for difference in said)


def _with(spec: AgentSpec, kind: Any, name: str, value: Any) -> AgentSpec:
    if kind is AgentSpec:
        return replace(spec, **{name: value})
    if kind is ToolSpec:
        return replace(spec, tools=(replace(PAY, **{name: value}),))
    field = {
        Limits: "limits",
        ContextPolicy: "context",
        Subagents: "subagents",
        Reminders: "reminders",
    }[kind]
    return replace(spec, **{field: replace(getattr(spec, field), **{name: value})})


@pytest.mark.parametrize(
    "found,said",
    [
        ((replace(PAY, version="2"),), ["tool 'pay': version is '2', and should be '1'"]),
        ((replace(PAY, effect="read"),), ["tool 'pay': effect is 'read', and should be 'once'"]),
        ((), ["tool 'pay' is missing"]),
        ((PAY, replace(PAY, name="spy")), ["tool 'spy' is not part of it"]),
        (
            (replace(PAY, version="2", effect="read", description="Another."),),
            ["tool 'pay': version is '2', and should be '1'"],
        ),
    ],
)
def test_the_difference_of_tools_is_named(found: tuple[ToolSpec, ...], said: list[str]) -> None:
    """By tool and field; of another version nothing else has to be said."""
    wanted = AgentSpec("a", "openai:gpt-5", tools=(PAY,))
    assert differences(wanted, replace(wanted, tools=found)) == said


@pytest.mark.parametrize(
    "change,said",
    [
        ({"policy": "ask"}, "does not know: policy"),
        ({"limits": {"cents_max": 5}}, "does not know: limits.cents_max"),
        ({"tools": [{"name": "a", "description": "", "parameters": {}, "zone": 1}]},
         "does not know: tools[0].zone"),
        ({"limits": {"steps_max": "many"}}, "Expected `int`, got `str` - at `$.limits.steps_max`"),
        ({"model": None}, "Expected `str`, got `null` - at `$.model`"),
        ({"credentials": {"model": "sk-live-abcdefgh"}}, "credentials['model'] is no reference"),
    ],
)  # fmt: skip
def test_what_is_not_understood_in_full_is_refused(change: dict[str, Any], said: str) -> None:
    """A newer version's field that is left out in silence would make another agent of it."""
    body = msgspec.json.encode(msgspec.to_builtins(AgentSpec("a", "openai:gpt-5")) | change)
    with pytest.raises(InvalidInput) as refused:
        read_template(body)
    assert said in str(refused.value)
    assert "sk-live" not in str(refused.value)


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b"7"])
def test_what_is_no_template_is_refused(body: bytes) -> None:
    """With what was wrong."""
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_template(body)
