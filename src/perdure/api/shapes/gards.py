"""Gards: execution contexts, each with one worker, and the ports of what runs there."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType, field

from perdure.api.shapes.common import Name, Shape, Timestamp

GardStatus = Literal["pending", "ready", "disconnected", "destroyed"]


class Port(Shape, frozen=True, kw_only=True):
    """A port that a gard's worker has opened."""

    id: int
    internal_port: int
    url: str | None = None
    name: str | None = None
    protocol: Literal["http", "https", "tcp"] = "http"


class Gard(Shape, frozen=True, kw_only=True):
    """An execution context."""

    id: int
    name: str | None = None
    status: GardStatus
    template: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    inserted_at: Timestamp
    updated_at: Timestamp


class GardMade(Gard, frozen=True, kw_only=True):
    """A new gard, with the token that its worker claims it with: it is shown this once."""

    claim_token: str


class GardWhole(Gard, frozen=True, kw_only=True):
    """A gard with its ports."""

    ports: tuple[Port, ...] = ()


class GardCreate(Shape, frozen=True, kw_only=True):
    """A new gard."""

    name: Name | None = None
    template: Name | None = None
    metadata: dict[str, Any] | None = None


class GardUpdate(Shape, frozen=True, kw_only=True):
    """A change of a gard."""

    name: Name | UnsetType | None = UNSET
    template: Name | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
