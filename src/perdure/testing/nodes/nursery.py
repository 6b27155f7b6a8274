"""Node processes by fork: a process that has imported everything forks them, and buries them.

`python -m perdure.testing.nodes.nursery` is that process; it reads lines of JSON, each the life of
a node, and writes a line when one began and when it ended. When its standard input is closed it
takes its children with it. `Nursery` starts it, under a false clock if it shall be.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from perdure.core.errors import PerdureError
from perdure.testing.nodes.contender import Contest, contend
from perdure.testing.nodes.member import Life, live
from perdure.testing.servers import ServerMissing

STARTS_SECONDS_MAX = 30.0
SEPARATE = "FAKETIME_DONT_FAKE_MONOTONIC"


AnyLife = Life | Contest


class Member:
    """A node process."""

    def __init__(self, life: AnyLife, pid: int) -> None:
        self.life = life
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Its exit code, or the negative number of the signal that ended it."""

    def send(self, number: int) -> None:
        """Send it a signal, if it is there still."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def end(self, number: int = signal.SIGKILL, seconds_max: float = 30.0) -> int:
        """Send it a signal that ends it, and wait for that. Raises `TimeoutError`."""
        self.send(signal.SIGCONT)
        self.send(number)
        return await asyncio.wait_for(asyncio.shield(self.ended), seconds_max)


class Nursery:
    """Starts node processes. Its clock is that of the machine, or what `clock` says of it.

    `clock` is a file in which a rule of faketime stands (`+0`, `+2h`, `-3d`), read once a second.
    The monotonic clock stays true; `speed` lets both clocks run at another speed instead.
    """

    def __init__(self, clock: Path | None = None, speed: float | None = None) -> None:
        self._environment = {**os.environ, **false_clock(clock, speed)}
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._unborn: deque[tuple[AnyLife, asyncio.Future[Member]]] = deque()
        self._members: dict[int, Member] = {}

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "perdure.testing.nodes.nursery",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._listening is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._listening

    async def start(self, life: AnyLife) -> Member:
        """Start a node. Raises `PerdureError` if it cannot be forked."""
        assert self._process is not None
        assert self._process.stdin is not None
        # Each waits for its own: several are started at once, and whoever was given another's
        # would never see its own one end.
        born: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._unborn.append((life, born))
        self._process.stdin.write(msgspec.json.encode(life) + b"\n")
        return await asyncio.wait_for(born, STARTS_SECONDS_MAX)

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "began" in told:
                pid = told["began"]
                life, born = self._unborn.popleft()
                member = self._members[pid] = Member(life, pid)
                if not born.done():
                    born.set_result(member)
            else:
                self._members.pop(told["ended"]).ended.set_result(told["code"])
        for _, born in self._unborn:
            if not born.done():
                born.set_exception(PerdureError("the nursery of the nodes is gone"))


def false_clock(clock: Path | None, speed: float | None) -> dict[str, str]:
    """Return what a process needs in its environment to have a false clock.

    Raises `ServerMissing` if faketime is not installed.
    """
    if clock is None and speed is None:
        return {}
    try:
        found = subprocess.run(
            ["faketime", "-f", "+0", "env"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise ServerMissing("no faketime on the path: install the package faketime") from None
    given = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    if clock is None:
        return {"LD_PRELOAD": given["LD_PRELOAD"], "FAKETIME": f"+0 x{speed}"}
    return {
        "LD_PRELOAD": given["LD_PRELOAD"],
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        SEPARATE: "1",
        SEPARATE.removeprefix("FAKETIME_"): "1",
    }


# ------------------------------------------------------------------------------------- the process


def serve() -> None:
    """Fork nodes until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: set[int] = set()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(reader, selectors.EVENT_READ)
        while True:
            ready = [key.fd for key, _ in selector.select()]
            if reader in ready:
                os.read(reader, 4096)
                _bury(children)
            if 0 in ready:
                data = os.read(0, 65_536)
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    life = msgspec.json.decode(line, type=AnyLife)
                    children.add(_fork(life, (reader, writer)))
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in children:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _tell(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def _bury(children: set[int]) -> None:
    while children:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        children.discard(pid)
        _tell(ended=pid, code=os.waitstatus_to_exitcode(status))


def _fork(life: AnyLife, pipes: tuple[int, int]) -> int:
    pid = os.fork()
    if pid:
        _tell(began=pid)
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pipe in pipes:
            os.close(pipe)
        nothing = os.open(os.devnull, os.O_RDWR)
        words = os.open(Path(life.out) / f"{life.name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for fd, standard in ((nothing, 0), (words, 1), (words, 2)):
            os.dup2(fd, standard)
        code = asyncio.run(live(life) if isinstance(life, Life) else contend(life))
    except BaseException:  # noqa: BLE001  the process ends here, and its words are kept
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
