"""MemoryCatalog: everything a catalog promises, except that it outlives the process."""

from __future__ import annotations

import builtins
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from perdure.ports.catalog import NameTaken, Numbered, Stale, check_text, decode, encode
from perdure.ports.entries import Entry, Tenant

E = TypeVar("E", bound=Entry)


class MemoryCatalog:
    """A deterministic catalog without threads and without time of its own.

    Entries are kept as bytes, so that nobody can change one by holding on to what is inside.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._ids: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
        self._entries: defaultdict[tuple[str, str], dict[int, bytes]] = defaultdict(dict)
        self._names: dict[tuple[str, str, str], int] = {}
        self._handles: dict[tuple[str, str], tuple[str, int]] = {}
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._named: dict[tuple[str, str, int], str] = {}

    async def create(self, tenant: str, entry: E) -> E:
        """Keep a new entry."""
        now = self._now_ms()
        entry = msgspec.structs.replace(entry, id=0, revision=1, inserted_at=now, updated_at=now)
        encode(entry)
        self._check_free(tenant, entry)
        entry = msgspec.structs.replace(entry, id=next(self._ids[entry.kind]))
        return self._keep(tenant, entry)

    async def get(self, tenant: str, kind: type[E], id: int) -> E | None:
        """Return an entry, archived or not."""
        return self._get(tenant, kind, id)

    async def find(self, tenant: str, kind: type[E], name: str) -> E | None:
        """Return the entry with this unique name."""
        known = self._names.get((tenant, kind.kind, name))
        return None if known is None else self._get(tenant, kind, known)

    async def list(
        self,
        tenant: str,
        kind: type[E],
        *,
        of: int | None = None,
        after: int | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        archived: bool = False,
    ) -> builtins.list[E]:
        """Return entries in the order of their ids, or against it."""
        kept = self._entries.get((tenant, kind.kind), {})
        ids = sorted(kept, reverse=newest_first)
        if after is not None:
            ids = [one for one in ids if (one < after if newest_first else one > after)]
        found = (decode(kind, kept[one]) for one in ids)
        wanted = (
            entry
            for entry in found
            if (of is None or entry.of == of) and (archived or entry.archived_at is None)
        )
        return builtins.list(itertools.islice(wanted, limit))

    async def update(self, tenant: str, entry: E) -> E:
        """Put an entry in the place of the revision that was read."""
        known = self._get(tenant, type(entry), entry.id)
        if known is None or known.revision != entry.revision:
            raise Stale(entry)
        entry = msgspec.structs.replace(
            entry,
            revision=entry.revision + 1,
            inserted_at=known.inserted_at,
            updated_at=self._now_ms(),
        )
        encode(entry)
        self._check_free(tenant, entry)
        self._forget(tenant, known)
        return self._keep(tenant, entry)

    async def delete(self, tenant: str, kind: type[Entry], id: int) -> bool:
        """Forget an entry."""
        known = self._get(tenant, kind, id)
        if known is not None:
            self._forget(tenant, known)
        return known is not None

    async def locate(self, kind: type[E], handle: str) -> tuple[str, E] | None:
        """Return the entry with this handle and the slug of its tenant."""
        place = self._handles.get((kind.kind, handle))
        if place is None:
            return None
        tenant, known = place
        return tenant, decode(kind, self._entries[tenant, kind.kind][known])

    async def tenants(self) -> builtins.list[Tenant]:
        """Return every tenant that is not archived, in the order of their ids."""
        places = [place for (kind, _), place in self._handles.items() if kind == Tenant.kind]
        found = [decode(Tenant, self._entries[slug, Tenant.kind][one]) for slug, one in places]
        return sorted((t for t in found if t.archived_at is None), key=lambda tenant: tenant.id)

    async def numbers(self, tenant: str, of: Numbered, ids: Sequence[str]) -> builtins.list[int]:
        """Return the numbers of runs or sessions, giving one to each that has none."""
        check_text(of, ids)
        for one in ids:
            if (tenant, of, one) not in self._numbers:
                number = next(self._ids[of])
                self._numbers[tenant, of, one] = number
                self._named[tenant, of, number] = one
        return [self._numbers[tenant, of, one] for one in ids]

    async def named(self, tenant: str, of: Numbered, number: int) -> str | None:
        """Return the id with this number."""
        return self._named.get((tenant, of, number))

    async def close(self) -> None:
        """Nothing is held; what was kept goes with the object."""

    def _get(self, tenant: str, kind: type[E], id: int) -> E | None:
        body = self._entries.get((tenant, kind.kind), {}).get(id)
        return None if body is None else decode(kind, body)

    def _check_free(self, tenant: str, entry: Entry) -> None:
        if entry.unique is not None:
            holder = self._names.get((tenant, entry.kind, entry.unique), entry.id)
            if holder != entry.id:
                raise NameTaken(entry, "name")
        if entry.handle is not None:
            place = self._handles.get((entry.kind, entry.handle), (tenant, entry.id))
            if place != (tenant, entry.id):
                raise NameTaken(entry, entry.handle_field)

    def _keep(self, tenant: str, entry: E) -> E:
        body = encode(entry)
        self._entries[tenant, entry.kind][entry.id] = body
        if entry.unique is not None:
            self._names[tenant, entry.kind, entry.unique] = entry.id
        if entry.handle is not None:
            self._handles[entry.kind, entry.handle] = (tenant, entry.id)
        return decode(type(entry), body)

    def _forget(self, tenant: str, entry: Entry) -> None:
        del self._entries[tenant, entry.kind][entry.id]
        if entry.unique is not None:
            del self._names[tenant, entry.kind, entry.unique]
        if entry.handle is not None:
            del self._handles[entry.kind, entry.handle]
