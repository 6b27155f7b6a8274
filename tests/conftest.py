"""What every test has."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run every `async def test_` on asyncio: the shell is written for it and for nothing else."""
    return "asyncio"
