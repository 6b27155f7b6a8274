"""At most how many tokens a history has, kept up event by event, without asking any tokenizer.

A token stands for at least one byte, and what a provider puts around a message is smaller than its
frame here. What a reply reports is exact: from then on only what was said since is estimated, as
long as the definition and the policy are the ones of that reply.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from perdure.core import events as e
from perdure.core.agent import AgentSpec
from perdure.core.state import Counted, State, size_of

MESSAGE_FRAME_TOKENS = 32
TOOL_FRAME_TOKENS = 64
PROMPT_FRAME_TOKENS = 1_024
SUMMARY_FRAME_TOKENS = 128
"""What is put around a message, a tool, the prompt, and a summary, at most."""

_encode = msgspec.json.Encoder().encode


def bytes_of(content: Any) -> int:
    """Return how many bytes a content has: of a text in UTF-8, of anything else as JSON."""
    if isinstance(content, str):
        return len(content) if content.isascii() else len(content.encode(errors="replace"))
    return len(_encode(content))


def measured(before: State, after: State, event: e.Event, contents: tuple[Any, ...]) -> State:
    """Return the state after `event` with what it says, which are `contents`, and its measure."""
    size = weight = 0
    for content in contents:
        if isinstance(content, str) and content.isascii():
            length = len(content)
            size += length
            weight += length + MESSAGE_FRAME_TOKENS
        else:
            size += size_of(content)
            weight += bytes_of(content) + MESSAGE_FRAME_TOKENS
    counted = after.counted
    said = after.said_tokens_max + weight
    if isinstance(event, e.ModelReplied):
        said += _weight_of_reply(event)
        counted = _counted(before, event, said) or counted
    elif isinstance(event, e.HistoryInherited):
        said += len(_encode(event.messages))
    return replace(
        after,
        messages=after.messages + len(contents),
        content_bytes=after.content_bytes + size,
        said_tokens_max=said,
        counted=counted,
    )


def _counted(before: State, event: e.ModelReplied, said: int) -> Counted | None:
    """Return what a model counted, with frames around what it said; None if it does not say."""
    usage = event.usage
    if not usage.input_tokens:
        return None
    frames = MESSAGE_FRAME_TOKENS * (1 + len(event.tool_calls))
    tokens = usage.input_tokens + usage.output_tokens + frames
    return Counted(tokens, said, before.agent, before.policy)


def _weight_of_reply(event: e.ModelReplied) -> int:
    weight = MESSAGE_FRAME_TOKENS * len(event.tool_calls)
    if event.tool_calls:
        weight += len(_encode(event.tool_calls))
    return weight + (0 if event.extra is None else len(_encode(event.extra)))


def summarised(state: State, content: Any) -> int:
    """Return the measure of a history with a summary; what it replaces may be shown in part."""
    return state.said_tokens_max + bytes_of(content) + SUMMARY_FRAME_TOKENS


def input_tokens_max(state: State, spec: AgentSpec, digest: str, policy: str) -> int:
    """Return how many tokens a model can be shown now, at most."""
    counted = state.counted
    if counted is not None and (counted.agent, counted.policy) == (digest, policy):
        return counted.tokens + state.said_tokens_max - counted.said
    tools = sum(len(_encode(tool)) + TOOL_FRAME_TOKENS for tool in spec.tools)
    return state.said_tokens_max + bytes_of(spec.instructions) + tools + PROMPT_FRAME_TOKENS
