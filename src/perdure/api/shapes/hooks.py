"""Hooks: messages that somebody else's webhook sends."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from perdure.api.limits import NAME_CHARS_MAX
from perdure.api.shapes.common import Id, Name, Shape, Timestamp

SignatureType = Literal["none", "github", "stripe", "slack", "standard"]
DotPath = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
Secret = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]


class Hook(Shape, frozen=True, kw_only=True):
    """An address that takes webhooks.

    Its signing secret is never shown, its token and path only in the answer that made it.
    """

    id: int
    agent_id: int
    name: str
    token: str | None = None
    path: str | None = None
    message_path: str | None = None
    conversation_key_path: str | None = None
    signature_type: SignatureType = "none"
    enabled: bool = True
    inserted_at: Timestamp
    updated_at: Timestamp


class HookCreate(Shape, frozen=True, kw_only=True):
    """A new hook; every `signature_type` but `none` needs a `signing_secret`."""

    agent_id: Id
    name: Name
    message_path: DotPath | None = None
    conversation_key_path: DotPath | None = None
    signature_type: SignatureType = "none"
    signing_secret: Secret | None = None
    enabled: bool = True


class HookUpdate(Shape, frozen=True, kw_only=True):
    """A change of a hook."""

    name: Name | UnsetType = UNSET
    message_path: DotPath | UnsetType | None = UNSET
    conversation_key_path: DotPath | UnsetType | None = UNSET
    signature_type: SignatureType | UnsetType = UNSET
    signing_secret: Secret | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
