"""Triggers: messages that the clock sends."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from perdure.api.limits import NAME_CHARS_MAX, PROMPT_CHARS_MAX
from perdure.api.shapes.common import ConversationKey, Id, Name, PageQuery, Shape, Timestamp

Cron = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Text = Annotated[str, Meta(min_length=1, max_length=PROMPT_CHARS_MAX)]


class Trigger(Shape, frozen=True, kw_only=True):
    """A message that is sent whenever its cron expression says so."""

    id: int
    agent_id: int
    name: str
    cron: str
    message: str
    conversation_key: str | None = None
    enabled: bool = True
    time_zone: str = "UTC"
    catch_up: bool = False
    last_fired_at: Timestamp | None = None
    inserted_at: Timestamp
    updated_at: Timestamp


class TriggerCreate(Shape, frozen=True, kw_only=True):
    """A new trigger. With `catch_up` one missed firing is made up for after a pause."""

    agent_id: Id
    name: Name
    cron: Cron
    message: Text
    conversation_key: ConversationKey | None = None
    enabled: bool = True
    time_zone: Name = "UTC"
    catch_up: bool = False


class TriggerUpdate(Shape, frozen=True, kw_only=True):
    """A change of a trigger."""

    name: Name | UnsetType = UNSET
    cron: Cron | UnsetType = UNSET
    message: Text | UnsetType = UNSET
    conversation_key: ConversationKey | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    time_zone: Name | UnsetType = UNSET
    catch_up: bool | UnsetType = UNSET


class TriggerQuery(PageQuery, frozen=True, kw_only=True):
    """Which triggers to list."""

    agent_id: Id | UnsetType = UNSET
