"""Models that are a script or a function."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.adapters.models import ScriptedModel, asks, call, says
from perdure.core.messages import (
    AssistantMessage,
    ToolMessage,
    ToolRequest,
    Usage,
    UserMessage,
)
from perdure.core.retry import classify
from perdure.ports.models import ModelError
from tests.adapters.models.asking import ask, refusal


def test_the_same_call_has_the_same_id() -> None:
    assert call("add", a=1, b=2) == call("add", b=2, a=1)
    assert call("add", a=1).id != call("add", a=2).id
    assert call("add", a=1).id != call("sub", a=1).id
    assert call("rename", name="x").arguments == {"name": "x"}


def test_repeats_in_one_reply_get_ids_of_their_own() -> None:
    reply = asks(call("add", a=1), call("add", a=1), text="Twice.")
    assert len({request.id for request in reply.tool_calls}) == 2
    assert (reply.content, reply.finish) == ("Twice.", "tool_call")
    same = ToolRequest("by_hand", "add")
    assert [request.id for request in asks(same, same).tool_calls] == ["by_hand", "by_hand"]


def test_what_is_said_costs_about_a_token_for_four_bytes() -> None:
    assert says("Hello.").usage == Usage(output_tokens=2)
    assert says("").usage == Usage()
    assert asks(call("add", a=1)).usage.output_tokens > 5


async def test_the_history_says_where_the_script_goes_on() -> None:
    script = [asks(call("add", a=1, b=2)), "Three.", lambda request: f"{len(request.messages)}."]
    first, _ = await ask(ScriptedModel(*script))
    assert first.tool_calls == (call("add", a=1, b=2),)
    assert first.model == "scripted"
    assert first.usage.input_tokens > 0

    history: list[Any] = [
        UserMessage("Hello."),
        AssistantMessage("", first.tool_calls),
        ToolMessage(first.tool_calls[0].id, "add", 3),
    ]
    restarted = ScriptedModel(*script)
    for _ in range(2):
        reply, pieces = await ask(restarted, *history)
        assert reply.content == "".join(pieces) == "Three."
    reply, _ = await ask(restarted, *history, AssistantMessage("Three."), UserMessage("And?"))
    assert reply.content == "5."


async def test_a_long_text_comes_in_pieces() -> None:
    text = "All work and no play makes a dull test. " * 3
    reply, pieces = await ask(ScriptedModel(text))
    assert len(pieces) > 3
    assert "".join(pieces) == reply.content == text


async def test_past_the_end() -> None:
    for model in (ScriptedModel("One."), ScriptedModel(says("One."))):
        error = await refusal(model, UserMessage("1"), AssistantMessage("One."), UserMessage("2"))
        assert (error.error_class, error.code) == ("validation", "script_exhausted")
        assert "1 replies" in str(error)


async def test_an_error_is_raised_once_and_then_the_script_goes_on() -> None:
    busy, broken = ModelError("busy", status=429), RuntimeError("broken")
    model = ScriptedModel(busy, broken, "At last.")
    assert await refusal(model) is busy
    with pytest.raises(RuntimeError, match="broken"):
        await ask(model)
    reply, _ = await ask(model)
    assert reply.content == "At last."
    # Somebody else's conversation has its own bad luck, and so has a restarted process.
    assert await refusal(model, UserMessage("I am new here.")) is busy
    assert await refusal(ScriptedModel(busy, "At last.")) is busy


async def test_an_error_at_the_end_stays() -> None:
    model = ScriptedModel("One.", ModelError("no"))
    history = (UserMessage("1"), AssistantMessage("One."), UserMessage("2"))
    for _ in range(3):
        assert str(await refusal(model, *history)) == "no"


async def test_summaries_have_a_script_of_their_own() -> None:
    history = (UserMessage("1"), AssistantMessage("One."))
    default, _ = await ask(ScriptedModel(), *history, purpose="compact")
    assert default.content == "Summary of 2 messages."
    model = ScriptedModel("One.", summary=lambda request: f"{request.purpose}!")
    summary, _ = await ask(model, *history, purpose="compact")
    assert summary.content == "compact!"
    failing = ScriptedModel(summary=ModelError("too tired"))
    assert str(await refusal(failing, *history, purpose="compact")) == "too tired"


async def test_what_is_no_reply_is_refused() -> None:
    broken: Any = lambda request: {"content": "Hello."}  # noqa: E731
    error = await refusal(ScriptedModel(broken))
    assert (error.error_class, error.code) == ("validation", "invalid_reply")
    assert "dict" in str(error)


async def test_a_scripted_status_is_read_like_a_real_one() -> None:
    error = await refusal(ScriptedModel(ModelError("slow down", status=429, retry_after_ms=5)))
    failure = classify(str(error), error.status, error.retry_after_ms)
    assert (failure.code, failure.retry_after_ms) == ("rate_limited", 5)
