"""NatsCatalog: every promise of the port, decided on all that there is.

A write is one message, guarded by the number of the last one in the stream: it is stored only if
nothing was written since what it was decided on. Whoever comes second folds what came first, and
decides anew. So a name, a handle, a revision and a number are each given once.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Protocol, TypeVar

from msgspec.structs import replace

from perdure.adapters.catalog.nats.shelf import (
    Gone,
    Kept,
    Shelf,
    encode_ids,
    wrap,
)
from perdure.adapters.catalog.nats.shelf import Numbered as NumberedIds
from perdure.adapters.catalog.nats.shelf import encode as encode_change
from perdure.adapters.nats.connection import Connection
from perdure.adapters.nats.log import IN_STREAM, Log, Overtaken, as_header
from perdure.adapters.nats.place import Place
from perdure.adapters.nats.streams import durability, ensure
from perdure.core.durability import Durability
from perdure.core.errors import Broken, InvalidInput
from perdure.ports.catalog import (
    NameTaken,
    Numbered,
    Stale,
    check_text,
    decode,
    encode,
    storable,
)
from perdure.ports.entries import Entry, Tenant

E = TypeVar("E", bound=Entry)

REPLICAS_MAX = 5
PATIENCE_SECONDS = 10
FRAME_BYTES = 4 * 1024
"""What subject and headers may add to a body, besides the change itself."""
HEADER_BYTES_MAX = 24 * 1024


class _HasTime(Protocol):
    def now_ms(self) -> int: ...


class NatsCatalog:
    """A catalog in one stream, which every node holds in memory."""

    durability: Durability

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        patience: float,
        now_ms: Callable[[], int],
        held: AsyncExitStack,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._now_ms = now_ms
        self._held = held
        self._shelf = Shelf()
        stream = prefix.replace(".", "_")
        self._log = Log(
            connection, stream, self._shelf.fold, whole=True, patience=patience, trimmed=True
        )
        self._turn = asyncio.Lock()
        self._closed = False

    @classmethod
    async def open(cls, url: str, clock: Callable[[], int] | _HasTime) -> NatsCatalog:
        """Open the catalog at `nats://host:port[,host]?name=&storage=&replicas=`.

        The settings are those of the store. Raises `Unavailable`, `InvalidInput`, and
        `StoreRefused` for a stream that may forget.
        """
        now_ms = clock if callable(clock) else clock.now_ms
        place = Place.parse(url)
        prefix = f"{place.name()}.catalog"
        patience = float(place.number("patience", PATIENCE_SECONDS, 1, 600))
        copies = place.number("replicas", 1, 1, REPLICAS_MAX)
        storage = place.choice("storage", "file", "memory")
        async with AsyncExitStack() as held:
            connection = await Connection.open(place)
            held.push_async_callback(connection.close)
            self = cls(connection, prefix, patience, now_ms, held)
            settings = await ensure(
                connection, self._log.stream, f"{prefix}.>", storage, copies, last_per_subject=1
            )
            self.durability = durability([settings])
            held.push_async_callback(self._log.close)
            await self._log.open()
            self._held = held.pop_all()
        return self

    async def close(self) -> None:
        """Hang up; safe to call twice."""
        if not self._closed:
            self._closed = True
            await self._held.aclose()

    async def create(self, tenant: str, entry: E) -> E:
        """Keep a new entry."""
        now = self._now_ms()
        entry = replace(entry, id=0, revision=1, inserted_at=now, updated_at=now)
        encode(entry)

        def decide() -> E:
            self._check_free(tenant, entry)
            return replace(entry, id=self._shelf.next_id(entry.kind))

        return await self._keep(tenant, decide)

    async def get(self, tenant: str, kind: type[E], id: int) -> E | None:
        """Return an entry, archived or not."""
        await self._catch_up()
        return self._get(tenant, kind, id)

    async def find(self, tenant: str, kind: type[E], name: str) -> E | None:
        """Return the entry with this unique name."""
        await self._catch_up()
        known = self._shelf.named(tenant, kind.kind, name)
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
        await self._catch_up()
        found = self._shelf.listed(tenant, kind.kind, of, after, newest_first, archived)
        return [decode(kind, body) for body in islice(found, limit)]

    async def update(self, tenant: str, entry: E) -> E:
        """Put an entry in the place of the revision that was read."""

        def decide() -> E:
            known = self._get(tenant, type(entry), entry.id)
            if known is None or known.revision != entry.revision:
                raise Stale(entry)
            changed = replace(
                entry,
                revision=entry.revision + 1,
                inserted_at=known.inserted_at,
                updated_at=self._now_ms(),
            )
            encode(changed)
            self._check_free(tenant, changed)
            return changed

        return await self._keep(tenant, decide)

    async def delete(self, tenant: str, kind: type[Entry], id: int) -> bool:
        """Forget an entry."""

        def decide() -> tuple[str, bytes, bytes] | None:
            if self._get(tenant, kind, id) is None:
                return None
            return f"entry.{kind.kind}.{id}", encode_change(Gone(kind.kind, id)), b""

        return await self._write(decide)

    async def locate(self, kind: type[E], handle: str) -> tuple[str, E] | None:
        """Return the entry with this handle and the slug of its tenant."""
        await self._catch_up()
        place = self._shelf.held(kind.kind, handle)
        if place is None:
            return None
        entry = self._get(place[0], kind, place[1])
        return None if entry is None else (place[0], entry)

    async def tenants(self) -> builtins.list[Tenant]:
        """Return every tenant that is not archived, in the order of their ids."""
        await self._catch_up()
        places = self._shelf.handles(Tenant.kind)
        found = [self._get(slug, Tenant, one) for slug, one in places]
        return [tenant for tenant in found if tenant is not None and tenant.archived_at is None]

    async def numbers(self, tenant: str, of: Numbered, ids: Sequence[str]) -> builtins.list[int]:
        """Return the numbers of runs or sessions, giving one to each that has none."""
        check_text(of, ids)

        def known() -> builtins.list[int | None]:
            return [self._shelf.number(tenant, of, one) for one in ids]

        def decide() -> tuple[str, bytes, bytes] | None:
            numbers = known()
            new = [one for one, number in zip(ids, numbers, strict=True) if number is None]
            if not new:
                return None
            first = self._shelf.next_id(of)
            change = encode_change(NumberedIds(tenant, of, first))
            return f"numbers.{of}.{first}", change, encode_ids(builtins.list(dict.fromkeys(new)))

        await self._write(decide)
        return [number for number in known() if number is not None]

    async def named(self, tenant: str, of: Numbered, number: int) -> str | None:
        """Return the id with this number."""
        await self._catch_up()
        return self._shelf.numbered(tenant, of, number)

    async def _catch_up(self) -> None:
        if self._closed:
            raise Broken("the catalog was closed")
        await self._log.sync()

    def _get(self, tenant: str, kind: type[E], id: int) -> E | None:
        body = self._shelf.body(tenant, kind.kind, id) if storable(id) else None
        return None if body is None else decode(kind, body)

    def _check_free(self, tenant: str, entry: Entry) -> None:
        if entry.unique is not None:
            holder = self._shelf.named(tenant, entry.kind, entry.unique)
            if holder not in (None, entry.id):
                raise NameTaken(entry, "name")
        if entry.handle is not None:
            place = self._shelf.held(entry.kind, entry.handle)
            if place not in (None, (tenant, entry.id)):
                raise NameTaken(entry, entry.handle_field)

    async def _keep(self, tenant: str, decide: Callable[[], E]) -> E:
        """Write what is decided, and return it as it is on record."""
        decided: builtins.list[E] = []

        def message() -> tuple[str, bytes, bytes]:
            entry = decide()
            decided[:] = [entry]
            kept = Kept(
                tenant,
                entry.kind,
                entry.id,
                entry.unique,
                entry.handle,
                entry.of,
                entry.archived_at is not None,
            )
            return f"entry.{entry.kind}.{entry.id}", encode_change(kept), encode(entry)

        await self._write(message)
        return decode(type(decided[0]), encode(decided[0]))

    async def _write(self, decide: Callable[[], tuple[str, bytes, bytes] | None]) -> bool:
        """Write what is decided on all that there is; False if that is nothing."""
        async with self._turn:
            await self._catch_up()
            while True:
                last = self._log.folded
                decided = decide()
                if decided is None:
                    return False
                name, change, body = decided
                wrapped = wrap(body)
                self._check_size(name, change, wrapped)
                try:
                    seq = await self._log.write(
                        f"{self._prefix}.{name}", change, wrapped, IN_STREAM, last
                    )
                except Overtaken:
                    continue
                await self._log.reach(seq)
                return True

    def _check_size(self, name: str, change: bytes, body: bytes) -> None:
        header = as_header(change)
        room = self._connection.message_bytes_max - FRAME_BYTES - len(header)
        if len(header) > HEADER_BYTES_MAX or len(body) > room:
            raise InvalidInput(
                f"{name} is too large for the NATS server: its name may have {HEADER_BYTES_MAX} "
                f"bytes, and all of it {room} after compression (max_payload)"
            )
