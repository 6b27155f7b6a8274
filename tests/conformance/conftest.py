"""The official SDK in an environment of its own, and a house for each test."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bench.environments import python_for
from perdure.bootstrap import MEMORY_URL, open_service
from perdure.server.setup import ensure_tenant
from tests.conformance.norns.house import House

HERE = Path(__file__).parent
TENANTS = 200


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    """Return the interpreter that has norns-sdk: installed once, in some seconds."""
    return python_for(HERE / "norns" / "norns-sdk.txt", HERE)


async def furnish(folder: Path) -> list[str]:
    """Make tenants; return a key of each."""
    keys = [f"nrn_tenant{number:04}0123456789abcdef" for number in range(TENANTS)]
    async with open_service(folder, MEMORY_URL, {}) as (service, _):
        for number, key in enumerate(keys):
            tenant = await ensure_tenant(service.catalog, f"tenant{number}")
            await service.keys.adopt(tenant, key)
    return keys


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Iterator[str]]]:
    """Give the URL of a server that nobody kills, and keys, each of another tenant."""
    folder = tmp_path_factory.mktemp("server")
    keys = asyncio.run(furnish(folder))
    command = [sys.executable, "-m", "perdure", "server", "--port", "0", "--folder", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[3], iter(keys)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.fixture
async def house(
    tmp_path: Path, sdk_python: Path, server: tuple[str, Iterator[str]]
) -> AsyncIterator[House]:
    """Give a tenant of its own on a server that many tests share."""
    url, keys = server
    house = House(tmp_path, sdk_python, url, next(keys), next(keys))
    try:
        yield house
    finally:
        await house.close()


@pytest.fixture
async def mortal(tmp_path: Path, sdk_python: Path) -> AsyncIterator[House]:
    """Give a house with a node of its own, which may be killed."""
    house = House(tmp_path, sdk_python)
    try:
        await house.node()
        yield house
    finally:
        await house.close()
