"""Isolated tools: each call in a process of its own, which can be killed with all it started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import msgspec

from perdure.core.limits import RESULT_BYTES_MAX
from perdure.ports.clock import Clock, Timer
from perdure.ports.credentials import Secret
from perdure.worker.context import ToolContext
from perdure.worker.origin import Origin
from perdure.worker.outcome import Lost, Outcome, describe
from perdure.worker.redaction import hidden_in

ANSWER_BYTES_MAX = RESULT_BYTES_MAX + 64 * 1024
ISOLATED_VARIABLE = "PERDURE_ISOLATED_TOOL"
"""Is set in the process of an isolated tool, so that the tool's file starts no runtime in it."""
EXIT_MS_MAX = 5_000
"""How long a process may take to end in good order, after its answer or when it is told to."""


class Job(msgspec.Struct, frozen=True):
    """What a process is told: the function, its arguments as JSON, and where to import from."""

    origin: Origin
    tool: str
    arguments: dict[str, Any]
    context: ToolContext
    path: list[str]


def _revealed(secret: Any) -> str:
    """Return a secret's text, for the pipe to the one process that needs it."""
    if isinstance(secret, Secret):
        return secret.reveal()
    raise NotImplementedError(f"a {type(secret).__name__} is nothing that a job has")


class Processes:
    """The processes of isolated tools that are alive."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._alive: set[_Process] = set()

    async def run(self, job: Job) -> Outcome | Lost:
        """Run a job in a new process and return how it ended; cancelling kills the process."""
        loop = asyncio.get_running_loop()
        process = _Process(self._clock, self._alive)
        command = (sys.executable, "-P", "-m", "perdure.worker.child")
        try:
            await loop.subprocess_exec(
                lambda: process,
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=None,
                start_new_session=True,
                env={**os.environ, ISOLATED_VARIABLE: "1"},
            )
        except OSError as error:
            return Outcome(False, f"No process for the tool: {describe(error)}", "not_started")
        return await process.ask(msgspec.json.encode(job, enc_hook=_revealed) + b"\n")

    async def close(self) -> None:
        """Kill every process and wait until it is gone."""
        processes = tuple(self._alive)
        for process in processes:
            process.kill()
        if processes:
            await asyncio.wait([process.gone for process in processes])


class _Process(asyncio.SubprocessProtocol):
    """One process: the job goes in by its stdin, which stays open; a line comes back."""

    def __init__(self, clock: Clock, alive: set[_Process]) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._received = bytearray()
        self._clock = clock
        self._alive = alive
        self._killed = False
        self._timer: Timer | None = None
        self._transport: asyncio.SubprocessTransport
        self._stdin: asyncio.WriteTransport

    async def ask(self, job: bytes) -> Outcome | Lost:
        """Send the job and return the answer, or how the process ended without one."""
        self._stdin.write(job)
        try:
            answer = await self._answer
        except asyncio.CancelledError:
            self.kill()
            raise
        if answer is None:
            return Lost(self._how_it_ended())
        if not self.gone.done():
            self._timer = self._clock.call_later(EXIT_MS_MAX, self.kill)
        outcome = msgspec.json.decode(answer, type=Outcome)
        return msgspec.structs.replace(outcome, content=hidden_in(outcome.content, answer))

    def kill(self) -> None:
        """Have the guard kill the child and its group; harmless when all has ended."""
        if self._transport.get_returncode() is not None:
            self._transport.close()
        elif not self._killed:
            self._killed = True
            self._stdin.abort()
            self._stop_timer()
            self._timer = self._clock.call_later(EXIT_MS_MAX, self._transport.kill)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        self._transport = transport
        self._stdin = stdin
        self._alive.add(self)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._received += data
        if self._answer.done():
            return
        if data.endswith(b"\n"):
            self._answer.set_result(bytes(self._received))
        elif len(self._received) > ANSWER_BYTES_MAX:
            self.kill()

    def process_exited(self) -> None:
        # Whatever the tool left behind may hold the pipes open: nothing more is read from it.
        if self._answer.done() or self._killed:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._transport.close()
        self._alive.discard(self)
        if not self._answer.done():
            self._answer.set_result(None)
        self.gone.set_result(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _how_it_ended(self) -> str:
        code = self._transport.get_returncode() or 0
        how = f"exited with code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return f"the tool's process {how} before it answered"
