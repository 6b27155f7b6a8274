"""Agents, and the bodies that make and change them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from perdure.api.limits import LINE_CHARS_MAX, PROMPT_CHARS_MAX, STEPS_MAX
from perdure.api.shapes.common import Name, Shape, Timestamp

AgentStatus = Literal["inactive", "idle", "running", "active"]
Purpose = Annotated[str, Meta(max_length=LINE_CHARS_MAX)]
Prompt = Annotated[str, Meta(min_length=1, max_length=PROMPT_CHARS_MAX)]
Steps = Annotated[int, Meta(ge=1, le=STEPS_MAX)]

MODEL = "claude-sonnet-5"
STEPS = 50


class Agent(Shape, frozen=True, kw_only=True):
    """A definition: model, prompt, limits. Its `model_config` is written, never read back."""

    id: int
    name: str
    purpose: str | None = None
    status: str = "idle"
    system_prompt: str = ""
    model: str = MODEL
    context_strategy: str = "sliding_window"
    context_window: int = 20
    context_policy: dict[str, Any] | None = None
    max_steps: int = STEPS
    archived_at: Timestamp | None = None
    inserted_at: Timestamp
    updated_at: Timestamp


class AgentCreate(Shape, frozen=True, kw_only=True):
    """A new agent. What `model_config` may hold is said with `api.definition`."""

    name: Name
    system_prompt: Prompt
    status: AgentStatus = "idle"
    purpose: Purpose | None = None
    model: Name = MODEL
    model_config: dict[str, Any] | None = None
    tools_config: dict[str, Any] | None = None
    max_steps: Steps = STEPS


class AgentUpdate(Shape, frozen=True, kw_only=True):
    """A change of an agent: what is given is replaced whole, what is not stays."""

    name: Name | UnsetType = UNSET
    system_prompt: Prompt | UnsetType = UNSET
    status: AgentStatus | UnsetType = UNSET
    purpose: Purpose | UnsetType | None = UNSET
    model: Name | UnsetType = UNSET
    model_config: dict[str, Any] | UnsetType | None = UNSET
    tools_config: dict[str, Any] | UnsetType | None = UNSET
    max_steps: Steps | UnsetType = UNSET


class AgentStanding(Shape, frozen=True, kw_only=True):
    """How an agent's conversation `default` stands; only the first two fields if it is not live."""

    agent_id: int
    status: str
    conversation_id: int | UnsetType = UNSET
    conversation_key: str | UnsetType = UNSET
    run_id: int | UnsetType | None = UNSET
    step: int | UnsetType = UNSET
    message_count: int | UnsetType = UNSET
