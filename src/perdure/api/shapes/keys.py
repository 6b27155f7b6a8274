"""API keys: who may do what, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from perdure.api.limits import LIST_ITEMS_MAX
from perdure.api.shapes.common import Id, Name, Shape, Timestamp
from perdure.core.limits import ROLES_MAX

Scope = Literal["admin", "run", "read", "worker"]
Capability = Literal["llm", "tools"]
LIFE_SECONDS_MAX = 10 * 366 * 24 * 3600


class Key(Shape, frozen=True, kw_only=True):
    """An API key, without its secret."""

    id: int
    name: str | None = None
    scope: Scope
    gard_id: int | None = None
    capabilities: tuple[Capability, ...] = ()
    roles: tuple[str, ...] = ()
    expires_at: Timestamp | None = None
    last_used_at: Timestamp | None = None
    revoked_at: Timestamp | None = None
    inserted_at: Timestamp


class KeyMade(Key, frozen=True, kw_only=True):
    """A new API key: `key` is shown this once."""

    key: str


class KeyCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new key. Without a scope it is a worker's; a gard and capabilities are for workers only.

    Whoever approves calls with it has the `roles`.
    """

    name: Name | None = None
    scope: Scope = "worker"
    gard_id: Id | None = None
    capabilities: Annotated[tuple[Capability, ...], Meta(max_length=LIST_ITEMS_MAX)] | None = None
    expires_in_s: Annotated[int, Meta(ge=1, le=LIFE_SECONDS_MAX)] | None = None
    roles: Annotated[tuple[Name, ...], Meta(max_length=ROLES_MAX)] = ()
