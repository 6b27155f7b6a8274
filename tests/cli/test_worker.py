"""What `perdure worker` and `perdure dev` say of the connection, and of a key that is refused."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perdure.api.shapes import GardCreate, KeyCreate
from perdure.cli.server import JOINED, ConnectionNews
from perdure.client import AsyncClient
from tests.cli.hosted import Hosted
from tests.cli.terminal import Terminal
from tests.client.served import KEY, Served, a_server

SECONDS_MAX = 30
REFUSED = 12


class Worker:
    """A `perdure worker` at work, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []

    async def until(self, said: str) -> None:
        """Wait until it says something that begins so."""
        assert self.process.stderr is not None
        async with asyncio.timeout(SECONDS_MAX):
            while not self.said or not self.said[-1].startswith(said):
                line = await self.process.stderr.readline()
                assert line, self.said
                self.said.append(line.decode().rstrip("\n"))

    async def code(self) -> int:
        """Return its exit code, once it has ended."""
        _, rest = await asyncio.wait_for(self.process.communicate(), SECONDS_MAX)
        self.said += rest.decode().splitlines()
        return self.process.returncode or 0


@asynccontextmanager
async def a_worker(
    folder: Path, served: Served, key: str, *options: str, **environment: str
) -> AsyncIterator[Worker]:
    """Run a worker for the helper, which has to be connected first."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perdure", "worker", "agents.py:helper"),
        *("--url", served.url, "--key", key, *options),
        cwd=folder,
        env={**Terminal(folder).environment, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    worker = Worker(process)
    try:
        await worker.until("connected")
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_connection_that_comes_back_is_told(tmp_path: Path) -> None:
    async with a_server(tmp_path) as served, a_worker(tmp_path, served, KEY) as worker:
        await served.stop()
        await worker.until(f"the server at {served.url} cannot be reached: ")
        await served.start()
        await worker.until("connected again")
        worker.process.terminate()
        assert await worker.code() == 0
    assert worker.said[:2] == [f"worker for helper at {served.url}", "connected"]


async def test_a_workers_key_is_told_to_define_nothing(tmp_path: Path) -> None:
    async with a_server(tmp_path) as served, AsyncClient(served.url, KEY) as client:
        made = await client.call("create_key", body=KeyCreate(scope="worker"))
        async with a_worker(tmp_path, served, made.key) as worker:
            assert await client.agents() == []
    assert worker.said[1].startswith("a worker's key defines no agents: helper must be there")
    assert worker.said[2] == "connected"


async def test_a_gard_is_served_by_who_has_its_claim_token(tmp_path: Path) -> None:
    async with a_server(tmp_path) as served, AsyncClient(served.url, KEY) as client:
        gard = await client.call("create_gard", body=GardCreate(name="sandbox"))
        claim = {"PERDURE_CLAIM_TOKEN": gard.claim_token}
        async with a_worker(tmp_path, served, KEY, "--gard", str(gard.id), **claim):
            assert (await client.call("get_gard", id=gard.id)).status == "ready"
            assert [one.gard for one in (await client.call("list_workers")).data] == [gard.id]


def test_what_has_not_changed_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    news, lost = ConnectionNews(), "the server at here cannot be reached"
    for text in (JOINED, lost, lost, JOINED, lost):
        news.handle(logging.makeLogRecord({"msg": text}))
    assert capsys.readouterr().err.splitlines() == [
        *("connected", lost),
        *("connected again", lost),
    ]


async def test_a_worker_whose_key_is_revoked_ends_with_a_line(tmp_path: Path) -> None:
    async with a_server(tmp_path) as served, AsyncClient(served.url, KEY) as client:
        made = await client.call("create_key", body=KeyCreate(scope="admin"))
        async with a_worker(tmp_path, served, made.key) as worker:
            await client.call("revoke_key", id=made.id)
            assert await worker.code() == REFUSED
    assert worker.said[2:] == ["perdure: the worker's key was revoked"]


def test_a_worker_that_is_refused_is_not_started_again(tmp_path: Path) -> None:
    server = Terminal(tmp_path).start("dev", "agents.py:helper", "--port", "0")
    try:
        assert server.stdout is not None
        assert server.stderr is not None
        url, key = server.stdout.readline().split()[3], server.stdout.readline().split()[1]
        while server.stderr.readline() != "connected\n":
            assert server.poll() is None
        Hosted(url).ok("keys", "create", "--scope", "admin", key=key)
        Hosted(url).ok("keys", "revoke", "1", key=key)
        said = [server.stderr.readline() for _ in range(2)]
    finally:
        server.terminate()
        _, rest = server.communicate(timeout=SECONDS_MAX)
    assert said[0] == "perdure: the worker's key was revoked\n"
    assert said[1].startswith("the worker is not started again")
    assert (server.returncode, rest) == (0, "")
