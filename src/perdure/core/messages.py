"""What a model is shown and what it answers: our own format, older and younger than any SDK."""

from __future__ import annotations

from typing import Any

import msgspec


class ToolRequest(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One tool call that a model asked for.

    `undecodable` holds the text of arguments that are not a JSON object; such a call is answered
    with an error and never executed.
    """

    id: str
    name: str
    arguments: dict[str, Any] = {}
    undecodable: str | None = None


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens spent by one model call; `input_tokens` includes what the cache served."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


def plus(one: Usage, other: Usage) -> Usage:
    """Return the tokens of both."""
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cache_read_tokens + other.cache_read_tokens,
        one.cache_write_tokens + other.cache_write_tokens,
    )


class ModelReply(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A complete answer of a model. `extra` is opaque data that its adapter wants back."""

    content: Any = ""
    tool_calls: tuple[ToolRequest, ...] = ()
    finish: str = "stop"
    usage: Usage = Usage()
    model: str | None = None
    extra: Any = None


INHERITED_CONTEXT = "inherited_context"


class UserMessage(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="user", tag_field="role"
):
    """What a person, a program or this runtime tells the model.

    `kind` says of a content that is no utterance what it is: `INHERITED_CONTEXT` is data that came
    with the next message.
    """

    content: Any
    kind: str | None = None


class AssistantMessage(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="assistant", tag_field="role"
):
    """What the model said earlier."""

    content: Any
    tool_calls: tuple[ToolRequest, ...] = ()
    extra: Any = None


class ToolMessage(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="tool", tag_field="role"
):
    """The one answer to one tool call."""

    tool_call_id: str
    name: str
    content: Any
    is_error: bool = False


Message = UserMessage | AssistantMessage | ToolMessage
