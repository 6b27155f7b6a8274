"""Catalog: what a server remembers besides sessions, tenant by tenant.

It keeps entries (`perdure.ports.entries`) and numbers, and knows no rule but three: a name is
unique among the entries of its kind that are not archived, a handle among those of all tenants, and
an update has to know the entry's latest revision. The last one is what makes a claim atomic: of all
that update the same revision, one wins and the others get `Stale`.

Whatever belongs to another tenant reads as missing. Code that serves a tenant gets a
`TenantCatalog` and so cannot name another one.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

import msgspec

from perdure.core.errors import InvalidInput, StoreError
from perdure.ports.entries import Entry, Tenant

E = TypeVar("E", bound=Entry)
Numbered = Literal["run", "session"]

NUMBER_MAX = 2**63 - 1


class NameTaken(StoreError):
    """Another entry has this name already; `field` is the field that holds it."""

    def __init__(self, entry: Entry, field: str) -> None:
        super().__init__(f"there is another {entry.kind} with this {field}: choose another one")
        self.field = field


class Stale(StoreError):
    """The entry was changed, or deleted, since it was read: read it again and decide anew."""

    def __init__(self, entry: Entry) -> None:
        was = f"the {entry.kind} {entry.id} is no longer at revision {entry.revision}"
        super().__init__(f"{was}: read it again")


class Catalog(Protocol):
    """Entries and numbers, each in its tenant.

    What was returned is durable. Any method may raise `Unavailable`; then it is not known whether a
    write happened. Methods are called from one event loop.
    """

    async def create(self, tenant: str, entry: E) -> E:
        """Keep a new entry; return it with its id, revision 1 and times.

        Raises `NameTaken`, and `InvalidInput` for what JSON cannot hold.
        """
        ...

    async def get(self, tenant: str, kind: type[E], id: int) -> E | None:
        """Return an entry, archived or not; None if the tenant has none with this id."""
        ...

    async def find(self, tenant: str, kind: type[E], name: str) -> E | None:
        """Return the entry whose `unique` name this is; None if the tenant has none."""
        ...

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
        """Return entries in the order of their ids, or against it.

        `of` keeps those that belong to that entry; `after` is the id to continue after, in the
        order asked for; `archived` includes those that are put away.
        """
        ...

    async def update(self, tenant: str, entry: E) -> E:
        """Put an entry in the place of the one with its id and revision; return it with the next.

        Raises `Stale` if that is not the revision on record or the tenant has no such entry, and
        otherwise what `create` raises. `inserted_at` stays what it was.
        """
        ...

    async def delete(self, tenant: str, kind: type[Entry], id: int) -> bool:
        """Forget an entry; False if the tenant has none with this id."""
        ...

    async def locate(self, kind: type[E], handle: str) -> tuple[str, E] | None:
        """Return the entry with this handle and the slug of its tenant; None if there is none.

        It is the only lookup that does not know the tenant: by what nobody can guess (a key, a
        hook), or by a tenant's own slug.
        """
        ...

    async def tenants(self) -> builtins.list[Tenant]:
        """Return every tenant that is not archived, in the order of their ids."""
        ...

    async def numbers(self, tenant: str, of: Numbered, ids: Sequence[str]) -> builtins.list[int]:
        """Return the numbers of runs or sessions, in order, giving one to each that has none.

        A number stays what it is for ever and is given to no other, in no tenant. Raises
        `InvalidInput` for an id that is not Unicode.
        """
        ...

    async def named(self, tenant: str, of: Numbered, number: int) -> str | None:
        """Return the id with this number; None if the tenant has none."""
        ...


class TenantCatalog:
    """A catalog as one tenant sees it: the same operations, without a choice of tenant."""

    __slots__ = ("_catalog", "tenant")

    def __init__(self, catalog: Catalog, tenant: str) -> None:
        self._catalog = catalog
        self.tenant = tenant

    async def create(self, entry: E) -> E:
        """Keep a new entry; return it with id and times. Raises `NameTaken`, `InvalidInput`."""
        return await self._catalog.create(self.tenant, entry)

    async def get(self, kind: type[E], id: int) -> E | None:
        """Return an entry, archived or not."""
        return await self._catalog.get(self.tenant, kind, id)

    async def find(self, kind: type[E], name: str) -> E | None:
        """Return the entry with this unique name."""
        return await self._catalog.find(self.tenant, kind, name)

    async def list(
        self,
        kind: type[E],
        *,
        of: int | None = None,
        after: int | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        archived: bool = False,
    ) -> builtins.list[E]:
        """Return entries in the order of their ids, or against it, as `Catalog.list` does."""
        return await self._catalog.list(
            self.tenant,
            kind,
            of=of,
            after=after,
            limit=limit,
            newest_first=newest_first,
            archived=archived,
        )

    async def update(self, entry: E) -> E:
        """Replace the revision that was read. Raises `Stale`, `NameTaken`, `InvalidInput`."""
        return await self._catalog.update(self.tenant, entry)

    async def change(self, kind: type[E], id: int, change: Callable[[E], E]) -> E | None:
        """Update an entry by what `change` makes of it, whoever else changes it meanwhile.

        `change` may be called several times; whatever it raises ends the attempt. What is not
        different is not written. Returns the entry, or None if there is none with this id.
        """
        while (found := await self.get(kind, id)) is not None:
            wanted = change(found)
            if wanted == found:
                return found
            try:
                return await self.update(wanted)
            except Stale:
                continue
        return None

    async def put(self, entry: E) -> E:
        """Create an entry, or put it in the place of the one that has its unique name.

        What is not different is not written.
        """
        assert entry.unique is not None, "only an entry with a name can be put in a place"
        while True:
            found = await self.find(type(entry), entry.unique)
            try:
                if found is None:
                    return await self.create(entry)
                wanted = _in_place_of(found, entry)
                return found if wanted == found else await self.update(wanted)
            except NameTaken as taken:
                if taken.field == entry.handle_field:
                    raise
            except Stale:
                continue

    async def delete(self, kind: type[Entry], id: int) -> bool:
        """Forget an entry; False if there is none with this id."""
        return await self._catalog.delete(self.tenant, kind, id)

    async def numbers(self, of: Numbered, ids: Sequence[str]) -> builtins.list[int]:
        """Return the numbers of runs or sessions, in order, giving one to each that has none."""
        return await self._catalog.numbers(self.tenant, of, ids)

    async def named(self, of: Numbered, number: int) -> str | None:
        """Return the id with this number."""
        return await self._catalog.named(self.tenant, of, number)


def encode(entry: Entry) -> bytes:
    """Return the JSON that an adapter keeps of an entry. Raises `InvalidInput`."""
    try:
        return msgspec.json.encode(entry)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the {entry.kind} cannot be kept as JSON: {error}") from None


def decode(kind: type[E], body: bytes) -> E:
    """Return the entry that `encode` made these bytes of. Raises `StoreError`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"the {kind.kind} on record cannot be read ({error}): another version wrote it"
        ) from None


def storable(number: int) -> bool:
    """Say whether an id or number can be one that an adapter gave."""
    return 0 < number <= NUMBER_MAX


def check_text(of: Numbered, ids: Sequence[str]) -> None:
    """Raise `InvalidInput` for an id that no adapter could keep."""
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the id of a {of} is not valid Unicode: {error}") from None


def _in_place_of(found: E, entry: E) -> E:
    return msgspec.structs.replace(
        entry,
        id=found.id,
        revision=found.revision,
        inserted_at=found.inserted_at,
        updated_at=found.updated_at,
    )
