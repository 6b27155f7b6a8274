"""What every test has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.testing.servers import ServerMissing
from perdure.testing.servers.postgres import PostgresServer
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


NO_SERVER = "no server:"
"""How a test says, when it skips itself, that it could not run for want of a server."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Start one PostgreSQL for all tests of this process: each makes a database of its own."""
    try:
        server = PostgresServer.start()
    except ServerMissing as missing:
        pytest.skip(f"{NO_SERVER} {missing}")
    with server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was not tested for want of a server: a green line alone would hide it."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        _, found, missing = why.partition(NO_SERVER)
        if found:
            reasons.setdefault(missing.strip(), []).append(report.nodeid)
    if not reasons:
        return
    untested = sum(map(len, reasons.values()))
    title = f"NOT TESTED: {untested} tests had no server"
    terminalreporter.section(title, sep="=", red=True, bold=True)
    for missing, tests in sorted(reasons.items()):
        files = sorted({test.partition("::")[0] for test in tests})
        terminalreporter.line(f"{len(tests)} tests in {', '.join(files)}: {missing}", red=True)
