"""PostgresCatalog: a database that many nodes share, and every promise of the port.

Every write is one statement. Names and handles are kept apart by unique indexes, and an update
compares the revision once more after it has waited for the row.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from perdure.adapters.postgres.connections import Database, Pool, close
from perdure.adapters.postgres.errors import sqlstate
from perdure.adapters.postgres.schema import Schema
from perdure.core.errors import InvalidInput
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

SCHEMA = Schema(part="catalog", package=__package__)
CONNECTIONS = 4
NUMBERS_KNOWN_MAX = 10_000
"""How many numbers are kept in memory: they never change."""

ENTRIES = "SELECT id, revision, inserted_at, updated_at, body FROM perdure.entries"
ONE = f"{ENTRIES} WHERE tenant_id = $1 AND kind = $2 AND id = $3"
BY_NAME = f"{ENTRIES} WHERE tenant_id = $1 AND kind = $2 AND name = $3"
BY_HANDLE = """
SELECT id, revision, inserted_at, updated_at, body, tenant_id FROM perdure.entries
WHERE kind = $1 AND handle = $2
"""
INSERT = """
WITH next AS (
    INSERT INTO perdure.counters AS counters (kind, last) VALUES ($2, 1)
    ON CONFLICT (kind) DO UPDATE SET last = counters.last + 1 RETURNING last
)
INSERT INTO perdure.entries (tenant_id, kind, name, handle, of_id, archived, body,
    id, revision, inserted_at, updated_at)
SELECT $1, $2, $3, $4, $5, $6, $7, next.last, 1, $8, $8 FROM next
RETURNING id, revision, inserted_at, updated_at, body
"""
UPDATE = """
UPDATE perdure.entries SET name = $3, handle = $4, of_id = $5, archived = $6, body = $7,
    updated_at = $8, revision = revision + 1
