"""Running one measurement in a process of its own, and what a repetition consists of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SECONDS_MAX = 600

Figures = dict[str, Any]


class Failed(Exception):
    """A measurement came to nothing; the text says why."""


def measure(
    module: str,
    arguments: Sequence[str] = (),
    *,
    python: Path = Path(sys.executable),
    environment: Mapping[str, str] | None = None,
) -> Figures:
    """Run `python -m module` in an empty folder for its store; return the JSON it prints last.

    Raises `Failed`. The folder is under BENCH_DIR, or where temporary files go: name a folder on
    the disk that is to be measured.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        command = [str(python), "-m", module, "--folder", folder, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                capture_output=True,
                text=True,
                timeout=SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{module} was not done after {SECONDS_MAX} s") from None
    if done.returncode or not done.stdout.strip():
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise Failed(f"{module} failed: {last[0]}")
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
