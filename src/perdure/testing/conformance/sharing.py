"""What keeps sessions, agents and commands out of each other's way."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.errors import LimitExceeded
from perdure.core.limits import INBOX_ENTRIES_MAX
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import SESSION, claim, entry, run_row


class Sharing:
    """Nobody starves and nobody is blamed."""

    async def test_a_scan_for_some_agents_is_not_filled_by_the_sessions_of_others(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        others = [SESSION._replace(agent="other", key=str(n)) for n in range(5)]
        for other in others:
            await store.accept(entry("m1", session=other))
        await store.accept(entry("m1"))
        now = clock.now_ms()
        assert await store.due(now, 3, [SESSION.agent]) == ([SESSION], None)
        assert await store.due(now, 3, []) == ([], None)
        assert len((await store.due(now, 10))[0]) == 6

    async def test_a_full_inbox_still_takes_what_can_empty_it(self, store: SessionStore) -> None:
        names = [f"m{n}" for n in range(INBOX_ENTRIES_MAX)]
        await asyncio.gather(*(store.accept(entry(name), run_row(name)) for name in names))
        with pytest.raises(LimitExceeded):
            await store.accept(entry("one more"), run_row("one more"))
        assert not (await store.accept(entry("a cancel"))).duplicate

    async def test_a_node_that_lost_its_lease_and_lives_gets_no_strike(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.accept(entry("m1"))
        for nonce in "abcd":
            await store.renew("node", 100)
            assert (await claim(store, nonce=nonce)).loaded.strikes == 0
            clock.advance(101)
            assert not await store.renew("node", 100)
