"""Endpoints: addresses that are told about runs, and what they are owed."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from perdure.api.limits import LINE_CHARS_MAX, LIST_ITEMS_MAX
from perdure.api.shapes.common import Id, Name, Shape, Timestamp

NoticeType = Literal[
    "run.started", "run.waiting", "run.reminded", "run.completed", "run.failed", "run.cancelled"
]
Url = Annotated[str, Meta(min_length=1, max_length=LINE_CHARS_MAX)]
NoticeTypes = Annotated[tuple[NoticeType, ...], Meta(max_length=LIST_ITEMS_MAX)]


class Endpoint(Shape, frozen=True, kw_only=True):
    """An address that is told about runs: about all events without `events`, of all agents.

    One that is not `enabled` is paused, and is owed what happens meanwhile; unless
    `disabled_because` says why it was given up, and then it is owed nothing.
    """

    id: int
    name: str
    url: str
    events: tuple[NoticeType, ...] = ()
    agent_id: int | None = None
    enabled: bool = True
    disabled_because: str | None = None
    failures: int = 0
    inserted_at: Timestamp
    updated_at: Timestamp


class EndpointMade(Endpoint, frozen=True, kw_only=True):
    """An endpoint with a new secret, by which its receiver knows us: it is shown this once."""

    signing_secret: str


class EndpointCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new endpoint: an http or https URL of a public address."""

    name: Name
    url: Url
    events: NoticeTypes = ()
    agent_id: Id | None = None
    enabled: bool = True


class EndpointUpdate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of an endpoint; to enable it is to forget its failures."""

    name: Name | UnsetType = UNSET
    url: Url | UnsetType = UNSET
    events: NoticeTypes | UnsetType = UNSET
    agent_id: Id | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class Delivery(Shape, frozen=True, kw_only=True):
    """An event that an endpoint is owed, or was. Every attempt says the same `webhook_id`."""

    id: int
    endpoint_id: int
    webhook_id: str
    event: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int = 0
    next_at: Timestamp | None = None
    last_error: str | None = None
    inserted_at: Timestamp
    updated_at: Timestamp
