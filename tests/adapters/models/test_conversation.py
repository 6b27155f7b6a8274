"""What HTTP tests do not reach of the way between our messages and pydantic-ai's parts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai import messages as pai

from perdure.adapters.models.conversation import history, reply, well_formed
from perdure.core.messages import AssistantMessage, ToolMessage, ToolRequest, UserMessage
from tests.adapters.models.asking import request

texts = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates included
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
details = st.none() | st.dictionaries(st.sampled_from(["a", "b"]), texts, max_size=2)
parts = st.lists(
    st.builds(
        pai.TextPart, texts, id=st.none() | texts, provider_details=details, provider_name=st.none()
    )
    | st.builds(pai.ThinkingPart, texts, signature=st.none() | texts)
    | st.builds(
        pai.ToolCallPart,
        st.sampled_from(["add", "send"]),
        st.none() | texts | st.dictionaries(texts, values, max_size=3),
        st.sampled_from(["call_1", "call_2", "call_3"]),
        provider_details=details,
    ),
    max_size=5,
)


@settings(deadline=None)  # the first case makes the adapter, which takes its time
@given(parts, st.sampled_from(["stop", "tool_call", "length"]))
def test_whatever_a_provider_says_can_be_stored_and_shown_again(
    said: list[Any], finish: str
) -> None:
    found = reply(pai.ModelResponse(parts=said), "some", finish)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
    assert [c.name for c in found.tool_calls] == [
        part.tool_name for part in said if isinstance(part, pai.ToolCallPart)
    ]
    message = AssistantMessage(found.content, found.tool_calls, found.extra)
    for provider in ("some", "other"):
        shown = history(request(UserMessage("Hello."), message), provider)[-1]
        assert isinstance(shown, pai.ModelResponse)
        again = reply(shown, "some", finish)
        assert [c.name for c in again.tool_calls] == [c.name for c in found.tool_calls]
        for before, after in zip(found.tool_calls, again.tool_calls, strict=True):
            assert before.undecodable is not None or before.arguments == after.arguments
        thoughts = [p for p in shown.parts if isinstance(p, pai.ThinkingPart)]
        if provider == "other":
            assert not thoughts


@given(texts)
def test_text_that_is_whole_stays_as_it_is(text: str) -> None:
    well_formed(text).encode()
    assert well_formed(well_formed(text)) == well_formed(text)
    whole = text.encode(errors="ignore").decode()
    assert well_formed(whole) == whole


def test_a_pair_that_was_torn_is_joined() -> None:
    assert well_formed("\ud83d\ude82!") == "🚂!"
    assert well_formed("\ud83d!") == "�!"


@pytest.mark.parametrize(
    "arguments", ["[" * 5_000, '{"a":' * 5_000 + "1" + "}" * 5_000, '{"a":' * 120 + "1" + "}" * 120]
)
def test_arguments_too_deep_to_read_are_told_as_text(arguments: str) -> None:
    part = pai.ToolCallPart("add", arguments, "call_1")
    found = reply(pai.ModelResponse(parts=[part]), "some", "tool_call")
    assert found.tool_calls == (ToolRequest("call_1", "add", undecodable=arguments),)


def test_the_same_history_is_shown_in_the_same_way() -> None:
    """A prefix that stays the same is what providers cache."""
    calls = (ToolRequest("a~1", "add", {"a": 1}), ToolRequest("b", "add"))
    turn = (AssistantMessage("", calls), ToolMessage("a~1", "add", 1), ToolMessage("b", "add", 2))
    short = history(request(UserMessage("Hello."), *turn), "some")
    long = history(request(UserMessage("Hello."), *turn, *turn), "some")
    ids = [part.tool_call_id for part in short[1].parts if isinstance(part, pai.ToolCallPart)]
    assert [part.tool_call_id for part in long[1].parts if hasattr(part, "tool_call_id")] == ids
    assert len({part.tool_call_id for m in long for part in m.parts if hasattr(part, "args")}) == 4
