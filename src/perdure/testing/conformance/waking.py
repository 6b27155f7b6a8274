"""Due: whoever has something to do is found, earliest first; a wake-up is never lost."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.ids import SessionId
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import (
    FAR,
    LEASE_MS,
    SESSION,
    Claimant,
    claim,
    created,
    entry,
    submit,
)

Due = tuple[list[SessionId], int | None]
NOBODY: Due = ([], None)


async def parked(store: SessionStore, **fields: Any) -> Claimant:
    """Make a session, commit a step with these fields, and let it go."""
    owner = await created(store)
    assert await submit(store, owner.step(b"parked", **fields)) == [None]
    await store.release(SESSION, owner.token)
    return owner


class Waking:
    """What `due` promises, and what `accept`, `commit` and `release` do for it."""

    async def test_a_session_is_due_as_soon_as_something_is_accepted(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.accept(entry("m1"))
        now = clock.now_ms()
        assert await store.due(now, 10) == ([SESSION], None)
        assert await store.due(now - 1, 10) == ([], now)

    async def test_a_session_that_somebody_runs_is_not_due(self, store: SessionStore) -> None:
        owner = await created(store)
        await store.accept(entry("m1"))
        assert await store.due(FAR, 10) == NOBODY
        await store.release(SESSION, owner.token)
        assert await store.due(FAR, 10) == ([SESSION], None)

    async def test_a_session_is_due_again_when_its_owner_has_died(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        assert await submit(store, owner.step(b"working", wake_at=0)) == [None]
        clock.advance(LEASE_MS - 1)
        assert await store.due(clock.now_ms(), 10) == NOBODY
        clock.advance(1)
        assert await store.due(clock.now_ms(), 10) == ([SESSION], None)

    async def test_an_owner_without_a_lease_does_not_keep_a_session_from_being_due(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.accept(entry("m1"))
        await claim(store)
        assert await store.due(clock.now_ms(), 10) == ([SESSION], None)

    @pytest.mark.parametrize(
        ("wake_at", "now", "found"),
        [
            (None, FAR, NOBODY),
            (5_000, 4_999, ([], 5_000)),
            (5_000, 5_000, ([SESSION], None)),
            (5_000, FAR, ([SESSION], None)),
            (0, 0, ([SESSION], None)),
        ],
    )
    async def test_a_parked_session_is_due_at_its_time(
        self, store: SessionStore, wake_at: int | None, now: int, found: Due
    ) -> None:
        await parked(store, wake_at=wake_at)
        assert await store.due(now, 10) == found

    async def test_the_earliest_come_first_and_the_next_is_told(self, store: SessionStore) -> None:
        times = {"a": 300, "b": 100, "c": 200, "d": 900, "e": 800}
        for key, wake_at in times.items():
            owner = await created(store, SESSION._replace(key=key))
            assert await submit(store, owner.step(wake_at=wake_at)) == [None]
            await store.release(owner.session, owner.token)
        found, next_at = await store.due(300, 10)
        assert ([session.key for session in found], next_at) == (["b", "c", "a"], 800)
        found, next_at = await store.due(300, 2)
        assert ([session.key for session in found], next_at) == (["b", "c"], 800)
        assert await store.due(300, 0) == ([], 800)

    @pytest.mark.parametrize("wake_at", [None, 0, FAR])
    async def test_accepting_makes_a_parked_session_due_at_once(
        self, store: SessionStore, clock: FakeClock, wake_at: int | None
    ) -> None:
        await parked(store, wake_at=wake_at)
        await store.accept(entry("m1"))
        assert await store.due(clock.now_ms(), 10) == ([SESSION], None)

    @pytest.mark.parametrize(
        ("consumed", "postponed", "due"),
        [
            (("m1", "m2"), 0, False),
            (("m1",), 1, False),
            ((), 2, False),
            ((), 3, False),
            (("m1",), 0, True),
            ((), 1, True),
            ((), 0, True),
        ],
    )
    @pytest.mark.parametrize("wake_at", [None, FAR])
    async def test_a_step_that_does_not_know_of_a_command_leaves_its_session_due(
        self,
        store: SessionStore,
        clock: FakeClock,
        consumed: tuple[str, ...],
        postponed: int,
        due: bool,
        wake_at: int | None,
    ) -> None:
        owner = await created(store)
        await store.accept(entry("m1"))
        await store.accept(entry("m2"))
        step = owner.step(b"event", consumed=consumed, postponed=postponed, wake_at=wake_at)
        assert await submit(store, step) == [None]
        await store.release(SESSION, owner.token)
        found, next_at = await store.due(clock.now_ms(), 10)
        assert (found, next_at) == (([SESSION], None) if due else ([], wake_at))

    async def test_a_command_accepted_behind_the_owners_back_survives_all_its_steps(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        await store.accept(entry("unknown"))
        steps = [owner.step(b"event", wake_at=None) for _ in range(3)]
        assert await submit(store, *steps) == [None] * 3
        clock.advance(LEASE_MS)
        assert await store.due(clock.now_ms(), 10) == ([SESSION], None)
        heir = await claim(store, owner="heir")
        assert [one.id for one in heir.loaded.inbox] == ["unknown"]
        assert await submit(store, heir.step(postponed=1, wake_at=None)) == [None]
        await store.release(SESSION, heir.token)
        assert await store.due(FAR, 10) == NOBODY

    async def test_a_command_accepted_before_the_release_is_not_put_off_by_it(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        assert await submit(store, owner.step(b"parked")) == [None]
        await store.accept(entry("m1"))
        await store.release(SESSION, owner.token, snapshot=(1, b"state"))
        assert await store.due(clock.now_ms(), 10) == ([SESSION], None)

    async def test_an_owner_is_told_of_what_was_accepted_behind_its_back(
        self, store: SessionStore
    ) -> None:
        owner = await created(store)
        idle = await created(store, SESSION._replace(key="idle"))
        assert await store.unread("node", 10) == []
        await store.accept(entry("m1"))
        assert await store.unread("node", 10) == [SESSION]
        assert (await store.unread("other", 10), await store.unread("node", 0)) == ([], [])
        assert await submit(store, owner.step(b"event", postponed=0)) == [None]
        assert await store.unread("node", 10) == [SESSION]
        assert await submit(store, owner.step(postponed=1)) == [None]
        assert await store.unread("node", 10) == []
        await store.accept(entry("m2"))
        await store.accept(entry("m1", session=idle.session))
        assert sorted(await store.unread("node", 10)) == [idle.session, SESSION]
        assert len(await store.unread("node", 1)) == 1
        assert await submit(store, owner.step(b"event", consumed=("m1", "m2"))) == [None]
        assert await store.unread("node", 10) == [idle.session]
        await store.release(idle.session, idle.token)
        assert await store.unread("node", 10) == []

    async def test_what_an_owner_read_with_its_claim_it_knows(self, store: SessionStore) -> None:
        await store.accept(entry("m1"))
        await claim(store)
        assert await store.unread("node", 10) == []
        await store.accept(entry("m2"))
        assert await store.unread("node", 10) == [SESSION]

    async def test_a_session_in_quarantine_is_not_due_until_it_is_released(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        await store.release(SESSION, owner.token, quarantine="no")
        await store.accept(entry("m1"))
        assert await store.due(FAR, 10) == NOBODY
        await store.release(SESSION, None)
        assert await store.due(clock.now_ms(), 10) == ([SESSION], None)

    async def test_a_node_that_lost_its_lease_leaves_its_sessions_to_be_found(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        assert await submit(store, owner.step(b"working", wake_at=0)) == [None]
        clock.advance(LEASE_MS)
        assert not await store.renew("node", LEASE_MS)
        assert await store.due(clock.now_ms(), 10) == ([SESSION], None)
