"""What was spent: tokens and money, by model; and small shapes of the server itself."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType, field

from perdure.api.limits import LINE_CHARS_MAX
from perdure.api.shapes.common import Shape, Timestamp
from perdure.api.shapes.runs import Cost


class ModelUsage(Shape, frozen=True, kw_only=True):
    """What one model was used for."""

    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: Cost


class Usage(Shape, frozen=True, kw_only=True):
    """What an agent, or with `agent_id` null the whole tenant, has used in a span of time."""

    agent_id: int | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None
    runs: int
    input_tokens: int
    output_tokens: int
    cost: Cost
    models: tuple[ModelUsage, ...] = ()


class UsageQuery(Shape, frozen=True, kw_only=True):
    """Which span of time: runs that began at or after `since` and before `until`, in RFC 3339."""

    since: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | UnsetType = UNSET
    until: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | UnsetType = UNSET


class FirstRun(Shape, frozen=True, kw_only=True):
    """Who used the server for the first time; it is taken and not kept."""

    source: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | None = None
    version: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | None = None


class Health(Shape, frozen=True, kw_only=True):
    """Whether the node lives, or can serve: `checks` says of each part why it cannot.

    `durability` is what it is worth that something was accepted: memory, os, fsynced or
    replicated(n).
    """

    status: str
    checks: dict[str, str] = field(default_factory=dict)
    durability: str | UnsetType = UNSET
