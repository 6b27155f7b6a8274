"""The two processes of an isolated call: `python -m perdure.worker.child`.

The job is one line on stdin, the answer one line on stdout. The child does the job; both pipes are
out of its reach, so that its tool reads nothing, and what it prints goes to stderr. The guard runs
no code of a user, so that it can always act: when the worker closes stdin or dies, it kills the
child with all that this started, and it ends in the way in which the child has ended.
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
from typing import Any, NoReturn

import msgspec

from perdure.core.errors import InvalidInput
from perdure.worker.origin import load
from perdure.worker.outcome import Outcome, describe, raised, returned
from perdure.worker.processes import Job
from perdure.worker.redaction import guard_logs, remember
from perdure.worker.tool import tool

_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 1024 * 1024


def main() -> None:
    """Do the one job and answer, under guard."""
    guard_logs()
    line = _read_line(0)
    worker, answers = os.dup(0), os.dup(1)
    nothing, closed = os.pipe()
    os.close(closed)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    child = os.fork()
    # Both sides say it, as either may be the first: the child leads a group of its own.
    os.setpgid(child, child)
    if child:
        os.close(answers)
        _guard(child, worker)
    _when_parent_dies(signal.SIGKILL)
    os.close(worker)
    answer = msgspec.json.encode(perform(read_job(line))) + b"\n"
    # What the tool printed is out before its answer is: the answer may be the last that is heard.
    sys.stdout.flush()
    sys.stderr.flush()
    while answer:
        answer = answer[os.write(answers, answer) :]


def read_job(line: bytes) -> Job:
    """Return the job that a line tells of; its secrets are known as such from here on."""
    job = msgspec.json.decode(line, type=Job, dec_hook=lambda kind, text: kind(text))
    for secret in job.context.credentials.values():
        remember(secret.reveal())
    return job


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


def _guard(child: int, worker: int) -> NoReturn:
    """Wait for the child and end as it did; kill its group once the worker is gone or says so."""

    def watch() -> None:
        while os.read(worker, 1):
            pass
        _kill_group(child)

    # A fork of the worker may hold the pipe open: Linux can tell of the worker's death by a signal.
    signal.signal(signal.SIGTERM, lambda *_: _kill_group(child))
    _when_parent_dies(signal.SIGTERM)
    threading.Thread(target=watch, daemon=True).start()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        _kill_group(child)
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _when_parent_dies(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a zombie
        return


def _read_line(fd: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(fd, _CHUNK_BYTES)
        if not chunk:
            sys.exit("the worker went away before it sent the job")
        line += chunk
    return bytes(line)


if __name__ == "__main__":
    main()
