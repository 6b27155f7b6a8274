"""Models without a provider: a script of replies, or a function. For demos and tests."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from perdure.core.messages import AssistantMessage, ModelReply, ToolRequest, Usage
from perdure.ports.models import ModelError, ModelRequest, OnText

PIECE_CHARS = 16
"""How much text `on_text` gets at once."""

Answer = ModelReply | str
Reply = Answer | BaseException | Callable[[ModelRequest], Answer | Awaitable[Answer]]

_sorted_json = msgspec.json.Encoder(order="sorted").encode
_json = msgspec.json.encode


def call(name: str, /, **arguments: Any) -> ToolRequest:
    """Return a tool call; the same name and arguments always give the same id."""
    mark = hashlib.sha256(name.encode() + b"\n" + _sorted_json(arguments)).hexdigest()
    return ToolRequest(f"call_{mark[:12]}", name, arguments)


def asks(*requests: ToolRequest, text: str = "") -> ModelReply:
    """Return a reply that asks for these tool calls.

    Repeats of one `call(...)` get ids of their own; ids given by hand stay as they are.
    """
    seen: dict[str, int] = {}
    distinct = []
    for request in requests:
        count = seen[request.id] = seen.get(request.id, 0) + 1
        own = count > 1 and request.id == call(request.name, **request.arguments).id
        distinct.append(replace(request, id=f"{request.id}_{count}") if own else request)
    spoken = _tokens(text) + sum(_tokens(_json(request)) for request in distinct)
    return ModelReply(
        content=text,
        tool_calls=tuple(distinct),
        finish="tool_call" if distinct else "stop",
        usage=Usage(output_tokens=spoken),
    )


def says(text: str) -> ModelReply:
    """Return a reply of text alone, with the tokens it would about cost (a token is 4 bytes)."""
    return ModelReply(content=text, usage=Usage(output_tokens=_tokens(text)))


class ScriptedModel:
    """A model that gives its replies in order: the n-th to a history with n-1 assistant messages.

    It remembers nothing that a restart could lose. A reply is a `ModelReply`, a text, or a function
    of the request; an exception is raised instead. An exception before a reply is raised once for
    each time a process asks the same thing, so that the next attempt gets on; at the end of the
    script it is raised forever. Requests for a summary do not count: `summary` answers them.

    Replies without input tokens get an estimate (a token is 4 bytes of the request). A context
    policy that hides assistant messages moves the script back: a function of the request does not
    mind that.
    """

    name = "scripted"

    def __init__(self, *replies: Reply, summary: Reply | None = None) -> None:
        self._summary = summary
        self._turns: list[tuple[list[BaseException], Reply | None]] = []
        self._asked: dict[bytes, int] = {}
        errors: list[BaseException] = []
        for reply in replies:
            if isinstance(reply, BaseException):
                errors.append(reply)
            else:
                self._turns.append((errors, reply))
                errors = []
        if errors:
            self._turns.append((errors, None))

    async def reply(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return the reply for this place in the conversation.

        Raises what the script says, or `ModelError` (`script_exhausted`) past its end.
        """
        if request.purpose == "compact":
            default = f"Summary of {len(request.messages)} messages."
            return await _perform(self._summary or default, request, on_text, self.name)
        return await _perform(self._next(request), request, on_text, self.name)

    def _next(self, request: ModelRequest) -> Reply:
        turn = sum(isinstance(message, AssistantMessage) for message in request.messages)
        if turn >= len(self._turns):
            raise ModelError(
                f"the script has {len(self._turns)} replies, and reply {turn + 1} was asked for",
                error_class="validation",
                code="script_exhausted",
            )
        errors, reply = self._turns[turn]
        if not errors:
            assert reply is not None
            return reply
        place = hashlib.sha256(_json(request)).digest()
        asked = self._asked.get(place, 0)
        self._asked[place] = asked + 1
        if asked < len(errors):
            return errors[asked]
        return errors[-1] if reply is None else reply


async def _perform(reply: Reply, request: ModelRequest, on_text: OnText, name: str) -> ModelReply:
    if isinstance(reply, BaseException):
        raise reply
    answer: object = reply
    if callable(reply):
        answer = reply(request)
        if inspect.isawaitable(answer):
            answer = await answer
    if isinstance(answer, str):
        answer = says(answer)
    if not isinstance(answer, ModelReply):
        raise ModelError(
            f"the model {name!r} returned a {type(answer).__name__}: "
            "expected a ModelReply or a string",
            error_class="validation",
            code="invalid_reply",
        )
    if answer.usage.input_tokens == 0:
        shown = _tokens(request.instructions) + _tokens(_json(request.messages))
        answer = replace(answer, usage=replace(answer.usage, input_tokens=shown))
    if isinstance(answer.content, str):
        for start in range(0, len(answer.content), PIECE_CHARS):
            on_text(answer.content[start : start + PIECE_CHARS])
    return replace(answer, model=answer.model or name)


def _tokens(text: str | bytes) -> int:
    size = len(text.encode()) if isinstance(text, str) else len(text)
    return -(-size // 4)
