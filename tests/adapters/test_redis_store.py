"""The store in Redis keeps every promise of the port, and answers as the oracle does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from perdure.adapters.stores.redis import RedisStore, store
from perdure.core.codec import verify_chain
from perdure.core.errors import InvalidInput
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import InboxEntry, RunQuery, SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import SESSION, created, outcomes
from perdure.testing.conformance.loading import noise
from perdure.testing.conformance.machine import StoreMachine, walk
from perdure.testing.conformance.stores import OpenStore, StoreConformance
from tests.adapters.redis_servers import shared, started
from tests.adapters.test_stores_agree import SMALL_INBOX


@asynccontextmanager
async def redis_store(clock: FakeClock) -> AsyncIterator[SessionStore]:
    opened = await RedisStore.open(shared().fresh_url(), clock)
    try:
        yield opened
    finally:
        await opened.close()


class TestRedisStore(StoreConformance):
    """The store that nodes share without a database."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        return redis_store


class RedisMachine(StoreMachine):
    """The store of several nodes: what one writes another goes on with."""

    open_store = staticmethod(redis_store)
    inbox_entries_max = SMALL_INBOX

    @rule(crowd=st.integers(0, 3))
    def go_on_elsewhere(self, crowd: int) -> None:
        """Claims outlive the process that made them."""
        if crowd == 0:
            self.wait(self.open_again())
            self.note("store", "opened again")

    async def open_again(self) -> None:
        """Open the same store a second time, and use that one."""
        assert isinstance(self.store, RedisStore)
        url = f"{shared().url}?prefix={self.store.facts()['prefix']}"
        self.store = await RedisStore.open(url, self.clock)
        self.opened.push_async_callback(self.store.close)


def test_it_agrees_with_the_oracle_and_everything_is_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is done, and until every kind of answer has been given."""
    monkeypatch.setattr(store, "INBOX_ENTRIES_MAX", SMALL_INBOX)
    walk(RedisMachine)


async def test_a_run_that_another_session_asked_for_is_found_there_alone() -> None:
    """Clients name runs: the row is of the session that said so last, in every index."""
    first, second = SessionId("t", "a", "k"), SessionId("t", "b", "l")
    async with redis_store(FakeClock()) as opened:
        for session in (first, second):
            row = RunRow(id="r", session=session, status="queued", created_at=7)
            await opened.accept(InboxEntry("r", session, b"{}", 1), row)
        wanted = RunRow(id="r", session=second, status="queued", created_at=7)
        for query, found in [
            ({}, [wanted]),
            ({"agent": "a"}, []),
            ({"agent": "b"}, [wanted]),
            ({"key": "k"}, []),
            ({"key": "l"}, [wanted]),
            ({"agent": "a", "key": "k"}, []),
            ({"agent": "b", "key": "l"}, [wanted]),
            ({"status": "queued"}, [wanted]),
        ]:
            assert await opened.list(RunQuery(tenant="t", **query)) == found


async def test_what_cannot_be_stored_is_a_conflict_and_the_others_are_written() -> None:
    async with redis_store(FakeClock()) as opened:
        owner = await created(opened)
        other = await created(opened, SESSION._replace(key="other"))
        steps = [owner.step(b"a", wake_at=2**60), other.step(b"b"), owner.step(b"c")]
        assert await outcomes(opened, *steps) == ["Conflict", "written", "Conflict"]
        with pytest.raises(InvalidInput):
            await opened.load(SessionId("\ud800", "a", "k"))
        assert await opened.blob("address") is None


async def test_a_callback_that_fails_is_reported_and_the_store_goes_on() -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    async with redis_store(FakeClock()) as opened:
        owner = await created(opened)
        loop.set_exception_handler(lambda _, what: reported.append(what))
        opened.commit(owner.step(b"a"), lambda error: 1 // 0)
        assert await outcomes(opened, owner.step(b"b")) == ["written"]
    assert [type(what["exception"]) for what in reported] == [ZeroDivisionError]


async def test_a_long_log_and_a_large_one_come_whole() -> None:
    async with redis_store(FakeClock()) as opened:
        owner = await created(opened)
        bodies = [b"%d" % n for n in range(1_234)]
        large = [noise(700_000) for _ in range(9)]
        assert await outcomes(opened, owner.step(*bodies), owner.step(*large)) == ["written"] * 2
        log = await opened.read(SESSION, 0, 10_000)
        assert [record.body for record in log] == bodies + large
        assert verify_chain(owner.loaded.head, 0, log) == owner.head
        assert [record.seq for record in await opened.read(SESSION, 1_230, 5)] == [
            1_231, 1_232, 1_233, 1_234, 1_235,
        ]  # fmt: skip


async def test_nothing_expires_but_what_writers_remember() -> None:
    """A token that expires would let an old owner's number come again."""
    with started() as server:
        opened = await RedisStore.open(server.url)
        owner = await created(opened)
        steps = [owner.step(b"a", snapshot=b"s", wake_at=5, blobs=(("b", b"c"),)), owner.step()]
        assert await outcomes(opened, *steps) == ["written"] * 2
        await opened.release(SESSION, owner.token, quarantine="why")
        await opened.close()
        expiring = server.ask(
            "EVAL",
            "local found = {} for _, key in ipairs(redis.call('KEYS', '*')) do "
            "if redis.call('TTL', key) >= 0 then found[#found + 1] = key end end "
            "return table.concat(found, ' ')",
            "0",
        )
        names = expiring.decode().split("\r\n")[1].split()
        assert {name.rpartition(":")[0] for name in names} == {"{perdure}:writer"}
