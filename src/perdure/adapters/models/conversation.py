"""Our messages as pydantic-ai's parts and back. Its classes live for one request, never longer.

What a provider wants back unchanged, such as signed thinking, travels in the `extra` of a reply as
plain JSON: the order of the reply's parts, with the text and the tool calls named by their place
and everything else dumped. Another provider does not read it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core.limits import clip, too_deep
from perdure.core.messages import (
    INHERITED_CONTEXT,
    AssistantMessage,
    Message,
    ModelReply,
    ToolMessage,
    ToolRequest,
    Usage,
    UserMessage,
)
from perdure.ports.models import ModelRequest

if TYPE_CHECKING:
    from pydantic_ai import messages as pai
    from pydantic_ai.models import ModelRequestParameters

COMPACT_INSTRUCTION = (
    "Summarise the conversation so far for an assistant that will continue it and will see nothing "
    "but your summary. Keep what was asked and every constraint, what was decided and why, what "
    "was done and with which result, names, numbers and identifiers exactly, and what remains to "
    "be done. Call no tools, address nobody: answer with the summary only."
)
NOTHING = "(empty)"
"""Stands for an empty text: providers refuse one."""
CONTEXT_INTRODUCTION = "Context of the next message:"
UNDECODABLE = "INVALID_JSON"
"""The argument under which a model is shown its undecodable arguments: pydantic-ai's convention."""
UNDECODABLE_CHARS_MAX = 2_000
PLAIN_FIELDS = frozenset({"content", "part_kind", "tool_call_id", "tool_name"})
"""What a text or a tool call consists of; a part that has more has something to remember."""

_WIRE_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")


def parameters(request: ModelRequest) -> ModelRequestParameters:
    """Return the tools of a request; a request for a summary has none."""
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.tools import ToolDefinition

    if request.purpose == "compact":
        return ModelRequestParameters()
    tools = [
        ToolDefinition(
            name=tool.name,
            description=tool.description,
            parameters_json_schema=tool.parameters,
        )
        for tool in request.tools
    ]
    return ModelRequestParameters(function_tools=tools)


def history(request: ModelRequest, provider: str) -> list[pai.ModelMessage]:
    """Return the messages of a request, its instructions first."""
    from pydantic_ai import messages as pai

    out: list[pai.ModelMessage] = []
    if request.instructions:
        out.append(pai.ModelRequest(parts=[pai.SystemPromptPart(request.instructions)]))
    names = _CallNames()
    for message in request.messages:
        if isinstance(message, AssistantMessage):
            names.open(message.tool_calls)
            parts = list(_assistant(message, names, provider))
            out.append(pai.ModelResponse(parts=parts))
        else:
            _to_last_request(out, _told(message, names))
    if request.purpose == "compact":
        _to_last_request(out, pai.UserPromptPart(COMPACT_INSTRUCTION))
    return out


