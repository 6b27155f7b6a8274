"""RedisCatalog: one Redis server, any number of servers of ours, and every promise of the port."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from perdure.adapters.redis.names import escape, unescape
from perdure.adapters.redis.place import place_of
from perdure.adapters.redis.reader import Reader
from perdure.adapters.redis.realm import Clock, Realm
from perdure.adapters.redis.writer import Answer, Header, Request, Writer
from perdure.core.errors import Broken
from perdure.ports.catalog import (
    NUMBER_MAX,
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

PATIENCE_SECONDS = 5.0
SCHEMA = 1
PAGE = 500
NUMBERS_KNOWN_MAX = 10_000
"""How many numbers are kept in memory: they never change."""


class RedisCatalog:
    """A catalog in one Redis server that any number of servers share.

    What a lost connection left open is asked again, and executed once.
    """

    def __init__(self, realm: Realm) -> None:
        """Use `open` instead."""
        self._realm = realm
        self._reader = Reader(realm, realm.script(__package__, "common.lua", "read.lua"))
        self._writer: Writer[Request] = Writer(
            realm, realm.script(__package__, "common.lua", "write.lua", writes=True)
        )
        self._numbers: dict[tuple[str, Numbered, str], int] = {}
        self._closed = False

    @classmethod
    async def open(
        cls, url: str, clock: Clock = None, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> RedisCatalog:
        """Open the catalog at `url`, beginning it if there is none.

        The URL is that of a store, whose prefix it may share. Without a clock the server's time is
        what entries are dated with. Raises `InvalidInput`, `Unavailable`, and `StoreRefused` for a
        server that cannot be trusted with facts.
        """
        realm = Realm(place_of(url), clock, "catalog", SCHEMA, patience_seconds)
        try:
            await realm.open()
            return cls(realm)
        except BaseException:
            await realm.hang_up()
            raise

    async def close(self) -> None:
        """Write what was submitted, and close the connections; safe to call twice."""
        if not self._closed:
            self._closed = True
            await self._writer.stop()
            await self._reader.stop()
            await self._realm.hang_up()

    async def create(self, tenant: str, entry: E) -> E:
        """Keep a new entry."""
        place = ("create", 1, escape(tenant), entry.kind)
        return await self._keep(entry, place)

    async def get(self, tenant: str, kind: type[E], id: int) -> E | None:
        """Return an entry, archived or not."""
        if not storable(id):
            return None
        return _entry(kind, await self._read("get", escape(tenant), kind.kind, str(id)))

    async def find(self, tenant: str, kind: type[E], name: str) -> E | None:
        """Return the entry with this unique name."""
        if not _is_text(name):
            return None
        return _entry(kind, await self._read("find", escape(tenant), kind.kind, name))

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
        name = f"{'all' if archived else 'live'}:{escape(tenant)}/{kind.kind}"
        if of is not None:
            name += f"/{of}"
        found: builtins.list[E] = []
        while limit is None or len(found) < limit:
            page = PAGE if limit is None else min(PAGE, limit - len(found))
            since = "" if after is None else str(max(-1, min(after, NUMBER_MAX)))
            asked = ("list", kind.kind, name, since, int(newest_first), page)
            told = [_entry(kind, one) for one in await self._read(*asked)]
            found += [entry for entry in told if entry is not None]
            if len(told) < page:
                break
            after = found[-1].id
        return found

    async def update(self, tenant: str, entry: E) -> E:
        """Put an entry in the place of the revision that was read."""
        if not storable(entry.id):
            raise Stale(entry)
        place = ("update", 1, escape(tenant), entry.kind, str(entry.id), str(entry.revision))
        return await self._keep(entry, place)

    async def delete(self, tenant: str, kind: type[Entry], id: int) -> bool:
        """Forget an entry."""
        if not storable(id):
            return False
        asked = ("delete", 0, escape(tenant), kind.kind, str(id))
        there: bool = await self._ask(asked, [], lambda answer, _: not answer)
        return there

    async def locate(self, kind: type[E], handle: str) -> tuple[str, E] | None:
        """Return the entry with this handle and the slug of its tenant."""
        if not _is_text(handle):
            return None
        found = await self._read("locate", kind.kind, handle)
        entry = _entry(kind, found)
        return None if entry is None else (unescape(found[1].decode()), entry)

    async def tenants(self) -> builtins.list[Tenant]:
        """Return every tenant that is not archived, in the order of their ids."""
        found: builtins.list[Tenant] = []
        while True:
            since = str(found[-1].id) if found else ""
            told = await self._read("list", Tenant.kind, "tenants", since, 0, PAGE)
            found += [entry for one in told if (entry := _entry(Tenant, one)) is not None]
            if len(told) < PAGE:
                return found

    async def numbers(self, tenant: str, of: Numbered, ids: Sequence[str]) -> builtins.list[int]:
        """Return the numbers of runs or sessions, giving one to each that has none."""
        check_text(of, ids)
        keys = [(tenant, of, one) for one in ids]
        if not self._numbers.keys() >= set(keys):
            found: builtins.list[int] = []
            for first in range(0, len(ids), PAGE):
                asked = ("numbers", 0, escape(tenant), of, [*ids[first : first + PAGE]])
                found += await self._ask(asked, [], lambda answer, _: [*map(int, answer[1:])])
            self._numbers.update(zip(keys, found, strict=True))
            while len(self._numbers) > NUMBERS_KNOWN_MAX:
                del self._numbers[next(iter(self._numbers))]
            return found
        return [self._numbers[key] for key in keys]

    async def named(self, tenant: str, of: Numbered, number: int) -> str | None:
        """Return the id with this number."""
        if not storable(number):
            return None
        found = await self._read("named", escape(tenant), of, str(number))
        return None if found is None else found.decode()

    def facts(self) -> dict[str, str | int | None]:
        """Return what is worth knowing of this catalog: where and how it writes, and how much."""
        return {**self._realm.facts(), "batches": self._writer.batches}

    async def _keep(self, entry: E, place: Header) -> E:
        body = encode(entry)
        name, handle = entry.unique, entry.handle

        def read(answer: Answer, load: Any) -> E:
            match answer[0]:
                case b"stale":
                    raise Stale(entry)
                case b"taken":
                    raise NameTaken(entry, "name" if answer[1] == b"name" else entry.handle_field)
            _, given, *standing = answer
            kept = _entry(type(entry), (given, b"", *standing, body))
            assert kept is not None
            return kept

        header = (
            *place,
            int(name is not None),
            name or "",
            int(handle is not None),
            handle or "",
            "" if entry.of is None else str(entry.of),
            "0" if entry.archived_at is None else "1",
        )
        kept: E = await self._ask(header, [body], read)
        return kept

    async def _ask(
        self, header: Header, payloads: builtins.list[bytes], read: Callable[[Answer, Any], Any]
    ) -> Any:
        self._check_open()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._writer.submit(Request(header, payloads, read, future))
        return await future

    async def _read(self, *question: Any) -> Any:
        self._check_open()
        return await self._reader.ask(*question)

    def _check_open(self) -> None:
        if self._closed:
            raise Broken(f"the catalog {self._realm.place.shown} is closed")


def _entry(kind: type[E], found: Any) -> E | None:
    """Return an entry with what the server gave it: the body was encoded without that."""
    if found is None:
        return None
    given, _, revision, inserted, updated, body = found
    return msgspec.structs.replace(
        decode(kind, body),
        id=int(given),
        revision=int(revision),
        inserted_at=int(float(inserted)),
        updated_at=int(float(updated)),
    )


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