WHERE tenant_id = $1 AND kind = $2 AND id = $9 AND revision = $10
RETURNING id, revision, inserted_at, updated_at, body
"""
DELETE = "DELETE FROM perdure.entries WHERE tenant_id = $1 AND kind = $2 AND id = $3 RETURNING id"
TENANTS = f"{ENTRIES} WHERE kind = 'tenant' AND NOT archived ORDER BY id"
NUMBERS = (
    "SELECT id, number FROM perdure.numbers WHERE tenant_id = $1 AND of = $2 AND id = ANY ($3)"
)
GIVE_NUMBERS = """
WITH missing AS MATERIALIZED (
    SELECT id, row_number() OVER (ORDER BY n) AS nth
    FROM unnest($3::text[]) WITH ORDINALITY AS asked (id, n)
), taken AS (
    INSERT INTO perdure.counters AS counters (kind, last)
    SELECT $2, count(*) FROM missing
    ON CONFLICT (kind) DO UPDATE SET last = counters.last + excluded.last RETURNING last
)
INSERT INTO perdure.numbers (tenant_id, of, id, number)
SELECT $1, $2, missing.id, taken.last - cardinality($3) + missing.nth FROM missing, taken
ON CONFLICT DO NOTHING
"""
NAMED = "SELECT id FROM perdure.numbers WHERE tenant_id = $1 AND of = $2 AND number = $3"

UNIQUE_VIOLATION = "23505"
NOT_A_TEXT = ("22", "54")
"""What PostgreSQL says of text that it cannot hold, or not in an index."""


class PostgresCatalog:
    """A catalog in a PostgreSQL database, shared by all nodes that name the same one."""

    def __init__(self, database: Database, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._pool = Pool(database, CONNECTIONS)
        self._numbers: dict[tuple[str, Numbered, str], int] = {}

    @classmethod
    async def open(cls, url: str, now_ms: Callable[[], int]) -> PostgresCatalog:
        """Open the catalog in the database at `url`, making its tables if they are missing.

        Raises `InvalidInput`, `Unavailable` and `StoreRefused` as `PostgresStore.open` does.
        """
        database = Database(url)
        connection = await database.connect()
        try:
            await SCHEMA.migrate(connection, database.name)
        finally:
            await close(connection)
        return cls(database, now_ms)

    async def close(self) -> None:
        """Close all connections; safe to call twice."""
        await self._pool.close()

    async def create(self, tenant: str, entry: E) -> E:
        """Keep a new entry."""
        (row,) = await self._write(entry, INSERT, *_columns(tenant, entry), self._now_ms())
        return _entry(type(entry), row)

    async def get(self, tenant: str, kind: type[E], id: int) -> E | None:
        """Return an entry, archived or not."""
        rows = await self._pool.ask(ONE, tenant, kind.kind, id) if storable(id) else []
        return _entry(kind, rows[0]) if rows else None

    async def find(self, tenant: str, kind: type[E], name: str) -> E | None:
        """Return the entry with this unique name."""
        rows = await self._pool.ask(BY_NAME, tenant, kind.kind, name) if _is_text(name) else []
        return _entry(kind, rows[0]) if rows else None

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
        where = ["tenant_id = $1", "kind = $2"]
        values: builtins.list[str | int | None] = [tenant, kind.kind, limit]
        if of is not None:
            values.append(_within(of))
            where.append(f"of_id = ${len(values)}")
        if after is not None:
            values.append(_within(after))
            where.append(f"id {'<' if newest_first else '>'} ${len(values)}")
        if not archived:
            where.append("NOT archived")
        order = "DESC" if newest_first else "ASC"
        chosen = f"WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT $3"
        return [_entry(kind, row) for row in await self._pool.ask(f"{ENTRIES} {chosen}", *values)]

    async def update(self, tenant: str, entry: E) -> E:
        """Put an entry in the place of the revision that was read."""
        values = (*_columns(tenant, entry), self._now_ms(), entry.id, entry.revision)
        if not storable(entry.id) or not storable(entry.revision):
            raise Stale(entry)
        rows = await self._write(entry, UPDATE, *values)
        if not rows:
            raise Stale(entry)
        return _entry(type(entry), rows[0])

    async def delete(self, tenant: str, kind: type[Entry], id: int) -> bool:
        """Forget an entry."""
        if not storable(id):
            return False
        return bool(await self._pool.ask_once(DELETE, tenant, kind.kind, id))

    async def locate(self, kind: type[E], handle: str) -> tuple[str, E] | None:
        """Return the entry with this handle and the slug of its tenant."""
        rows = await self._pool.ask(BY_HANDLE, kind.kind, handle) if _is_text(handle) else []
        return (rows[0]["tenant_id"], _entry(kind, rows[0])) if rows else None

    async def tenants(self) -> builtins.list[Tenant]:
        """Return every tenant that is not archived, in the order of their ids."""
        return [_entry(Tenant, row) for row in await self._pool.ask(TENANTS)]

    async def numbers(self, tenant: str, of: Numbered, ids: Sequence[str]) -> builtins.list[int]:
        """Return the numbers of runs or sessions, giving one to each that has none."""
        check_text(of, ids)
        keys = [(tenant, of, one) for one in ids]
        if not all(_is_text(one) for one in ids):
            raise InvalidInput(f"the id of a {of} cannot hold the character NUL")
        unknown = {one for *_, one in keys if (tenant, of, one) not in self._numbers}
        found = await self._give_numbers(tenant, of, unknown) if unknown else {}
        for one, number in found.items():
            self._numbers[tenant, of, one] = number
        numbers = [self._numbers[key] for key in keys]
        while len(self._numbers) > NUMBERS_KNOWN_MAX:
            del self._numbers[next(iter(self._numbers))]
        return numbers

    async def named(self, tenant: str, of: Numbered, number: int) -> str | None:
        """Return the id with this number."""
        rows = await self._pool.ask(NAMED, tenant, of, number) if storable(number) else []
        return rows[0][0] if rows else None

    async def _give_numbers(self, tenant: str, of: Numbered, ids: set[str]) -> dict[str, int]:
        found: dict[str, int] = dict(await self._pool.ask(NUMBERS, tenant, of, list(ids)))
        while missing := sorted(ids - found.keys()):
            # Whoever else gives numbers to the same ids may be faster: those count.
            await self._pool.ask(GIVE_NUMBERS, tenant, of, missing)
            found |= dict(await self._pool.ask(NUMBERS, tenant, of, missing))
        return found

    async def _write(self, entry: Entry, query: str, *values: Any) -> builtins.list[Any]:
        try:
            return await self._pool.ask_once(query, *values)
        except Exception as error:
            if sqlstate(error) == UNIQUE_VIOLATION:
                by_name = getattr(error, "constraint_name", "") == "entries_by_name"
                raise NameTaken(entry, "name" if by_name else entry.handle_field) from None
            if sqlstate(error).startswith(NOT_A_TEXT):
                why = f"the {entry.kind} cannot be kept: {error}"
                raise InvalidInput(why) from None
            raise


def _columns(tenant: str, entry: Entry) -> tuple[Any, ...]:
    body = encode(replace(entry, id=0, revision=0, inserted_at=0, updated_at=0))
    found = (entry.unique, entry.handle, entry.of, entry.archived_at is not None)
    return (tenant, entry.kind, *found, body)


def _entry(kind: type[E], row: Any) -> E:
    return replace(
        decode(kind, row["body"]),
        id=row["id"],
        revision=row["revision"],
        inserted_at=row["inserted_at"],
        updated_at=row["updated_at"],
    )


def _within(id: int) -> int:
    return max(-1, min(id, NUMBER_MAX))


def _is_text(name: str) -> bool:
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False
