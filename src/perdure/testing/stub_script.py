"""What a stub provider is told to do: replies, and bad days. Used through `stub_provider`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from perdure.adapters.models.scripted import asks, call, says
from perdure.core.messages import ModelReply, ToolRequest, Usage
from perdure.testing.stub_formats import Format, Thinking, turn


class Received(msgspec.Struct, frozen=True):
    """A request as it came in; `number` counts from 1, header names are in lower case."""

    number: int
    path: str
    format: Format
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def turn(self) -> int:
        """How many assistant messages the request holds: which step of a conversation it is."""
        return turn(self.body)


class Behaviour(msgspec.Struct, frozen=True):
    """What the stub does with one request. Made by the functions below."""

    reply: ModelReply | None = None
    thinking: Thinking | None = None
    status: int = 200
    headers: dict[str, str] = {}
    message: str = ""
    raw: bytes | None = None
    cut_at: int | None = None
    cleanly: bool = False
    hang_at: int | None = None


Item = str | ModelReply | Behaviour
Script = Item | Callable[[Received], Item]


def status(
    code: int,
    *,
    retry_after: float | str | None = None,
    message: str = "",
    headers: Mapping[str, str] | None = None,
) -> Behaviour:
    """Answer with an HTTP error; `retry_after` is in seconds, or a date as HTTP writes it."""
    sent = dict(headers or {})
    if retry_after is not None:
        sent["retry-after"] = str(retry_after)
    return Behaviour(status=code, headers=sent, message=message or f"the stub says {code}")


def cut(at_byte: int, reply: str | ModelReply = "Hello.", *, cleanly: bool = False) -> Behaviour:
    """Break off after this many bytes of the body.

    `cleanly` ends the HTTP body as if that were all, as a proxy does whose upstream died.
    """
    return replace(behaviour(reply), cut_at=at_byte, cleanly=cleanly)


def hang(after_byte: int | None = None, reply: str | ModelReply = "Hello.") -> Behaviour:
    """Say nothing more after this many bytes of the body; with None, not even the headers."""
    return replace(behaviour(reply), hang_at=-1 if after_byte is None else after_byte)


def repeated_ids(name: str = "tool") -> ModelReply:
    """Two tool calls under one id."""
    return asks(ToolRequest("call_same", name, {"n": 1}), ToolRequest("call_same", name, {"n": 2}))


def huge_arguments(size_bytes: int = 10_000_000, name: str = "tool") -> ModelReply:
    """A tool call with arguments of this size."""
    return asks(call(name, text="x" * size_bytes))


def loose_arguments(text: str = '{"n": 1,', name: str = "tool") -> ModelReply:
    """A complete reply whose tool call has arguments that are no JSON object."""
    return asks(ToolRequest("call_loose", name, undecodable=text))


def empty() -> ModelReply:
    """A complete reply that says nothing and asks for nothing."""
    return ModelReply(usage=Usage(output_tokens=1))


def garbage(raw: bytes = b'data: {"oh no\n\nevent: message_start\ndata: {{{\n\n') -> Behaviour:
    """A body that is not what it should be, with status 200."""
    return Behaviour(raw=raw)


def thinks(text: str, signature: str, reply: str | ModelReply) -> Behaviour:
    """A reply with signed thinking before it (Anthropic's format only)."""
    return replace(behaviour(reply), thinking=Thinking(text, signature))


def by_turn(*items: Item) -> Callable[[Received], Item]:
    """Choose by how far the conversation is, not by how many requests came: repeats are the same.

    For tests that kill the caller: what it asks again is answered again.
    """
    return lambda request: items[request.turn]


def behaviour(item: Item) -> Behaviour:
    """Return an item as a behaviour: a text or a reply is given without ado."""
    if isinstance(item, Behaviour):
        return item
    return Behaviour(reply=says(item) if isinstance(item, str) else item)
