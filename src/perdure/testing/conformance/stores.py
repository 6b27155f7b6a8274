"""The suite of the `SessionStore` port: every promise a sentence, every driver the same sentences.

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def open_store(self) -> OpenStore:
            return my_store     # an async context manager: async with my_store(clock) as store

The clock stands still until a test moves it. The tests are coroutines: run them with anyio's pytest
plugin (`anyio_mode = "auto"`). A store that is opened again may keep what it had; every test opens
one once and expects it to be empty.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.accepting import Accepting
from perdure.testing.conformance.claiming import Claiming
from perdure.testing.conformance.committing import Committing
from perdure.testing.conformance.listing import Listing
from perdure.testing.conformance.loading import Loading
from perdure.testing.conformance.opening import OpenStore
from perdure.testing.conformance.sharing import Sharing
from perdure.testing.conformance.waking import Waking

__all__ = ["OpenStore", "StoreConformance"]


class StoreConformance(Accepting, Claiming, Committing, Loading, Waking, Listing, Sharing):
    """Every promise of the port; a driver adds the fixture `open_store`."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the store's clock."""
        return FakeClock()

    @pytest.fixture
    async def store(self, open_store: OpenStore, clock: FakeClock) -> AsyncIterator[SessionStore]:
        """Open a store."""
        async with open_store(clock) as store:
            yield store
