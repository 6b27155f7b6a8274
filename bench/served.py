"""Perdure as a server: the node here, the worker in a second process over a WebSocket.

Clients send their messages in the node's process, so that what is measured besides the spine is the
socket: the pool, the protocol, and the worker's side of it.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apsw

from bench import workload
from perdure.bootstrap import open_service
from perdure.core.commands import ReportReply, ReportToolResult
from perdure.server.service import Service
from perdure.server.serving import serve

STORE = "perdure.db"
KEY = "bench_key_of_this_machine_only"
READY_SECONDS_MAX = 30
OPEN = AsyncExitStack()
"""What is open to the end of the process."""


class Served:
    """A node with a worker at the other end of a socket."""

    def __init__(self, service: Service, url: str, book: workload.Book, path: Path) -> None:
        self.service = service
        self.port = url.rpartition(":")[2]
        self._desk = service.desk("default")
        self._store: Any = service.store
        self._path = str(path)
        self._agent = ""
        self._joined = asyncio.Event()
        self._count(service, book)

    def _count(self, service: Service, book: workload.Book) -> None:
        start = service.pool.start

        def counting(task: Any, on_report: Any, on_text: Any) -> None:
            def reported(done: Any, report: Any) -> None:
                if isinstance(report, ReportReply) and report.reply.tool_calls:
                    book.model_called()
                elif isinstance(report, ReportToolResult):
                    book.tool_called()
                on_report(done, report)

            start(task, reported, on_text)

        service.pool.start = counting
        join = service.pool.join

        def joining(*arguments: Any) -> Any:
            self._joined.set()
            return join(*arguments)

        service.pool.join = joining

    async def ready(self) -> None:
        """Wait for the worker and its agent."""
        async with asyncio.timeout(READY_SECONDS_MAX):
            await self._joined.wait()
        self._agent = self._desk.agents.names("default")[0]

    async def run(self, number: int, steps: int) -> None:
        """Send a message and wait for its answer."""
        run = await self._desk.runs.send(self._agent, f"{workload.prompt(number)} {steps}")
        await run.result()

    async def number(self, steps: int, *, ended: bool = True) -> int:
        """Begin a run of so many steps, wait for its end if so asked, and return its number."""
        run = await self._desk.runs.send(self._agent, f"{workload.prompt(0)} {steps}")
        if ended:
            await run.result()
        return await self._desk.numbers.run(run.id)

    def facts(self) -> dict[str, Any]:
        """Return what is stored, in how many commits, and the version."""
        reader = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
        stored = reader.pragma("page_count") * reader.pragma("page_size")
        reader.close()
        return {
            "version": f"perdure {version('perdure')}",
            "stored_bytes": stored,
            "commits": self._store.facts()["transactions"],
        }


async def open_node(folder: Path) -> tuple[Service, str]:
    """Open a server in this process, which lasts as long as that; return its URL besides."""
    store = f"sqlite:///{folder / STORE}"
    opened = open_service(folder, store, {"PERDURE_BOOTSTRAP_KEY": KEY})
    service, _ = await OPEN.enter_async_context(opened)
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(serve(service, "127.0.0.1", 0, url.set_result))
    OPEN.push_async_callback(asyncio.wait, [serving])
    return service, await url


async def open_served(
    folder: Path, book: workload.Book, worker: str = "bench.served_worker"
) -> Served:
    """Open the server, and start its worker: a module that is run with the URL and the key."""
    service, url = await open_node(folder)
    served = Served(service, url, book, folder / STORE)
    await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", worker, url, KEY), stdin=asyncio.subprocess.PIPE
    )
    await served.ready()
    return served


if __name__ == "__main__":
    workload.main(open_served)
