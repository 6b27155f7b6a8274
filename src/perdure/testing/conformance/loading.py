"""Load and read: a snapshot and its tail, pages of the log, payloads of every size."""

from __future__ import annotations

import hashlib

import pytest

from perdure.core.limits import BLOB_THRESHOLD_BYTES
from perdure.ports.session_store import RunQuery, SessionStore
from perdure.testing.conformance.claimant import FAR, SESSION, claim, created, entry, submit


def noise(size: int) -> bytes:
    """Return bytes that do not compress."""
    return hashlib.shake_256(b"noise").digest(size)


PAYLOADS = {
    "empty": b"",
    "json": b'{"type":"model_replied"}',
    "at the threshold": b"x" * BLOB_THRESHOLD_BYTES,
    "over the threshold": b"x" * (BLOB_THRESHOLD_BYTES + 1),
    "large": b'{"text":"' + b"word " * 300_000 + b'"}',
    "large and incompressible": noise(3 * BLOB_THRESHOLD_BYTES),
    "a zero byte": b"\0",
    "a zero byte and a hash": b"\0h" + bytes(32),
    "a zero byte and z": b"\0z" + b"x" * 40,
    "a zero byte and more": b"\0" * (BLOB_THRESHOLD_BYTES + 1),
    "not text": bytes(range(256)),
}


class Loading:
    """What `load`, `read` and `blob` promise."""

    async def test_what_does_not_exist_is_absent(self, store: SessionStore) -> None:
        assert await store.load(SESSION) is None
        assert await store.read(SESSION, 0, 10) == []
        assert await store.list(RunQuery(tenant="tenant")) == []
        assert await store.blob("address") is None
        assert await store.due(FAR, 10) == ([], None)

    async def test_loading_reads_the_snapshot_and_what_follows_it(
        self, store: SessionStore
    ) -> None:
        owner = await created(store)
        await submit(store, owner.step(b"1"), owner.step(b"2", b"3", snapshot=b"at 3"))
        await submit(store, owner.step(b"4"), owner.step(b"5"))
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert (loaded.version, loaded.snapshot) == (5, b"at 3")
        assert [record.body for record in loaded.tail] == [b"4", b"5"]
        assert (await claim(store, nonce="c")).loaded == loaded

    async def test_a_later_snapshot_takes_the_place_of_an_earlier_one(
        self, store: SessionStore
    ) -> None:
        owner = await created(store)
        await submit(store, owner.step(b"1", snapshot=b"at 1"), owner.step(b"2", snapshot=b"at 2"))
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert (loaded.snapshot, loaded.tail) == (b"at 2", ())

    @pytest.mark.parametrize(
        ("version", "kept"), [(0, b"at 2"), (1, b"at 2"), (2, b"at 2"), (3, b"new"), (4, b"at 2")]
    )
    async def test_a_release_keeps_a_newer_snapshot_of_what_is_in_the_log(
        self, store: SessionStore, version: int, kept: bytes
    ) -> None:
        owner = await created(store)
        await submit(store, owner.step(b"1", b"2", snapshot=b"at 2"), owner.step(b"3"))
        await store.release(SESSION, owner.token, snapshot=(version, b"new"))
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert loaded.snapshot == kept
        assert [record.seq for record in loaded.tail] == ([] if kept == b"new" else [3])

    @pytest.mark.parametrize(
        ("after", "limit", "found"),
        [
            (0, 10, [1, 2, 3, 4, 5]),
            (0, 2, [1, 2]),
            (2, 2, [3, 4]),
            (4, 2, [5]),
            (5, 2, []),
            (9, 2, []),
            (0, 0, []),
        ],
    )
    async def test_a_log_is_read_in_pages(
        self, store: SessionStore, after: int, limit: int, found: list[int]
    ) -> None:
        owner = await created(store)
        await submit(store, owner.step(b"1", b"2", b"3", b"4", b"5", snapshot=b"at 5"))
        assert [record.seq for record in await store.read(SESSION, after, limit)] == found

    @pytest.mark.parametrize("what", PAYLOADS)
    async def test_a_payload_comes_back_as_it_was(self, store: SessionStore, what: str) -> None:
        payload = PAYLOADS[what]
        await store.accept(entry("large", payload))
        owner = await created(store)
        step = owner.step(payload, payload, snapshot=payload, blobs=(("address", payload),))
        assert await submit(store, step, owner.step(payload)) == [None, None]
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert loaded.inbox[0].command == payload
        assert loaded.snapshot == payload
        assert [record.body for record in loaded.tail] == [payload]
        assert [record.body for record in await store.read(SESSION, 0, 10)] == [payload] * 3
        assert await store.blob("address") == payload
        await store.release(SESSION, owner.token, snapshot=(3, payload))
        assert (await claim(store, nonce="c")).loaded.snapshot == payload

    async def test_a_blob_is_kept_once_for_all(self, store: SessionStore) -> None:
        one = await created(store)
        other = await created(store, SESSION._replace(key="other"))
        blobs = (("a", b"content"),)
        assert await submit(store, one.step(blobs=blobs), other.step(blobs=blobs)) == [None, None]
        assert await submit(store, one.step(blobs=(*blobs, ("b", b"more")))) == [None]
        assert [await store.blob(address) for address in "abc"] == [b"content", b"more", None]
