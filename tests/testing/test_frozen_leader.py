"""Whoever was paused beyond its lease writes nothing more, and broken drivers are found out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure.testing.nodes.backends import Backend, backend
from perdure.testing.nodes.frozen import POINTS
from perdure.testing.nodes.leader import (
    ROUNDS_TO_CATCH_MAX,
    play_frozen,
    play_frozen_in_memory,
)
from perdure.testing.servers import ServerMissing

ROUNDS = 45
CAUGHT = (
    "no_fence",
    "version_not_checked",
    "claim_ignores_lease",
    "lost_claim_goes_on",
    "load_before_claim",
)


@pytest.fixture(params=["sqlite", "postgres", "redis", "nats"], scope="module")
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Run the servers of a store."""
    try:
        async with backend(request.param) as running:
            yield running
    except ServerMissing as error:
        pytest.skip(f"no server: {error}")


async def test_nothing_stale_is_accepted_in_memory() -> None:
    found = await play_frozen_in_memory(ROUNDS)
    assert (found.rounds, found.wrong) == (ROUNDS, ())
    assert found.refused > ROUNDS


async def test_nothing_stale_is_accepted(shared: Backend) -> None:
    found = await play_frozen(shared, ROUNDS)
    assert (found.rounds, found.wrong) == (ROUNDS, ())
    assert found.refused > ROUNDS
    points = POINTS if shared.shared else POINTS[:3]
    assert set(found.by_point) == set(points)


@pytest.mark.parametrize("mutant", CAUGHT)
async def test_a_broken_store_is_found_out(shared: Backend, mutant: str) -> None:
    found = await play_frozen(shared, ROUNDS_TO_CATCH_MAX, mutant=mutant)
    assert found.wrong, f"{mutant} got away"
