"""What a worker is asked to do. Nothing here is ever null but what says so: peers break on it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from perdure.core.agent import Effect
from perdure.core.ids import SessionId
from perdure.core.messages import AssistantMessage, Message

Number = int | str
"""An id of the REST surface: a number; a text where the catalog knows none."""


class Detail(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What only a native worker is told of a task: the call that it is.

    With `probe`, the tool is asked what became of the call, and not called. Only a tool of the same
    `version` may execute it.
    """

    session: SessionId
    run: str
    call: str
    agent: str
    attempt: int = 1
    effect: Effect = "once"
    timeout_ms: int = 300_000
    probe: bool = False
    version: str = ""


class ToolSchema(msgspec.Struct, frozen=True):
    """A tool as a model is shown it."""

    name: str
    description: str
    parameters: dict[str, Any]


class MessagesDelta(msgspec.Struct, frozen=True, kw_only=True):
    """How the messages differ from those last sent for this run on this connection.

    There were `base_count`; `drop` of them go from the front, and `append` come to the end.
    """

    base_count: int
    drop: int = 0
    append: tuple[Message, ...] = ()


class LlmTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A model call. It has either `messages` or `messages_delta`."""

    task_id: str
    model: str
    system_prompt: str
    summary: Any = None
    date: str | None = None
    messages: tuple[Message, ...] | UnsetType = UNSET
    messages_delta: MessagesDelta | UnsetType = UNSET
    tools: tuple[ToolSchema, ...] = ()
    context_policy: dict[str, Any] | None = None
    max_tokens: int | None = None
    agent_id: Number = 0
    run_id: Number = 0
    step: int = 0
    purpose: Literal["compact"] | UnsetType = UNSET
    perdure: Detail | UnsetType = UNSET


class ToolTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tool call. Under one `idempotency_key` a tool acts once, however often it is asked."""

    task_id: str
    tool_name: str
    input: dict[str, Any]
    agent_id: Number = 0
    run_id: Number = 0
    idempotency_key: str | None = None
    perdure: Detail | UnsetType = UNSET


def for_norns(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return messages without what only perdure knows: Norns' workers hand every key to a provider.

    Messages that have nothing of the kind are the same objects.
    """
    marked = [n for n, message in enumerate(messages) if _is_marked(message)]
    if not marked:
        return messages
    plain = list(messages)
    for n in marked:
        plain[n] = _plain(plain[n])
    return tuple(plain)


def _is_marked(message: Message) -> bool:
    if not isinstance(message, AssistantMessage):
        return False
    undecodable = [r for r in message.tool_calls if r.undecodable is not None]
    return message.extra is not None or bool(undecodable)


def _plain(message: Message) -> Message:
    assert isinstance(message, AssistantMessage)
    calls = tuple(replace(request, undecodable=None) for request in message.tool_calls)
    return AssistantMessage(message.content, calls)
