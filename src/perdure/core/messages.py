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


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ToolRequest).decode


def recordable(request: ToolRequest) -> ToolRequest:
    """Return a tool call as it can be recorded: what is judged is what the log will hold.

    NaN and the infinities are null, as JSON has no such numbers. A call that cannot be JSON, for
    half of a surrogate pair or a number of thousands of digits, is `undecodable`.
    """
    try:
        body = _encode(request)
        return _decode(body) if b"null" in body else request
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        id_, name = (_in_utf8(text) for text in (request.id, request.name))
        why = f"{type(error).__name__}: {error}"
        return ToolRequest(id_, name, undecodable=_in_utf8(request.undecodable or why))


def _in_utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


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
