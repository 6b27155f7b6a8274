"""What all shapes have in common: the envelope, pages, times, contents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from perdure.api.limits import ID_MAX, KEY_CHARS_MAX, LINE_CHARS_MAX, NAME_CHARS_MAX

T = TypeVar("T")

Timestamp = Annotated[
    str, Meta(description="UTC, with microseconds.", extra_json_schema={"format": "date-time"})
]
Content = str | dict[str, Any] | list[Any]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Line = Annotated[str, Meta(min_length=1, max_length=LINE_CHARS_MAX)]
ConversationKey = Annotated[str, Meta(min_length=1, max_length=KEY_CHARS_MAX)]
Id = Annotated[int, Meta(ge=1, le=ID_MAX)]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object of the API. A field that is `UNSET` is not there at all."""


class Data(msgspec.Struct, Generic[T], frozen=True):
    """The envelope of an answer."""

    data: T


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A part of a list, if a part was asked for: `next` is where to go on, null at the end.

    A list that is asked for without `after` and `limit` has no `next`.
    """

    data: list[T]
    next: str | UnsetType | None = UNSET


class PageQuery(Shape, frozen=True, kw_only=True):
    """Which part of a list: at most `limit` items, from the cursor `after` on.

    An empty `after` is the beginning of the list.
    """

    limit: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    after: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | UnsetType | None = UNSET


class ForceQuery(Shape, frozen=True, kw_only=True):
    """Whether to go ahead although a run is in progress."""

    force: bool = False


class Status(Shape, frozen=True, kw_only=True):
    """That something was done, in one word."""

    status: str


def timestamp(at: int) -> str:
    """Return a time in milliseconds since 1970 as the API writes it."""
    seconds, millis = divmod(at, 1000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{millis:03d}000Z"


def timestamp_or_none(at: int | None) -> str | None:
    """Return a time as the API writes it, or None."""
    return None if at is None else timestamp(at)
