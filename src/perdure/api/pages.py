"""Cursors: where a page ended, as an opaque text that a client hands back."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UnsetType

from perdure.api.errors import INVALID, Rejected
from perdure.api.limits import ID_MAX, PAGE_ITEMS_MAX
from perdure.api.shapes.common import Page

T = TypeVar("T")
Place = TypeVar("Place")


def cursor(*place: int | str) -> str:
    """Return the cursor of a place: the columns that the list is sorted by."""
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def place_of(text: str, columns: type[Place]) -> Place:
    """Return the place of a cursor, as the tuple type `columns`: `tuple[int, str]`.

    Raises `Rejected` (422) for a text that is no cursor of this list.
    """
    try:
        body = urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
        place: Any = msgspec.json.decode(body, type=columns)
    except (binascii.Error, ValueError, RecursionError):
        place = None
    if place is None or any(isinstance(one, int) and abs(one) > ID_MAX for one in place):
        expected = f"{INVALID}: expected the `next` of an earlier page of this list"
        raise Rejected(422, {"after": [expected]})
    return cast("Place", place)


def page_items(limit: int | UnsetType, default: int | None) -> int | None:
    """Return how many items to list: at most `PAGE_ITEMS_MAX` if a limit is given.

    None means all of them.
    """
    if isinstance(limit, UnsetType):
        return default
    return min(limit, PAGE_ITEMS_MAX)


def page(items: Sequence[T], next_cursor: str | None, *, asked: bool) -> Page[T]:
    """Return a page; who did not ask for one (by `limit` or `after`) gets the bare list."""
    if not asked:
        return Page(list(items))
    return Page(list(items), next_cursor)
