"""Lists of entries: whole, or page by page if they are asked for so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from perdure.api.pages import cursor, page, page_items, place_of
from perdure.api.shapes import Page
from perdure.ports.entries import Entry
from perdure.server.desk import Desk

E = TypeVar("E", bound=Entry)


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
    asked = not (isinstance(query.limit, UnsetType) and isinstance(query.after, UnsetType))
    limit = page_items(query.limit, 100) if asked else None
    after = None if query.after is UNSET else place_of(query.after, tuple[int])[0]
    found = await desk.catalog.list(
        kind,
        of=of,
        after=after,
        limit=None if limit is None else limit + 1,
        newest_first=newest,
        archived=archived,
    )
    more = limit is not None and len(found) > limit
    shown = found[:limit] if limit is not None else found
    return page([show(one) for one in shown], cursor(shown[-1].id) if more else None, asked=asked)
