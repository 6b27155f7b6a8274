"""The official SDK in an environment of its own, and a house for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.environments import python_for
from tests.conformance.norns.house import House

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    """Return the interpreter that has norns-sdk: installed once, in some seconds."""
    return python_for(HERE / "norns" / "norns-sdk.txt", HERE)


@pytest.fixture
async def house(tmp_path: Path, sdk_python: Path) -> AsyncIterator[House]:
    """Give a house with a running node."""
    house = House(tmp_path, sdk_python)
    await house.add_foreign_tenant()
    try:
        await house.node()
        yield house
    finally:
        await house.close()
