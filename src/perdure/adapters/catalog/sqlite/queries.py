"""What is asked of the tables. Every query names a tenant, but for those that find one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import apsw
import msgspec

from perdure.ports.catalog import NUMBER_MAX, NameTaken, Numbered, Stale, decode, encode, storable
from perdure.ports.entries import Entry, Tenant

E = TypeVar("E", bound=Entry)

ONE = "SELECT body FROM entries WHERE tenant_id = ? AND kind = ? AND id = ?"
ALL = "SELECT body FROM entries"
BY_NAME = "SELECT id FROM entries WHERE tenant_id = ? AND kind = ? AND name = ?"
HOLDER = "SELECT tenant_id, id FROM entries WHERE kind = ? AND handle = ?"
BY_HANDLE = "SELECT tenant_id, body FROM entries WHERE kind = ? AND handle = ?"
INSERT = """
INSERT INTO entries
VALUES (:tenant_id, :kind, :id, :revision, :name, :handle, :of_id, :archived, :body)
"""
UPDATE = """
UPDATE entries
SET revision = :revision, name = :name, handle = :handle, of_id = :of_id, archived = :archived,
    body = :body
WHERE tenant_id = :tenant_id AND kind = :kind AND id = :id
"""
DELETE = "DELETE FROM entries WHERE tenant_id = ? AND kind = ? AND id = ?"
NUMBER = "SELECT number FROM numbers WHERE tenant_id = ? AND of = ? AND id = ?"
NAMED = "SELECT id FROM numbers WHERE tenant_id = ? AND of = ? AND number = ?"
NEXT = """
INSERT INTO counters VALUES (?, 1) ON CONFLICT DO UPDATE SET last = last + 1 RETURNING last
"""
TENANTS = "SELECT body FROM entries WHERE kind = 'tenant' AND archived = 0 ORDER BY id"


def create(db: apsw.Connection, tenant: str, entry: E, now: int) -> E:
    """Insert an entry; return it as it is kept."""
    entry = msgspec.structs.replace(entry, id=0, revision=1, inserted_at=now, updated_at=now)
    encode(entry)
    _check_free(db, tenant, entry)
    entry = msgspec.structs.replace(entry, id=db.execute(NEXT, (entry.kind,)).get)
    columns = _columns(tenant, entry)
    db.execute(INSERT, columns)
    return decode(type(entry), columns["body"])


def get(db: apsw.Connection, tenant: str, kind: type[E], id: int) -> E | None:
    """Return an entry by its id."""
    if not storable(id):
        return None
    body = db.execute(ONE, (tenant, kind.kind, id)).get
    return None if body is None else decode(kind, body)


def find(db: apsw.Connection, tenant: str, kind: type[E], name: str) -> E | None:
    """Return an entry by its unique name."""
    if not _is_text(name):
        return None
    known = db.execute(BY_NAME, (tenant, kind.kind, name)).get
    return None if known is None else get(db, tenant, kind, known)


def entries(
    db: apsw.Connection,
    tenant: str,
    kind: type[E],
    *,
    of: int | None,
    after: int | None,
    limit: int | None,
    newest_first: bool,
    archived: bool,
) -> list[E]:
    """Return entries in the order of their ids, or against it."""
    where: list[str] = ["tenant_id = ?", "kind = ?"]
    values: list[str | int] = [tenant, kind.kind]
    if of is not None:
        where.append("of_id = ?")
        values.append(_within(of))
    if after is not None:
        where.append("id < ?" if newest_first else "id > ?")
        values.append(_within(after))
    if not archived:
        where.append("archived = 0")
    order = "DESC" if newest_first else "ASC"
    chosen = f"WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT ?"
    rows = db.execute(f"{ALL} {chosen}", (*values, -1 if limit is None else limit))
    return [decode(kind, body) for (body,) in rows]


def update(db: apsw.Connection, tenant: str, entry: E, now: int) -> E:
    """Put an entry in the place of the revision that was read."""
    known = get(db, tenant, type(entry), entry.id)
    if known is None or known.revision != entry.revision:
        raise Stale(entry)
    entry = msgspec.structs.replace(
        entry, revision=entry.revision + 1, inserted_at=known.inserted_at, updated_at=now
    )
    columns = _columns(tenant, entry)
    _check_free(db, tenant, entry)
    db.execute(UPDATE, columns)
    return decode(type(entry), columns["body"])


def delete(db: apsw.Connection, tenant: str, kind: type[Entry], id: int) -> bool:
    """Forget an entry; False if there is none."""
    if not storable(id):
        return False
    db.execute(DELETE, (tenant, kind.kind, id))
    return db.changes() > 0


def locate(db: apsw.Connection, kind: type[E], handle: str) -> tuple[str, E] | None:
    """Return an entry by its handle, and its tenant."""
    row = db.execute(BY_HANDLE, (kind.kind, handle)).fetchone() if _is_text(handle) else None
    if row is None:
        return None
    tenant, body = row
    return tenant, decode(kind, body)


def tenants(db: apsw.Connection) -> list[Tenant]:
    """Return the tenants that are not archived."""
    return [decode(Tenant, body) for (body,) in db.execute(TENANTS)]


def numbers(db: apsw.Connection, tenant: str, of: Numbered, ids: Sequence[str]) -> list[int]:
    """Return the numbers of ids, giving one to each that has none."""
    return [_number(db, tenant, of, one) for one in ids]


def named(db: apsw.Connection, tenant: str, of: Numbered, number: int) -> str | None:
    """Return the id with a number."""
    return db.execute(NAMED, (tenant, of, number)).get if storable(number) else None


def _number(db: apsw.Connection, tenant: str, of: Numbered, id: str) -> int:
    known: int | None = db.execute(NUMBER, (tenant, of, id)).get
    if known is None:
        known = int(db.execute(NEXT, (of,)).get)
        db.execute("INSERT INTO numbers VALUES (?, ?, ?, ?)", (tenant, of, known, id))
    return known


def _check_free(db: apsw.Connection, tenant: str, entry: Entry) -> None:
    if entry.unique is not None:
        holder = db.execute(BY_NAME, (tenant, entry.kind, entry.unique)).get
        if holder not in (None, entry.id):
            raise NameTaken(entry, "name")
    if entry.handle is not None:
        holder = db.execute(HOLDER, (entry.kind, entry.handle)).fetchone()
        if holder not in (None, (tenant, entry.id)):
            raise NameTaken(entry, entry.handle_field)


def _columns(tenant: str, entry: Entry) -> dict[str, Any]:
    return {
        "tenant_id": tenant,
        "kind": entry.kind,
        "id": entry.id,
        "revision": entry.revision,
        "name": entry.unique,
        "handle": entry.handle,
        "of_id": entry.of,
        "archived": entry.archived_at is not None,
        "body": encode(entry),
    }


def _within(id: int) -> int:
    return max(-1, min(id, NUMBER_MAX))


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
