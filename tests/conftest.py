"""What every test has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.checked_logs import every_log_checked


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run every `async def test_` on asyncio: the shell is written for it and for nothing else."""
    return "asyncio"


@pytest.fixture(scope="session")
def logs_that_left_the_model() -> Iterator[list[str]]:
    """Have every log checked that a node in this process writes."""
    with every_log_checked() as left:
        yield left


@pytest.fixture(autouse=True)
def no_log_leaves_the_model(logs_that_left_the_model: list[str]) -> Iterator[None]:
    """Fail a test whose nodes wrote a log that the transition tables do not allow."""
    yield
    left = logs_that_left_the_model.copy()
    logs_that_left_the_model.clear()
    assert left == []
