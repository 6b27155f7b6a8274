"""Lists: whole, or page by page if they are asked for so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from msgspec import UNSET

from perdure.api.limits import PAGE_ITEMS
from perdure.api.pages import cursor, page, page_items, place_of
from perdure.api.shapes import Page, PageQuery
from perdure.ports.entries import Entry
from perdure.server.desk import Desk

T = TypeVar("T")
E = TypeVar("E", bound=Entry)
Place = TypeVar("Place", bound=tuple[Any, ...])


def asked(query: PageQuery) -> bool:
    """Say whether somebody wants a list page by page."""
    return query.limit is not UNSET or query.after is not UNSET


def place(query: PageQuery, columns: type[Place]) -> Place | None:
    """Return where to go on; None for the beginning. Raises `Rejected` (422)."""
    return place_of(query.after, columns) if isinstance(query.after, str) and query.after else None


async def listed(
    desk: Desk,
    query: Any,
    kind: type[E],
    show: Callable[[E], Any],
    *,
    of: int | None = None,
    newest: bool = False,
    archived: bool = False,
) -> Page[Any]:
    """Return a page of entries; all of them to who asks for no page."""
    limit = page_items(query.limit, PAGE_ITEMS) if asked(query) else None
    at = place(query, tuple[int])
    found = await desk.catalog.list(
        kind,
        of=of,
        after=None if at is None else at[0],
        limit=None if limit is None else limit + 1,
        newest_first=newest,
        archived=archived,
    )
    more = limit is not None and len(found) > limit
    shown = found[:limit]
    following = cursor(shown[-1].id) if more else None
    return page([show(one) for one in shown], following, asked=asked(query))


def part(
    items: Iterable[T], query: PageQuery, where: Callable[[T], Place], columns: type[Place]
) -> Page[T]:
    """Return a page of items that are at hand, in the order of where they stand."""
    at = place(query, columns)
    found = sorted((one for one in items if at is None or where(one) > at), key=where)
    if not asked(query):
        return page(found, None, asked=False)
    limit = page_items(query.limit, PAGE_ITEMS)
    shown = found[:limit]
    more = len(shown) < len(found)
    return page(shown, cursor(*where(shown[-1])) if more else None, asked=True)
