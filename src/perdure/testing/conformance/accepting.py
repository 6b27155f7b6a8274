"""Accept: a command is in the inbox once, for ever, and in order."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.codec import genesis
from perdure.core.errors import InvalidInput, KeyReused, LimitExceeded
from perdure.core.ids import SessionId
from perdure.core.limits import INBOX_ENTRIES_MAX
from perdure.core.runs import RunRow
from perdure.ports.session_store import Loaded, Receipt, RunQuery, SessionStore
from perdure.testing.conformance.claimant import (
    SESSION,
    claim,
    created,
    dump,
    entry,
    run_row,
    submit,
)


class Accepting:
    """What `accept` promises."""

    async def test_a_new_session_has_its_command_and_an_empty_log(
        self, store: SessionStore
    ) -> None:
        first = entry("m1", b'{"say":"hello"}')
        assert await store.accept(first) == Receipt("m1", SESSION, store.durability)
        assert await store.load(SESSION) == Loaded(
            session=SESSION,
            version=0,
            head=genesis(SESSION),
            snapshot=None,
            tail=(),
            inbox=(first,),
        )

    async def test_a_repeat_gets_the_same_receipt_and_writes_nothing(
        self, store: SessionStore
    ) -> None:
        row = RunRow(id="m1", session=SESSION, status="queued", created_at=1)
        await store.accept(entry("m1"), row)
        before = await dump(store, SESSION)
        other = RunRow(id="m1", session=SESSION, status="failed", created_at=2)
        again = await store.accept(entry("m1"), other)
        assert again == Receipt("m1", SESSION, store.durability, duplicate=True)
        assert await dump(store, SESSION) == before

    async def test_an_id_with_another_command_is_refused_and_writes_nothing(
        self, store: SessionStore
    ) -> None:
        await store.accept(entry("m1", b"one"))
        before = await dump(store, SESSION)
        with pytest.raises(KeyReused):
            await store.accept(entry("m1", b"two"))
        assert await dump(store, SESSION) == before

    async def test_the_same_id_in_two_sessions_is_two_commands(self, store: SessionStore) -> None:
        other = SESSION._replace(key="other")
        await store.accept(entry("m1", b"one"))
        receipt = await store.accept(entry("m1", b"two", other))
        assert not receipt.duplicate

    async def test_a_consumed_id_stays_known_for_ever(self, store: SessionStore) -> None:
        await store.accept(entry("m1", b"one"))
        owner = await claim(store)
        assert await submit(store, owner.step(b"done", consumed=("m1",))) == [None]
        receipt = await store.accept(entry("m1", b"one"))
        assert receipt.duplicate
        with pytest.raises(KeyReused):
            await store.accept(entry("m1", b"two"))
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert loaded.inbox == ()

    async def test_commands_wait_in_the_order_of_their_acceptance(
        self, store: SessionStore
    ) -> None:
        names = ["b", "a", "c", "A", "é", "0"]
        for name in names:
            await store.accept(entry(name))
        owner = await claim(store)
        assert [one.id for one in owner.loaded.inbox] == names
        assert await submit(store, owner.step(consumed=("a", "é"))) == [None]
        await store.accept(entry("aa"))
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert [one.id for one in loaded.inbox] == ["b", "c", "A", "0", "aa"]

    async def test_commands_accepted_at_the_same_moment_are_all_kept(
        self, store: SessionStore
    ) -> None:
        await asyncio.gather(*(store.accept(entry(f"m{n % 10}")) for n in range(30)))
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert sorted(one.id for one in loaded.inbox) == [f"m{n}" for n in range(10)]

    async def test_anybody_accepts_for_a_session_that_somebody_owns(
        self, store: SessionStore
    ) -> None:
        owner = await created(store)
        await store.accept(entry("m1"))
        assert await submit(store, owner.step(b"event", consumed=("m1",))) == [None]

    async def test_a_full_inbox_takes_repeats_but_nothing_new(self, store: SessionStore) -> None:
        names = [f"m{n}" for n in range(INBOX_ENTRIES_MAX)]
        await asyncio.gather(*(store.accept(entry(name)) for name in names))
        with pytest.raises(LimitExceeded, match=str(INBOX_ENTRIES_MAX)):
            await store.accept(entry("one more"), run_row("one more"))
        assert (await store.accept(entry("m0"))).duplicate
        other = await store.accept(entry("m0", session=SESSION._replace(key="other")))
        assert not other.duplicate
        owner = await claim(store)
        assert await submit(store, owner.step(consumed=("m7",), postponed=999)) == [None]
        assert not (await store.accept(entry("one more"), run_row("one more"))).duplicate

    async def test_the_row_of_the_run_is_there_with_its_command(self, store: SessionStore) -> None:
        row = RunRow(id="m1", session=SESSION, status="queued", created_at=5)
        await store.accept(entry("m1"), row)
        assert await store.list(RunQuery(tenant="tenant", run="m1")) == [row]

    @pytest.mark.parametrize("part", ["tenant", "agent", "key", "id"])
    async def test_a_name_that_is_not_unicode_is_refused(
        self, store: SessionStore, part: str
    ) -> None:
        names = {"tenant": "t", "agent": "a", "key": "k", "id": "m1"} | {part: "\ud800"}
        session = SessionId(names["tenant"], names["agent"], names["key"])
        with pytest.raises(InvalidInput):
            await store.accept(entry(names["id"], session=session))
        assert not (await store.accept(entry("m1"))).duplicate
