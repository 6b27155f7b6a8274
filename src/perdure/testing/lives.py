"""Lives of an agent process: started, held at a fault point, killed, and started again."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from perdure.core.errors import PerdureError
from perdure.testing.durability import WORLD_FILE
from perdure.testing.ledger import Ledger
from perdure.testing.mutants import BREAK_VARIABLE

LIFE_SECONDS_MAX = 120
BROKEN_LIFE_SECONDS_MAX = 10


class Death(NamedTuple):
    """Where a life was ended: the process, and the fault point it stood at."""

    pid: int
    site: str


class Lives:
    """Starts the agent process again and again over the same store."""

    def __init__(
        self,
        store: Path,
        root: Path,
        out: Path,
        ledger: Path,
        model: str | None = None,
        mutant: str | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._ledger = ledger
        self._seconds_max = LIFE_SECONDS_MAX if mutant is None else BROKEN_LIFE_SECONDS_MAX
        self._world = out / WORLD_FILE
        self._environment = {**os.environ, BREAK_VARIABLE: mutant or ""}
        self._command = [
            sys.executable,
            "-m",
            "perdure.testing.durability",
            f"--store=sqlite:///{store}",
            f"--root={root}",
            f"--out={out}",
            f"--ledger={ledger}",
            *([f"--model={model}"] if model else []),
        ]

    def until_killed(self, fault: str) -> Death | None:
        """Run one life until it stands at the fault, and SIGKILL it there.

        Returns None if the life ended by itself before it got there.
        """
        reader, writer = os.pipe()
        environment = {
            **self._environment,
            "PERDURE_FAULTS": f"{fault}:hold",
            "PERDURE_FAULTS_FD": str(writer),
        }
        process = subprocess.Popen(
            self._command,
            env=environment,
            pass_fds=(writer,),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(writer)
        try:
            ready, _, _ = select.select([reader], [], [], self._seconds_max)
            told = os.read(reader, 1000).decode() if ready else ""
            if not ready:
                raise PerdureError(f"the agent neither ended nor reached {fault}")
            if not told:
                self._check(process)
                return None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return Death(process.pid, told.split()[1])
        finally:
            os.close(reader)
            if process.poll() is None:
                process.kill()
            process.communicate()
            self._settle()

    def to_the_end(self) -> int:
        """Run one undisturbed life; return its process id."""
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            self._check(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            self._settle()
        return process.pid

    def _settle(self) -> None:
        """Wait until the ledger has heard the last words of the dead."""
        ledger = Ledger(self._ledger, self._world)
        ledger.settle()
        ledger.close()

    def _check(self, process: subprocess.Popen[bytes]) -> None:
        try:
            _, errors = process.communicate(timeout=self._seconds_max)
        except subprocess.TimeoutExpired:
            raise PerdureError(f"the agent did not end in {self._seconds_max} s") from None
        if process.returncode != 0:
            last = errors.decode(errors="replace").strip().splitlines()[-1:]
            raise PerdureError(f"the agent process failed: {' '.join(last)}")
