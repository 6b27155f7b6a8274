"""The suite of `stores` without a test runner: which promises does a store break?"""

from __future__ import annotations

import inspect

import pytest

from perdure.testing.clock import FakeClock
from perdure.testing.conformance.opening import OpenStore
from perdure.testing.conformance.stores import StoreConformance

GIVEN = {"store", "clock", "open_store"}


def promises() -> list[str]:
    """Return the names of the tests that need nothing but a store: one for each promise."""
    names = [name for name in dir(StoreConformance) if name.startswith("test_")]
    return [name for name in names if _needs(name) <= GIVEN]


def _needs(name: str) -> set[str]:
    return set(inspect.signature(getattr(StoreConformance, name)).parameters) - {"self"}


async def broken_promises(open_store: OpenStore) -> list[str]:
    """Return the names of the tests that fail with a store."""
    found = []
    for name in promises():
        clock = FakeClock()
        async with open_store(clock) as store:
            given = {"store": store, "clock": clock, "open_store": open_store}
            wanted = {one: given[one] for one in _needs(name)}
            try:
                await getattr(StoreConformance(), name)(**wanted)
            except (Exception, pytest.fail.Exception):  # noqa: BLE001  a test fails by raising
                found.append(name)
    return found
