"""Virtual environments for the peers and the profiler: one each, never part of this project's own.

Each holds exactly what a file of pins says, by hash. They are kept in `bench/.venvs`, and made
anew when the pins or the interpreter change. pip's own settings say where packages come from.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
INSTALL_SECONDS_MAX = 180


class NotInstalled(Exception):
    """Something could not be installed: most often there is no network."""


def python_for(pins: Path) -> Path:
    """Return the interpreter that has installed what `pins` says. Raises `NotInstalled`."""
    made_from = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    folder = HERE / ".venvs" / pins.stem
    python, stamp = folder / "bin" / "python", folder / "made_from"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made_from:
        return python
    print(f"installing {pins.stem} into bench/.venvs ...", file=sys.stderr, flush=True)
    _do([sys.executable, "-m", "venv", "--clear", str(folder)])
    _do([
        str(python), "-m", "pip", "install", "-qq", "--no-input", "--no-deps", "--no-compile",
        "--disable-pip-version-check", "--require-hashes", "-r", str(pins),
    ])  # fmt: skip
    stamp.write_text(made_from, encoding="utf-8")
    return python


def _do(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"not done within {INSTALL_SECONDS_MAX} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise NotInstalled(last[0])