class _CallNames:
    """Gives each call an id that every provider takes: unique in the request, short, plain.

    A history may hold one id twice, in two replies: a model server that counts from 0 in each
    reply does that. An answer belongs to the reply right before it.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._open: dict[str, str] = {}

    def open(self, requests: tuple[ToolRequest, ...]) -> None:
        self._open = {}
        for request in requests:
            wire, repeats = request.id, 0
            while wire in self._used or not _WIRE_ID.fullmatch(wire):
                wire = f"call_{hashlib.sha256(f'{request.id} {repeats}'.encode()).hexdigest()[:24]}"
                repeats += 1
            self._used.add(wire)
            self._open[request.id] = wire

    def __getitem__(self, call: str) -> str:
        return self._open.get(call, call)


def _to_last_request(out: list[pai.ModelMessage], part: pai.ModelRequestPart) -> None:
    from pydantic_ai import messages as pai

    if out and isinstance(out[-1], pai.ModelRequest):
        out[-1] = pai.ModelRequest(parts=[*out[-1].parts, part])
    else:
        out.append(pai.ModelRequest(parts=[part]))


def _told(message: Message, names: _CallNames) -> pai.ModelRequestPart:
    from pydantic_ai import messages as pai

    text = _text(message.content)
    text = text if text.strip() else NOTHING
    if isinstance(message, UserMessage) and message.kind == INHERITED_CONTEXT:
        text = f"{CONTEXT_INTRODUCTION}\n{text}"
    if isinstance(message, ToolMessage):
        return pai.ToolReturnPart(
            tool_name=_tool_name(message.name),
            content=text,
            tool_call_id=names[message.tool_call_id],
            outcome="failed" if message.is_error else "success",
        )
    return pai.UserPromptPart(text)


def _assistant(
    message: AssistantMessage, names: _CallNames, provider: str
) -> Iterator[pai.ModelResponsePart]:
    from pydantic_ai import messages as pai

    text = _text(message.content)
    calls = [
        pai.ToolCallPart(_tool_name(call.name), _shown_arguments(call), names[call.id])
        for call in message.tool_calls
    ]
    remembered = _remembered(message.extra, provider, text, calls)
    if remembered is not None:
        yield from remembered
        return
    if text.strip():
        yield pai.TextPart(text)
    elif not calls:
        yield pai.TextPart(NOTHING)
    yield from calls


def _shown_arguments(call: ToolRequest) -> dict[str, Any]:
    if call.undecodable is None:
        return call.arguments
    return {UNDECODABLE: clip(call.undecodable, UNDECODABLE_CHARS_MAX)}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "" if content is None else msgspec.json.encode(content).decode()


def _tool_name(name: str) -> str:
    return _NOT_IN_NAME.sub("_", name)[:64] or "unknown"


# ------------------------------------------------------------------------------------- and back


def reply(response: pai.ModelResponse, provider: str, finish: str) -> ModelReply:
    """Return a complete response as a reply in our format."""
    parts: Sequence[Any] = response.parts
    stopped_short = finish in {"length", "content_filter"}
    requests = tuple(
        _request(part, cut=stopped_short and part is parts[-1])
        for part in parts
        if part.part_kind == "tool-call"
    )
    text = "".join(part.content for part in parts if part.part_kind == "text")
    if not parts:
        text = str((response.provider_details or {}).get("refusal") or "")
    usage = response.usage
    return ModelReply(
        content=well_formed(text),
        tool_calls=requests,
        finish=finish,
        usage=Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        ),
        model=response.model_name,
        extra=_extra(parts, provider),
    )


def _request(part: pai.ToolCallPart, cut: bool) -> ToolRequest:
    """Return a tool call; `cut` says that the model was stopped, perhaps before its arguments."""
    arguments = part.args if isinstance(part.args, str) else json.dumps(part.args or None)
    text = well_formed("" if arguments == "null" else arguments)
    name, call = well_formed(part.tool_name), well_formed(part.tool_call_id)
    if not text.strip() and not cut:
        return ToolRequest(call, name)
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        decoded = None
    if too_deep(decoded):
        decoded = None
    if isinstance(decoded, dict):
        return ToolRequest(call, name, decoded)
    return ToolRequest(call, name, undecodable=text)


def well_formed(text: str) -> str:
    """Return text that can be stored: pairs of surrogates are joined, lone ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@functools.cache
def _adapter() -> Any:
    """Return what dumps and reads a part of a response as JSON."""
    from pydantic import TypeAdapter
    from pydantic_ai.messages import ModelResponsePart

    return TypeAdapter(ModelResponsePart)


def _extra(parts: Sequence[Any], provider: str) -> Any:
    """Return what the provider wants back beyond text and calls, or None if there is no such.

    What cannot be stored (half of a surrogate pair in a thought) is not sent back either.
    """
    layout: list[dict[str, Any]] = []
    calls = 0
    try:
        for part in parts:
            entry: dict[str, Any] = {}
            bare = part
            if part.part_kind == "text":
                entry["text"] = len(well_formed(part.content))
                bare = replace(part, content="")
            elif part.part_kind == "tool-call":
                entry["call"], calls = calls, calls + 1
                bare = replace(part, args=None)
            dumped = _adapter().dump_python(bare, mode="json", exclude_none=True)
            if not (entry and set(dumped) <= PLAIN_FIELDS):
                entry["part"] = dumped
            layout.append(entry)
        msgspec.json.encode(layout)
    except ValueError:
        return None
    special = any("part" in entry for entry in layout)
    return {"provider": provider, "parts": layout} if special else None


def _remembered(
    extra: Any, provider: str, text: str, calls: list[pai.ToolCallPart]
) -> list[pai.ModelResponsePart] | None:
    """Return the parts of an earlier reply as its provider gave them, or None if that is gone."""
    from pydantic_ai import messages as pai

    if not isinstance(extra, dict) or extra.get("provider") != provider:
        return None
    parts: list[pai.ModelResponsePart] = []
    position = used = 0
    try:
        for entry in extra["parts"]:
            known = _adapter().validate_python(entry["part"]) if "part" in entry else None
            if "text" in entry:
                end = position + entry["text"]
                piece, position = text[position:end], end
                if piece.strip():
                    parts.append(replace(known or pai.TextPart(""), content=piece))
            elif "call" in entry:
                call, used = calls[entry["call"]], used + 1
                same = {"args": call.args, "tool_call_id": call.tool_call_id}
                parts.append(replace(known, tool_name=call.tool_name, **same) if known else call)
            else:
                parts.append(_adapter().validate_python(entry["part"]))
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return parts if (position, used) == (len(text), len(calls)) else None
