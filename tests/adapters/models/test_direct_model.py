"""Requests and replies of real models, over HTTP, in both formats."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.adapters.models import DirectModel, asks, call, says
from perdure.core.messages import (
    AssistantMessage,
    ModelReply,
    ToolMessage,
    ToolRequest,
    Usage,
    UserMessage,
)
from perdure.testing.stub_provider import Received, StubProvider, empty, hang, repeated_ids, thinks
from tests.adapters.models.asking import ADD, KEY, KINDS, ask, model_of, refusal, request, url

pytestmark = pytest.mark.parametrize("kind", KINDS)

USAGE = Usage(input_tokens=100, output_tokens=20, cache_read_tokens=60)


async def test_a_text_comes_in_pieces_and_as_a_whole(kind: str) -> None:
    text = "Grüße aus dem Maschinenraum: alles läuft. 🚂"
    with StubProvider(replace(says(text), usage=USAGE)) as stub:
        async with model_of(kind, stub) as model:
            reply, pieces = await ask(model)
    assert reply == ModelReply(content=text, finish="stop", usage=USAGE, model="stub")
    assert len(pieces) > 1
    assert "".join(pieces) == text


async def test_cached_tokens_are_part_of_the_input(kind: str) -> None:
    usage = replace(USAGE, cache_write_tokens=30 if kind == "anthropic" else 0)
    with StubProvider(replace(says("Hi."), usage=usage)) as stub:
        async with model_of(kind, stub) as model:
            reply, _ = await ask(model)
    assert reply.usage == usage


async def test_tool_calls_keep_their_ids_order_and_arguments(kind: str) -> None:
    wanted = (call("add", a=1, b=2), call("add", a=3, b=4), call("add", a=5, b=6))
    with StubProvider(asks(*wanted[:1]), asks(*wanted, text="Let me see.")) as stub:
        async with model_of(kind, stub) as model:
            one, _ = await ask(model)
            three, pieces = await ask(model)
    assert (one.tool_calls, one.finish, one.content) == (wanted[:1], "tool_call", "")
    assert (three.tool_calls, three.finish) == (wanted, "tool_call")
    assert three.content == "".join(pieces) == "Let me see."


async def test_a_conversation_goes_there_and_back(kind: str) -> None:
    """The stub refuses what a provider would: an answer out of place, a missing or empty one."""
    first = asks(call("add", a=1, b=2), call("add", a=3, b=4), text="Both at once.")
    with StubProvider(first, "3 and no idea.") as stub:
        async with model_of(kind, stub) as model:
            reply, _ = await ask(model)
            one, two = reply.tool_calls
            done, _ = await ask(
                model,
                UserMessage("Hello."),
                AssistantMessage(reply.content, reply.tool_calls, reply.extra),
                ToolMessage(one.id, "add", {"sum": 3}),
                ToolMessage(two.id, "add", "overflow", is_error=True),
            )
    assert done.content == "3 and no idea."
    answers = _answers(kind, stub.requests[1])
    assert [answer["id"] for answer in answers] == [one.id, two.id]
    assert json.loads(answers[0]["text"]) == {"sum": 3}
    assert "overflow" in answers[1]["text"]
    assert answers[0]["is_error"] is False
    assert answers[1]["is_error"] is True


def _answers(kind: str, received: Received) -> list[dict[str, Any]]:
    messages = received.body["messages"]
    if kind == "anthropic":
        return [
            {
                "id": block["tool_use_id"],
                "text": block["content"][0]["text"],
                "is_error": block["is_error"],
            }
            for message in messages
            for block in message["content"]
            if block["type"] == "tool_result"
        ]
    return [
        {
            "id": message["tool_call_id"],
            "text": message["content"],
            "is_error": message["content"].startswith('{"error":'),
        }
        for message in messages
        if message["role"] == "tool"
    ]


async def test_the_request_holds_what_was_asked_for(kind: str) -> None:
    with StubProvider("Hi.") as stub:
        async with model_of(kind, stub) as model:
            await ask(model, UserMessage({"order": 7}), max_tokens=77)
    body = stub.requests[0].body
    assert body["model"] == "some-model"
    assert 77 in {body.get("max_tokens"), body.get("max_completion_tokens")}
    if kind == "anthropic":
        assert body["system"] == "Be brief."
        schema = body["tools"][0]["input_schema"]
    else:
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        schema = body["tools"][0]["function"]["parameters"]
    assert schema["properties"] == ADD.parameters["properties"]
    assert '{"order":7}' in json.dumps(body["messages"]).replace("\\", "")


async def test_a_summary_is_asked_for_in_words_and_without_tools(kind: str) -> None:
    history = (UserMessage("Hello."), AssistantMessage("Hi."))
    with StubProvider("They greeted.", empty()) as stub:
        async with model_of(kind, stub) as model:
            reply, _ = await ask(model, *history, purpose="compact")
            nothing = await refusal(model, *history, purpose="compact")
    assert reply.content == "They greeted."
    body = stub.requests[0].body
    assert not body.get("tools")
    assert body["messages"][-1]["role"] == "user"
    assert "Summarise the conversation" in json.dumps(body["messages"][-1])
    assert (nothing.error_class, nothing.code) == ("transient", "incomplete_reply")


async def test_two_calls_with_one_id_both_come_through(kind: str) -> None:
    with StubProvider(repeated_ids("add")) as stub:
        async with model_of(kind, stub) as model:
            reply, _ = await ask(model)
    assert [(c.id, c.arguments) for c in reply.tool_calls] == [
        ("call_same", {"n": 1}),
        ("call_same", {"n": 2}),
    ]


async def test_a_history_with_odd_ids_names_and_texts_is_taken(kind: str) -> None:
    """What another provider, a weak model or the runtime itself put there would get a 400."""
    odd = (
        ToolRequest("call_same", "add", {"a": 1}),
        ToolRequest("call_same~1", "no such tool!", undecodable='{"a": '),
        ToolRequest("call_" + "x" * 60, "add"),
    )
    history = [
        UserMessage(""),
        AssistantMessage("", odd),
        *(ToolMessage(c.id, c.name, f"answer {n}") for n, c in enumerate(odd)),
        AssistantMessage("", odd[:1]),
        ToolMessage("call_same", "add", ""),
        AssistantMessage("  "),
        UserMessage("Go on."),
    ]
    with StubProvider("Fine.", "Fine.") as stub:
        async with model_of(kind, stub) as model:
            reply, _ = await ask(model, *history)
            await ask(model, *history[:-2])
    assert reply.content == "Fine."
    answers = _answers(kind, stub.requests[0])
    assert [a["text"] for a in answers[:3]] == ["answer 0", "answer 1", "answer 2"]
    assert len({a["id"] for a in answers}) == 4
    assert _answers(kind, stub.requests[1]) == answers


async def test_signed_thinking_goes_back_to_its_provider_only(kind: str) -> None:
    thinking = thinks("Hmm, two numbers.", "c2lnbmVk", asks(call("add", a=1, b=2), text="So:"))
    with StubProvider(thinking, "3.", "3.") as stub:
        async with model_of("anthropic", stub) as model:
            reply, pieces = await ask(model)
            assert json.loads(json.dumps(reply.extra)) == reply.extra
            assert "".join(pieces) == reply.content == "So:"
            history = (
                UserMessage("Hello."),
                AssistantMessage(reply.content, reply.tool_calls, reply.extra),
                ToolMessage(reply.tool_calls[0].id, "add", 3),
            )
        async with model_of(kind, stub) as model:
            await ask(model, *history)
            torn = replace(history[1], content="other text")
            await ask(model, history[0], torn, history[2])
    block = {"type": "thinking", "thinking": "Hmm, two numbers.", "signature": "c2lnbmVk"}
    kept = stub.requests[1].body["messages"]
    if kind == "anthropic":
        assert kept[1]["content"][0] == block
        assert [b["type"] for b in kept[1]["content"]] == ["thinking", "text", "tool_use"]
    else:
        assert "Hmm" not in json.dumps(kept)
    assert "Hmm" not in json.dumps(stub.requests[2].body["messages"])


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_a_reply_that_was_stopped_says_so(kind: str, finish: str) -> None:
    unwritten = ToolRequest("call_1", "add", undecodable="")
    written = ToolRequest("call_0", "add")
    with StubProvider(
        replace(says("Once upon"), finish=finish),
        replace(asks(written, unwritten), finish=finish),
        asks(ToolRequest("call_1", "add", undecodable="")),
    ) as stub:
        async with model_of(kind, stub) as model:
            text, _ = await ask(model)
            calls, _ = await ask(model)
            whole, _ = await ask(model)
    assert (text.content, text.finish) == ("Once upon", finish)
    # Stopped before its arguments, a call must not pass for one without arguments.
    assert calls.tool_calls == (written, unwritten)
    assert whole.tool_calls == (ToolRequest("call_1", "add"),)


@pytest.mark.parametrize("text", ['{"n": 1,', "[1, 2]", '"text"', "1e999", '{"s": "\\ud800"}'])
async def test_arguments_that_are_no_object_come_as_text(kind: str, text: str) -> None:
    with StubProvider(asks(ToolRequest("call_1", "add", undecodable=text))) as stub:
        async with model_of(kind, stub) as model:
            reply, _ = await ask(model)
    assert reply.tool_calls == (ToolRequest("call_1", "add", undecodable=text),)


async def test_an_empty_reply_is_a_reply(kind: str) -> None:
    with StubProvider(empty()) as stub:
        async with model_of(kind, stub) as model:
            reply, pieces = await ask(model)
    assert (reply.content, reply.tool_calls, reply.finish, pieces) == ("", (), "stop", [])


async def test_many_at_once_and_again_after_closing(kind: str) -> None:
    with StubProvider(lambda received: f"Hello, {received.number}.") as stub:
        async with model_of(kind, stub) as model:
            replies = await asyncio.gather(*(ask(model) for _ in range(30)))
            await model.aclose()
            last, _ = await ask(model)
    assert len({reply.content for reply, _ in replies}) == len(replies) == 30
    assert last.content == "Hello, 31."


async def test_key_and_address_come_from_the_environment(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubProvider("Hi.") as stub:
        monkeypatch.setenv(f"{kind.upper()}_API_KEY", KEY)
        monkeypatch.setenv(f"{kind.upper()}_BASE_URL", url(kind, stub))
        model = DirectModel(f"{kind}:some-model")
        reply, _ = await ask(model)
        await model.aclose()
    assert reply.content == "Hi."
    headers = stub.requests[0].headers
    assert KEY in headers.get("authorization", "") + headers.get("x-api-key", "")


async def test_a_cancelled_reply_hangs_up(kind: str) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def script(received: Received) -> Any:
        loop.call_soon_threadsafe(asked.set)
        return hang()

    with StubProvider(script) as stub:
        async with model_of(kind, stub) as model:
            waiting = asyncio.create_task(model.reply(request(), lambda piece: None))
            await asked.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


def test_each_event_loop_gets_connections_of_its_own(kind: str) -> None:
    async def once() -> str:
        reply, _ = await ask(model)
        await model.aclose()
        return str(reply.content)

    with StubProvider("One.", "Two.") as stub:
        model = DirectModel(f"{kind}:some-model", api_key=KEY, base_url=url(kind, stub))
        assert [asyncio.run(once()), asyncio.run(once())] == ["One.", "Two."]
