"""The two formats that most providers speak, as their servers write them: for `stub_provider`.

`anthropic` is Anthropic Messages, `openai` is OpenAI Chat Completions. All functions are pure.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from perdure.core.messages import ModelReply, ToolRequest

Format = Literal["anthropic", "openai"]

PIECE_CHARS = 12
"""How much text or arguments one event of a stream holds."""

_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}
_ANTHROPIC_ID = re.compile(r"[A-Za-z0-9_-]+")
_json = msgspec.json.encode


class Thinking(msgspec.Struct, frozen=True):
    """What a model thought, with the signature under which its provider wants it back."""

    text: str
    signature: str


def stream(kind: Format, reply: ModelReply, thinking: Thinking | None = None) -> list[bytes]:
    """Return the events of a streamed reply, each with the blank line that ends it."""
    if kind == "anthropic":
        events = _anthropic_events(reply, thinking)
        return [f"event: {e['type']}\n".encode() + b"data: " + _json(e) + b"\n\n" for e in events]
    chunks = [b"data: " + _json(chunk) + b"\n\n" for chunk in _openai_chunks(reply)]
    return [*chunks, b"data: [DONE]\n\n"]


def body(kind: Format, reply: ModelReply, thinking: Thinking | None = None) -> bytes:
    """Return the body of a reply that is not streamed."""
    if kind == "anthropic":
        content: list[dict[str, Any]] = []
        if thinking:
            block = {"thinking": thinking.text, "signature": thinking.signature}
            content.append({"type": "thinking", **block})
        if reply.content:
            content.append({"type": "text", "text": reply.content})
        for call in reply.tool_calls:
            asked = {"id": call.id, "name": call.name, "input": call.arguments}
            content.append({"type": "tool_use", **asked})
        return _json({**_anthropic_message(reply), "content": content, **_anthropic_stop(reply)})
    calls = [
        {"id": call.id, "type": "function", "function": _openai_function(call)}
        for call in reply.tool_calls
    ]
    message = {"role": "assistant", "content": reply.content or None, "tool_calls": calls or None}
    choice = {"index": 0, "message": message, "finish_reason": _openai_finish(reply)}
    whole = {**_openai_head("chat.completion", reply), "choices": [choice]}
    return _json({**whole, "usage": _openai_usage(reply)})


def error(kind: Format, name: str, message: str) -> bytes:
    """Return the body of an error."""
    if kind == "anthropic":
        return _json({"type": "error", "error": {"type": name, "message": message}})
    return _json({"error": {"message": message, "type": name, "param": None, "code": name}})


def turn(request: dict[str, Any]) -> int:
    """Return how many assistant messages a request holds."""
    return sum(message.get("role") == "assistant" for message in request.get("messages", ()))


# ----------------------------------------------------------------------------------- Anthropic


def _anthropic_message(reply: ModelReply) -> dict[str, Any]:
    usage = reply.usage
    cached, written = usage.cache_read_tokens, usage.cache_write_tokens
    return {
        "id": "msg_stub",
        "type": "message",
        "role": "assistant",
        "model": reply.model or "stub",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage.input_tokens - cached - written,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "output_tokens": usage.output_tokens,
        },
    }


def _anthropic_stop(reply: ModelReply) -> dict[str, Any]:
    usual = "tool_use" if reply.tool_calls else "end_turn"
    return {"stop_reason": _STOP_REASONS.get(reply.finish, usual), "stop_sequence": None}


def _anthropic_events(reply: ModelReply, thinking: Thinking | None) -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": _anthropic_message(reply)}
    index = itertools.count()
    if thinking:
        block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
        deltas: list[dict[str, Any]] = [
            {"type": "thinking_delta", "thinking": piece} for piece in _pieces(thinking.text)
        ]
        deltas.append({"type": "signature_delta", "signature": thinking.signature})
        yield from _anthropic_block(next(index), block, deltas)
    yield {"type": "ping"}
    if reply.content:
        deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(reply.content)]
        yield from _anthropic_block(next(index), {"type": "text", "text": ""}, deltas)
    for call in reply.tool_calls:
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        deltas = [
            {"type": "input_json_delta", "partial_json": piece}
            for piece in ["", *_pieces(_arguments(call))]
        ]
        yield from _anthropic_block(next(index), block, deltas)
    usage = {"output_tokens": reply.usage.output_tokens}
    yield {"type": "message_delta", "delta": _anthropic_stop(reply), "usage": usage}
    yield {"type": "message_stop"}


def _anthropic_block(
    index: int, block: dict[str, Any], deltas: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    yield {"type": "content_block_start", "index": index, "content_block": block}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


# -------------------------------------------------------------------------------------- OpenAI


def _openai_head(kind: str, reply: ModelReply) -> dict[str, Any]:
    return {
        "id": "chatcmpl-stub",
        "object": kind,
        "created": 1_700_000_000,
        "model": reply.model or "stub",
    }


def _openai_chunks(reply: ModelReply) -> Iterator[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(reply.content)]
    for index, call in enumerate(reply.tool_calls):
        function = {"name": call.name, "arguments": ""}
        head = {"index": index, "id": call.id, "type": "function", "function": function}
        deltas.append({"tool_calls": [head]})
        for piece in _pieces(_arguments(call)):
            part = {"index": index, "function": {"arguments": piece}}
            deltas.append({"tool_calls": [part]})
    head = _openai_head("chat.completion.chunk", reply)
    for delta in deltas:
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    last = {"index": 0, "delta": {}, "finish_reason": _openai_finish(reply)}
    yield {**head, "choices": [last]}
    yield {**head, "choices": [], "usage": _openai_usage(reply)}


def _openai_finish(reply: ModelReply) -> str:
    if reply.finish in _STOP_REASONS:
        return reply.finish
    return "tool_calls" if reply.tool_calls else "stop"


def _openai_function(call: ToolRequest) -> dict[str, str]:
    return {"name": call.name, "arguments": _arguments(call)}


def _openai_usage(reply: ModelReply) -> dict[str, Any]:
    usage = reply.usage
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
    }


def _arguments(call: ToolRequest) -> str:
    return _json(call.arguments).decode() if call.undecodable is None else call.undecodable


def _pieces(text: str) -> list[str]:
    size = max(PIECE_CHARS, len(text) // 1_000)
    return [text[start : start + size] for start in range(0, len(text), size)]


# ----------------------------------------------------------------------- what providers refuse


def objection(kind: Format, request: dict[str, Any]) -> str | None:
    """Return why a real provider would refuse this request, or None if it would take it.

    Every tool call must be answered once, right after it; ids must be unique; texts not empty.
    """
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        return "messages: at least one message is required"
    find = _anthropic_links if kind == "anthropic" else _openai_links
    asked: list[str] = []
    seen: set[str] = set()
    for number, message in enumerate(messages):
        calls, answers, problem = find(message)
        if problem:
            return f"messages.{number}: {problem}"
        for answer in answers:
            if answer not in asked:
                return f"messages.{number}: unexpected tool result {answer!r}"
            asked.remove(answer)
        if asked and (kind == "anthropic" or message.get("role") != "tool"):
            return f"messages.{number}: tool calls without a result right after: {asked}"
        if len(set(calls)) < len(calls) or not seen.isdisjoint(calls):
            return f"messages.{number}: tool call ids must be unique: {calls}"
        seen.update(calls)
        asked += calls
    return f"tool calls without a result right after: {asked}" if asked else None


Links = tuple[list[str], list[str], str | None]


def _anthropic_links(message: dict[str, Any]) -> Links:
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if not blocks:
        return [], [], "content must not be empty"
    calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
    answers = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    inner = [b for block in blocks for b in _blocks_within(block)]
    if any(b["type"] == "text" and not b["text"].strip() for b in inner):
        return [], [], "text content blocks must contain non-whitespace text"
    if not all(_ANTHROPIC_ID.fullmatch(call) for call in calls):
        return [], [], f"tool_use.id: {calls} should match pattern '^[a-zA-Z0-9_-]+$'"
    return calls, answers, None


def _blocks_within(block: dict[str, Any]) -> list[dict[str, Any]]:
    nested = block.get("content")
    return [block, *nested] if isinstance(nested, list) else [block]


def _openai_links(message: dict[str, Any]) -> Links:
    if message.get("role") == "tool":
        return [], [message["tool_call_id"]], None
    calls = message.get("tool_calls") or []
    for call in calls:
        try:
            json.loads(call["function"]["arguments"])
        except ValueError:
            return [], [], f"the arguments of {call['id']!r} are not valid JSON"
        if len(call["id"]) > 40:
            return [], [], f"tool_calls.id: {call['id']!r} is longer than 40"
    return [call["id"] for call in calls], [], None
