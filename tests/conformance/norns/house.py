"""A node and the official SDK's workers and clients, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.conformance.norns.tap import Tap

HERE = Path(__file__).parent
KEY = "nrn_conformance0123456789abcdef"
DEADLINE_SECONDS = 60
POLL_SECONDS = 0.05


def script(*replies: Any) -> str:
    """Return a message that tells the stub of LiteLLM what its model replies, step by step."""
    return json.dumps(replies)


def call(tool: str, **arguments: Any) -> list[Any]:
    """Return a call of a tool, for a reply of a script: `script([call("look", thing="it")])`."""
    return [tool, arguments]


async def until(condition: Callable[[], Any]) -> Any:
    """Return what a condition gives once that is true; it may be `async`."""
    found: Any = None
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not found:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if not found:
                    await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_SECONDS} s; last seen: {found!r}") from None
    return found


class Program:
    """A process whose lines of output can be awaited."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """Return its next line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            return (await self.process.stdout.readline()).decode().strip()

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it by a signal, and wait until it is gone."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        await self.gone()

    async def gone(self) -> None:
        """Wait until it is gone."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.process.wait()


class Client(Program):
    """The SDK's client: `await client.do("send_message", "bot", "hi", wait=True)`."""

    async def do(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Return what a method returns. Raises `Raised` for what it raises."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, arguments, named]).encode() + b"\n")
        answer = json.loads(await self.line())
        if "raised" in answer:
            raise Raised(answer["raised"], answer["status"], answer["text"])
        return answer["returned"]

    async def send(self, content: str, **named: Any) -> int:
        """Send the agent `bot` a message; return its run."""
        return (await self.do("send_message", "bot", content, **named))["run_id"]

    async def ended(self, run: int) -> dict[str, Any]:
        """Return a run that is over, or waits for somebody."""

        async def over() -> Any:
            found = await self.do("get_run", run)
            return found if found["status"] in ("completed", "failed", "waiting") else None

        return await until(over)

    async def events(self, run: int) -> list[str]:
        """Return the types of a run's events."""
        return [event["event_type"] for event in await self.do("get_events", run)]


class Raised(Exception):
    """What the SDK raised: the name of its class, the HTTP status if any, its text."""


class House:
    """One test's processes, and the journal that the workers' tools and model write.

    With a URL and the keys of two tenants it has no node of its own: it is the first tenant there.
    """

    def __init__(self, folder: Path, python: Path, url: str = "", *keys: str) -> None:
        self.folder = folder
        self.url = url
        self.key, self.foreign_key = keys or (KEY, "")
        self._python = python
        self._port = int(url.rpartition(":")[2]) if url else 0
        self._programs: list[Program] = []
        self._taps: list[Tap] = []
        self._http = httpx2.AsyncClient(trust_env=False)
        self._node: Program | None = None

    @property
    def journal(self) -> list[str]:
        """What the tools did and the model was asked."""
        path = self.folder / "journal"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def did(self, what: str) -> int:
        """Return how often a line is in the journal."""
        return self.journal.count(what)

    async def node(self, halts: int | None = None) -> None:
        """Start the node; a later one takes its place on the same port.

        With a file descriptor it stands still whenever something is durable: see `halting.py`.
        """
        program = ["-m", "perdure"] if halts is None else [HERE / "halting.py", halts]
        options = ["--port", self._port, "--folder", self.folder]
        command = [sys.executable, *program, "server", *options]
        self._node = Program(await self.start("node", *command, fd=halts))
        self.url = (await self._node.line()).split()[3]
        self._port = int(self.url.rpartition(":")[2])

    async def kill_node(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill the node."""
        assert self._node is not None
        await self._node.end(number)

    async def tap(self) -> Tap:
        """Put a tap on the line between workers and the node: they use its URL."""
        tap = Tap("127.0.0.1", self._port)
        self._taps.append(tap)
        await tap.open()
        return tap

    async def start_worker(
        self, *agents: dict[str, Any], via: Tap | None = None, key: str = "", **options: Any
    ) -> Program:
        """Start a worker; without agents it has one named `bot`."""
        options = {"worker_id": "w1", **options, "agents": agents or [{}]}
        url = self.url if via is None else via.url
        arguments = [HERE / "sdk" / "worker.py", url, key or self.key, json.dumps(options)]
        return Program(await self.start(options["worker_id"], self._python, *arguments))

    async def worker(self, *agents: dict[str, Any], **options: Any) -> Program:
        """Start a worker, and wait until it is connected."""
        worker = await self.start_worker(*agents, **options)
        await until(lambda: self.is_here(options.get("worker_id", "w1")))
        return worker

    async def is_here(self, worker_id: str) -> bool:
        """Say whether a worker is connected."""
        return worker_id in [one["worker_id"] for one in await self.get("/workers")]

    async def client(self, key: str = "") -> Client:
        """Start a client."""
        arguments = [HERE / "sdk" / "client.py", self.url, key or self.key]
        return Client(await self.start("client", self._python, *arguments))

    async def ask(
        self, method: str, path: str, body: Any = None, key: str = "", **headers: str
    ) -> Any:
        """Return the status and the decoded body that the REST API answers."""
        answer = await self._http.request(
            method,
            f"{self.url}/api/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {key or self.key}", **headers},
        )
        return answer.status_code, answer.json() if answer.content else None

    async def get(self, path: str) -> Any:
        """Return the data of a page that must be there."""
        status, body = await self.ask("GET", path)
        assert status == 200, body
        return body["data"]

    async def post(self, path: str, body: Any = None) -> Any:
        """Return the data of what was made."""
        status, answer = await self.ask("POST", path, {} if body is None else body)
        assert status in (200, 201, 202), answer
        return answer.get("data", answer)

    async def close(self) -> None:
        """End everything."""
        for program in self._programs:
            with contextlib.suppress(ProcessLookupError):
                await program.end()
        for tap in self._taps:
            await tap.close()
        await self._http.aclose()

    async def start(
        self, name: str, *command: Any, fd: int | None = None, **environment: Any
    ) -> asyncio.subprocess.Process:
        """Start a program that ends with this house; what it says to stderr is in `NAME.log`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *map(str, command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                pass_fds=() if fd is None else (fd,),
                env={
                    "PATH": os.environ["PATH"],
                    "NORNS_DEFAULT_TENANT_KEY": KEY,
                    "PYTHONPATH": str(HERE / "sdk"),
                    "JOURNAL": str(self.folder / "journal"),
                    "NORNS_STATE_DIR": str(self.folder / "state"),
                    "NO_PROXY": "*",
                    **{variable: str(value) for variable, value in environment.items()},
                },
            )
        self._programs.append(Program(process))
        return process
