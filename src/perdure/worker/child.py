"""The process of one isolated call: `python -m perdure.worker.child`.

The job is one line on stdin, the answer one line on stdout. Both are moved out of the tool's reach
first: it reads nothing, and what it prints goes to stderr. Stdin stays open as long as the worker
lives; when it closes, this process and all it started are killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import signal
import sys
import threading
from collections.abc import Awaitable
from typing import Any

import msgspec

from perdure.core.errors import InvalidInput
from perdure.worker.origin import load
from perdure.worker.outcome import Outcome, describe, raised, returned
from perdure.worker.processes import Job
from perdure.worker.tool import tool

_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 1024 * 1024


def main() -> None:
    """Do the one job and answer."""
    _die_with_parent()
    jobs, answers = os.dup(0), os.dup(1)
    nothing, closed = os.pipe()
    os.close(closed)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    job = msgspec.json.decode(_read_line(jobs), type=Job)
    threading.Thread(target=_watch, args=(jobs,), daemon=True).start()
    answer = msgspec.json.encode(perform(job)) + b"\n"
    while answer:
        answer = answer[os.write(answers, answer) :]


def perform(job: Job) -> Outcome:
    """Import the tool and run it; whatever goes wrong is an outcome."""
    sys.path[:] = job.path
    try:
        found = tool(load(job.origin))
    except BaseException as error:  # noqa: BLE001  importing runs code of the user's
        where = f"{job.origin.qualname} from {job.origin.file}"
        return Outcome(False, f"Cannot import {where}: {describe(error)}", "not_started")
    try:
        arguments = found.arguments(job.arguments)
    except InvalidInput as error:
        return Outcome(False, str(error), "invalid_arguments")
    try:
        result = found.run(arguments, job.context)
        if inspect.isawaitable(result):
            result = asyncio.run(_wait_for(result))
    except BaseException as error:  # noqa: BLE001  a tool may raise anything, SystemExit too
        return raised(error, job.tool)
    return returned(result)


async def _wait_for(result: Awaitable[Any]) -> Any:
    return await result


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent: it works also while `_watch` cannot run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(jobs: int) -> None:
    """Kill this process and its group when the worker's end of stdin is closed."""
    while os.read(jobs, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _read_line(fd: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(fd, _CHUNK_BYTES)
        if not chunk:
            sys.exit("the worker closed its end before it sent the job")
        line += chunk
    return bytes(line)


if __name__ == "__main__":
    main()
