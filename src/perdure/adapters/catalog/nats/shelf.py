"""What a node has of the catalog: its stream, folded. It knows what is there, and decides nothing.

A message says what an entry is now, or that it is gone, or which numbers were given. The last one
of an entry is all that there is of it, so the stream keeps no other.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from perdure.adapters.nats.log import Folded

PLAIN_BYTES_MAX = 64 * 1024
PLAIN, ZIPPED = b"p", b"z"
FASTEST = 1


class Kept(msgspec.Struct, tag="kept", array_like=True, frozen=True):
    """An entry as it is now, without its body: what it is found and listed by."""

    tenant: str
    kind: str
    id: int
    unique: str | None
    handle: str | None
    of: int | None
    archived: bool


class Gone(msgspec.Struct, tag="gone", array_like=True, frozen=True):
    """An entry was deleted; its id stays given."""

    kind: str
    id: int


class Numbered(msgspec.Struct, tag="numbered", array_like=True, frozen=True):
    """The ids in the body have the numbers from `first` on."""

    tenant: str
    of: str
    first: int


encode = msgspec.json.Encoder().encode
decode: Any = msgspec.json.Decoder(Kept | Gone | Numbered).decode
encode_ids = msgspec.json.Encoder().encode
decode_ids = msgspec.json.Decoder(list[str]).decode


def wrap(body: bytes) -> bytes:
    """Return what to write in the place of a body: large ones are compressed."""
    if len(body) <= PLAIN_BYTES_MAX:
        return PLAIN + body
    return ZIPPED + zlib.compress(body, FASTEST)


def unwrap(wrapped: bytes) -> bytes:
    """Return the body that `wrap` was given."""
    return wrapped[1:] if wrapped.startswith(PLAIN) else zlib.decompress(wrapped[1:])


class Shelf:
    """All entries and numbers, in memory."""

    def __init__(self) -> None:
        self._last: defaultdict[str, int] = defaultdict(int)
        self._entries: dict[tuple[str, int], tuple[Kept, bytes]] = {}
        self._ids: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._names: dict[tuple[str, str, str], int] = {}
        self._handles: dict[tuple[str, str], int] = {}
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._named: dict[tuple[str, int], tuple[str, str]] = {}

    def fold(self, message: Folded) -> None:
        """Take in a message."""
        change = decode(message.change)
        if isinstance(change, Numbered):
            ids = decode_ids(unwrap(message.body))
            for number, one in enumerate(ids, change.first):
                self._numbers[change.tenant, change.of, one] = number
                self._named[change.of, number] = (change.tenant, one)
            self._last[change.of] = max(self._last[change.of], change.first + len(ids) - 1)
            return
        self._last[change.kind] = max(self._last[change.kind], change.id)
        self._forget(change.kind, change.id)
        if isinstance(change, Kept):
            self._keep(change, message.body)

    def next_id(self, kind: str) -> int:
        """Return an id that was never given to an entry of a kind, or a number never given."""
        return self._last[kind] + 1

    def body(self, tenant: str, kind: str, id: int) -> bytes | None:
        """Return an entry's body; None if the tenant has none with this id."""
        kept, wrapped = self._entries.get((kind, id), (None, b""))
        return None if kept is None or kept.tenant != tenant else unwrap(wrapped)

    def named(self, tenant: str, kind: str, name: str) -> int | None:
        """Return the id of the entry with a unique name."""
        return self._names.get((tenant, kind, name))

    def held(self, kind: str, handle: str) -> tuple[str, int] | None:
        """Return the tenant and the id of the entry with a handle."""
        found = self._handles.get((kind, handle))
        return None if found is None else (self._entries[kind, found][0].tenant, found)

    def handles(self, kind: str) -> list[tuple[str, int]]:
        """Return the tenants and ids of all entries of a kind with a handle, in order of ids."""
        found = sorted(known for (one, _), known in self._handles.items() if one == kind)
        return [(self._entries[kind, known][0].tenant, known) for known in found]

    def listed(
        self, tenant: str, kind: str, of: int | None, after: int | None, back: bool, archived: bool
    ) -> Iterator[bytes]:
        """Yield the bodies of entries, in the order of their ids or against it."""
        ids = self._ids.get((tenant, kind), [])
        if back:
            end = len(ids) if after is None else bisect_left(ids, after)
            places = range(end - 1, -1, -1)
        else:
            places = range(0 if after is None else bisect_right(ids, after), len(ids))
        for at in places:
            kept, wrapped = self._entries[kind, ids[at]]
            if (of is None or kept.of == of) and (archived or not kept.archived):
                yield unwrap(wrapped)

    def number(self, tenant: str, of: str, id: str) -> int | None:
        """Return the number of a run or session."""
        return self._numbers.get((tenant, of, id))

    def numbered(self, tenant: str, of: str, number: int) -> str | None:
        """Return the id with a number."""
        owner, found = self._named.get((of, number), ("", None))
        return found if owner == tenant else None

    def _keep(self, kept: Kept, body: bytes) -> None:
        self._entries[kept.kind, kept.id] = (kept, body)
        insort(self._ids[kept.tenant, kept.kind], kept.id)
        if kept.unique is not None:
            self._names[kept.tenant, kept.kind, kept.unique] = kept.id
        if kept.handle is not None:
            self._handles[kept.kind, kept.handle] = kept.id

    def _forget(self, kind: str, id: int) -> None:
        kept, _ = self._entries.pop((kind, id), (None, b""))
        if kept is None:
            return
        ids = self._ids[kept.tenant, kind]
        del ids[bisect_left(ids, id)]
        if kept.unique is not None and self._names.get((kept.tenant, kind, kept.unique)) == id:
            del self._names[kept.tenant, kind, kept.unique]
        if kept.handle is not None and self._handles.get((kind, kept.handle)) == id:
            del self._handles[kind, kept.handle]
