"""Sessions and conversations: one thing under two names; and the messages that they are made of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, UnsetType

from perdure.api.limits import CONTEXT_MESSAGES_MAX, LINE_CHARS_MAX
from perdure.api.shapes.budgets import BudgetCreate
from perdure.api.shapes.common import (
    Content,
    ConversationKey,
    Id,
    PageQuery,
    Shape,
    Timestamp,
)
from perdure.api.shapes.runs import Run, RunStatus


class Conversation(Shape, frozen=True, kw_only=True):
    """A session of one agent, without its messages."""

    id: int
    agent_id: int
    key: str
    summary: Any = None
    message_count: int = 0
    token_estimate: int = 0
    inserted_at: Timestamp
    updated_at: Timestamp


class Session(Shape, frozen=True, kw_only=True):
    """A session across agents, with its latest run."""

    id: int
    key: str
    agent_id: int
    agent_name: str
    gard_id: int | None = None
    message_count: int = 0
    summary: Any = None
    title: str | None = None
    status: str
    run: Run | None = None
    first_message: Any = None
    archived_at: Timestamp | None = None
    inserted_at: Timestamp
    updated_at: Timestamp


class RunGlimpse(Shape, frozen=True, kw_only=True):
    """A run inside a session."""

    id: int
    status: RunStatus


class SessionWhole(Session, frozen=True, kw_only=True):
    """A session with what was said in it, and its runs, oldest first."""

    messages: tuple[dict[str, Any], ...]
    runs: tuple[RunGlimpse, ...]


class SessionQuery(PageQuery, frozen=True, kw_only=True):
    """Which sessions to list, the latest first."""

    archived: bool = False
    subagents: bool = True


class SessionUpdate(Shape, frozen=True, kw_only=True):
    """A session's title; a blank one takes it away."""

    title: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | UnsetType | None = UNSET


class ContextMessage(Shape, frozen=True, kw_only=True):
    """A message that a new run is given to start with."""

    role: Literal["user", "assistant"]
    content: Content


class MessageContext(Shape, frozen=True, kw_only=True):
    """What a new run is given to start with: earlier messages, and data."""

    messages: Annotated[tuple[ContextMessage, ...], Meta(max_length=CONTEXT_MESSAGES_MAX)] = ()
    data: dict[str, Any] | None = None


class MessageCreate(Shape, frozen=True, kw_only=True):
    """A message to an agent, in the conversation of that key or in a fresh one.

    `mode` says what becomes of it when a run is in progress there: it waits its turn (`queue`), the
    run takes it in at its next step (`steer`), it ends the run (`interrupt`), or 409 (`reject`).
    A `budget` may be less than the agent's, never more.
    """

    SAID_IF_MISSING: ClassVar = {"content": "missing required field: content"}

    content: Content
    conversation_key: ConversationKey | None = None
    context: MessageContext | None = None
    gard_id: Id | None = None
    mode: Literal["queue", "steer", "interrupt", "reject"] = "queue"
    budget: BudgetCreate | None = None
