"""Claim, renew, release: one owner at a time, by the store's clock and by a token never seen."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.errors import Fenced, NotFound
from perdure.core.ids import SessionId
from perdure.ports.session_store import Claimed, NotClaimed, SessionStore, Token
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import (
    LEASE_MS,
    SESSION,
    Claimant,
    claim,
    created,
    dump,
    entry,
    outcomes,
    submit,
)


async def strikes(store: SessionStore) -> int:
    """Return the strikes of the session."""
    loaded = await store.load(SESSION)
    assert loaded is not None
    return loaded.strikes


async def suspect(store: SessionStore, session: SessionId) -> int | None:
    """Return since when a session is suspect."""
    loaded = await store.load(session)
    assert loaded is not None
    return loaded.suspect


class Claiming:
    """What `claim`, `renew` and `release` promise."""

    async def test_a_session_that_does_not_exist_cannot_be_claimed(
        self, store: SessionStore
    ) -> None:
        assert await store.claim(SESSION, "node", "n") == NotClaimed("absent")
        assert await store.load(SESSION) is None

    async def test_every_claim_has_a_greater_epoch(self, store: SessionStore) -> None:
        await store.accept(entry("m1"))
        tokens = [(await claim(store, nonce=nonce)).token for nonce in "abc"]
        assert tokens == [Token(1, "a"), Token(2, "b"), Token(3, "c")]
        await store.release(SESSION, tokens[-1])
        assert (await claim(store, nonce="d")).token == Token(4, "d")

    async def test_a_claim_is_followed_by_the_reading(self, store: SessionStore) -> None:
        owner = await created(store)
        earlier, claimed, later = await asyncio.gather(
            outcomes(store, owner.step(b"before the claim")),
            claim(store, nonce="again"),
            outcomes(store, owner.step(b"after the claim")),
        )
        assert (earlier, later) == (["written"], ["Fenced"])
        assert [record.body for record in claimed.loaded.tail] == [b"before the claim"]

    @pytest.mark.parametrize(
        ("lease_ms", "passed_ms", "held"),
        [
            (None, 0, False),
            (LEASE_MS, 0, True),
            (LEASE_MS, LEASE_MS - 1, True),
            (LEASE_MS, LEASE_MS, False),
            (LEASE_MS, 10 * LEASE_MS, False),
            (0, 0, False),
        ],
    )
    async def test_a_live_lease_is_never_stolen(
        self,
        store: SessionStore,
        clock: FakeClock,
        lease_ms: int | None,
        passed_ms: int,
        held: bool,
    ) -> None:
        await store.accept(entry("m1"))
        if lease_ms is not None:
            await store.renew("node", lease_ms)
        await claim(store)
        clock.advance(passed_ms)
        found = await store.claim(SESSION, "other", "o")
        if held:
            assert found == NotClaimed("held", "node")
        else:
            assert isinstance(found, Claimed)

    async def test_the_loser_of_a_claim_changes_nothing(self, store: SessionStore) -> None:
        owner = await created(store)
        before = await dump(store, SESSION)
        assert await store.claim(SESSION, "other", "o") == NotClaimed("held", "node")
        assert await dump(store, SESSION) == before
        assert await submit(store, owner.step(b"event")) == [None]

    async def test_of_many_claims_at_once_one_wins(self, store: SessionStore) -> None:
        await store.accept(entry("m1"))
        nodes = [f"node{n}" for n in range(8)]
        await asyncio.gather(*(store.renew(node, LEASE_MS) for node in nodes))
        found = await asyncio.gather(*(store.claim(SESSION, node, node) for node in nodes))
        assert sum(isinstance(one, Claimed) for one in found) == 1
        assert sum(one == NotClaimed("held", "node0") for one in found) == 7

    async def test_the_owner_may_claim_again_and_its_old_token_is_void(
        self, store: SessionStore
    ) -> None:
        old = await created(store)
        new = await claim(store, nonce="again")
        assert await outcomes(store, old.step(b"event")) == ["Fenced"]
        assert await outcomes(store, new.step(b"event")) == ["written"]

    async def test_a_lease_covers_all_sessions_of_its_node(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        sessions = [SESSION._replace(key=key) for key in "abc"]
        for session in sessions:
            await created(store, session)
        clock.advance(LEASE_MS - 1)
        assert await store.renew("node", LEASE_MS)
        clock.advance(LEASE_MS - 1)
        for session in sessions:
            assert await store.claim(session, "other", "o") == NotClaimed("held", "node")

    async def test_renewing_tells_whether_the_lease_had_run_out(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        assert await store.renew("node", LEASE_MS)
        clock.advance(LEASE_MS - 1)
        assert await store.renew("node", LEASE_MS)
        clock.advance(LEASE_MS)
        assert not await store.renew("node", LEASE_MS)
        assert await store.renew("node", LEASE_MS)

    async def test_a_lease_that_had_run_out_leaves_its_node_without_claims(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        clock.advance(LEASE_MS)
        assert not await store.renew("node", LEASE_MS)
        assert await outcomes(store, owner.step(b"event")) == ["Fenced"]
        assert isinstance(await store.claim(SESSION, "other", "o"), Claimed)

    async def test_a_claim_without_a_release_before_it_is_a_strike(
        self, store: SessionStore
    ) -> None:
        await store.accept(entry("m1"))
        nodes = [await claim(store, owner=name, nonce=name) for name in "abcd"]
        assert [one.loaded.strikes for one in nodes] == [0, 1, 2, 3]

    async def test_whoever_claims_again_is_not_dead_and_gets_no_strike(
        self, store: SessionStore
    ) -> None:
        await store.accept(entry("m1"))
        found = [(await claim(store, nonce=nonce)).loaded.strikes for nonce in "abcd"]
        assert found == [0, 0, 0, 0]
        again = await store.claim(SESSION, "node", "e", strikes_max=0)
        assert isinstance(again, Claimed)
        assert (await claim(store, owner="heir", nonce="f")).loaded.strikes == 1

    async def test_progress_resets_the_strikes(self, store: SessionStore) -> None:
        await store.accept(entry("m1"))
        await claim(store, owner="a", nonce="a")
        owner = await claim(store, owner="b", nonce="b")
        assert await submit(store, owner.step(wake_at=1)) == [None]
        assert await strikes(store) == 1
        assert await submit(store, owner.step(b"event")) == [None]
        assert await strikes(store) == 0
        assert (await claim(store, owner="c", nonce="c")).loaded.strikes == 1

    async def test_a_claim_that_would_be_one_strike_too_many_counts_none(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        before = await dump(store, SESSION)
        assert await store.claim(SESSION, "other", "o", strikes_max=0) == NotClaimed("held", "node")
        clock.advance(10 * LEASE_MS)
        for _ in range(3):
            assert await store.claim(SESSION, "other", "o", strikes_max=0) == NotClaimed("struck")
        clock.advance(-10 * LEASE_MS)
        assert await dump(store, SESSION) == before
        clock.advance(10 * LEASE_MS)
        found = await store.claim(SESSION, "other", "o", strikes_max=1)
        assert isinstance(found, Claimed)
        assert found.loaded.strikes == 1
        await store.release(SESSION, found.token)
        assert isinstance(await store.claim(SESSION, "node", "p", strikes_max=0), Claimed)
        assert await outcomes(store, owner.step(b"event")) == ["Fenced"]

    async def test_a_session_that_is_newer_than_its_reader_is_left_to_others(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        assert await submit(store, owner.step(b"event", wake_at=0, generation=2)) == [None]
        await store.release(SESSION, owner.token)
        before = await dump(store, SESSION)
        assert await store.claim(SESSION, "old", "o", reads=1) == NotClaimed("newer")
        assert await dump(store, SESSION) == before
        assert await store.due(clock.now_ms(), 10, reads=1) == ([], None)
        assert await store.due(clock.now_ms(), 10, reads=2) == ([SESSION], None)
        found = await store.claim(SESSION, "new", "n2", reads=2)
        assert isinstance(found, Claimed)
        assert found.loaded.strikes == 0
        assert await submit(store, Claimant(found).step(b"event", generation=1)) == [None]
        await store.release(SESSION, found.token)
        assert await store.claim(SESSION, "old", "o", reads=1) == NotClaimed("newer")

    async def test_a_command_of_a_newer_generation_is_left_to_who_reads_it(
        self, store: SessionStore
    ) -> None:
        await store.accept(entry("m1"), generation=3)
        assert await store.claim(SESSION, "old", "o", reads=2) == NotClaimed("newer")
        assert isinstance(await store.claim(SESSION, "new", "n", reads=3), Claimed)

    async def test_the_first_reason_why_a_claim_is_refused_is_given(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        owner = await created(store)
        assert await submit(store, owner.step(wake_at=0, generation=2)) == [None]
        asked = (SESSION, "other", "o", 0, 1)
        assert await store.claim(*asked) == NotClaimed("held", "node")
        clock.advance(LEASE_MS)
        assert await store.claim(*asked) == NotClaimed("newer")
        assert await store.claim(SESSION, "other", "o", 0, 2) == NotClaimed("struck")
        await store.release(SESSION, None, quarantine="no")
        assert await store.claim(*asked) == NotClaimed("quarantined")

    async def test_what_was_there_when_the_store_was_distrusted_is_suspect_until_it_gets_on(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        before = await created(store)
        clock.advance(5)
        await store.distrust()
        since = clock.now_ms()
        after = await created(store, SESSION._replace(key="after"))
        assert [await suspect(store, one) for one in (SESSION, after.session)] == [since, None]
        assert await submit(store, before.step(b"claimed before that")) == [None]
        assert await suspect(store, SESSION) == since
        owner = await claim(store, nonce="b")
        assert owner.loaded.suspect == since
        assert await submit(store, owner.step(wake_at=0)) == [None]
        assert await suspect(store, SESSION) == since
        assert await submit(store, owner.step(b"event")) == [None]
        assert await suspect(store, SESSION) is None
        await store.distrust()
        assert await suspect(store, SESSION) == since + 1

    async def test_a_release_resets_the_strikes(self, store: SessionStore) -> None:
        await store.accept(entry("m1"))
        await claim(store, owner="a", nonce="a")
        owner = await claim(store, owner="b", nonce="b")
        await store.release(SESSION, owner.token)
        assert await strikes(store) == 0
        assert (await claim(store, nonce="c")).loaded.strikes == 0

    async def test_a_released_claim_cannot_write_or_be_released_again(
        self, store: SessionStore
    ) -> None:
        owner = await created(store)
        await store.release(SESSION, owner.token)
        assert await outcomes(store, owner.step(b"event")) == ["Fenced"]
        with pytest.raises(Fenced):
            await store.release(SESSION, owner.token)
        assert isinstance(await store.claim(SESSION, "other", "o"), Claimed)

    @pytest.mark.parametrize("token", [Token(2, "n"), Token(1, "x"), Token(0, "n")])
    async def test_a_release_with_another_token_is_fenced_and_changes_nothing(
        self, store: SessionStore, token: Token
    ) -> None:
        await created(store)
        before = await dump(store, SESSION)
        with pytest.raises(Fenced):
            await store.release(SESSION, token, quarantine="no")
        assert await dump(store, SESSION) == before
        assert await store.claim(SESSION, "other", "o") == NotClaimed("held", "node")

    async def test_a_session_in_quarantine_is_not_claimed_until_it_is_released_by_hand(
        self, store: SessionStore
    ) -> None:
        await store.accept(entry("m1"))
        await claim(store, owner="a", nonce="a")
        owner = await claim(store, owner="b", nonce="b")
        await store.release(SESSION, owner.token, quarantine="it kills its host")
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert (loaded.quarantine, loaded.strikes) == ("it kills its host", 1)
        assert await store.claim(SESSION, "node", "c") == NotClaimed("quarantined")
        assert not (await store.accept(entry("m2"))).duplicate
        await store.release(SESSION, None)
        freed = await claim(store, nonce="d")
        assert (freed.loaded.quarantine, freed.loaded.strikes) == (None, 0)
        assert [one.id for one in freed.loaded.inbox] == ["m1", "m2"]

    async def test_a_release_by_hand_takes_a_session_away_from_its_owner(
        self, store: SessionStore
    ) -> None:
        owner = await created(store)
        await store.release(SESSION, None, quarantine="by hand")
        assert await outcomes(store, owner.step(b"event")) == ["Fenced"]
        with pytest.raises(Fenced):
            await store.release(SESSION, owner.token)
        assert await store.claim(SESSION, "other", "o") == NotClaimed("quarantined")

    async def test_a_session_that_does_not_exist_cannot_be_released(
        self, store: SessionStore
    ) -> None:
        with pytest.raises(NotFound):
            await store.release(SESSION, None)
        with pytest.raises(Fenced):
            await store.release(SESSION, Token(1, "n"))
        assert await store.load(SESSION) is None
