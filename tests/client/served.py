"""A server on a port of its own, in this process, which can go away and come back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from perdure.adapters.clock import SystemClock
from perdure.bootstrap import Agent, open_service
from perdure.client import AsyncClient
from perdure.server.app import application
from perdure.worker.remote import RemoteWorker
from tests.worker.helpers import unknown

KEY = "nrn_a-key-that-was-given-from-outside"
PATIENCE_SECONDS = 20


class Served:
    """A server that keeps its data in `folder` and its port while it is away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve, from what was there before."""
        up = asyncio.Event()
        self._serving = asyncio.ensure_future(self._serve(up))
        await asyncio.wait_for(up.wait(), PATIENCE_SECONDS)

    async def stop(self) -> None:
        """Go away; connections are closed, and data stay."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait_for(self._serving, PATIENCE_SECONDS)
            self._server = self._serving = None

    @property
    def url(self) -> str:
        """Where it is, or was."""
        return f"http://127.0.0.1:{self._port}"

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        return listener

    async def _serve(self, up: asyncio.Event) -> None:
        store = f"sqlite:///{self._folder}/sessions.db"
        environment = {"PERDURE_BOOTSTRAP_KEY": KEY, "PERDURE_WEBHOOK_NETWORKS": "127.0.0.0/8"}
        async with open_service(self._folder, store, environment) as (service, _):
            config = uvicorn.Config(
                application(service),
                log_config=None,
                access_log=False,
                lifespan="on",
                ws="websockets-sansio",
                timeout_graceful_shutdown=1,
            )
            self._server = _Server(config, up)
            await self._server._serve([self._listen()])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, up: asyncio.Event) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()


@asynccontextmanager
async def a_server(folder: Path) -> AsyncIterator[Served]:
    """Run a server until the block ends."""
    served = Served(folder)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


@asynccontextmanager
async def agents_on(served: Served, *agents: Agent, **options: Any) -> AsyncIterator[RemoteWorker]:
    """Run a worker for these agents; it is there when the block begins."""
    options = {"worker_id": "w1", **options}
    worker = RemoteWorker(served.url, KEY, unknown, SystemClock(), **options)
    running = asyncio.ensure_future(worker.run(agents, signals=False))
    try:
        async with AsyncClient(served.url, KEY) as client, asyncio.timeout(PATIENCE_SECONDS):
            while not (await client.call("list_workers")).data:
                assert not running.done(), running.result()
        yield worker
    finally:
        worker.stop()
        await asyncio.wait([running], timeout=PATIENCE_SECONDS)
        running.result()
