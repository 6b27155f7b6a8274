"""Virtual environments for other people's programs: one each, never part of this project's own.

Each holds exactly what a file of pins says, by hash. They are kept in a folder `.venvs`, and made
anew when the pins or the interpreter change. pip's own settings say where packages come from.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
INSTALL_SECONDS_MAX = 180


class NotInstalled(Exception):
    """Something could not be installed: most often there is no network."""


def python_for(pins: Path, home: Path = HERE) -> Path:
    """Return the interpreter that has installed what `pins` says, under `home/.venvs`.

    Of several processes that ask at once, one installs. Raises `NotInstalled`.
    """
    made_from = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    folder = home / ".venvs" / pins.stem
    python, stamp = folder / "bin" / "python", folder / "made_from"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == made_from:
            return python
        print(f"installing {pins.stem} into {folder} ...", file=sys.stderr, flush=True)
        _do([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
        _do([
            sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-input",
            "--no-deps", "--no-compile", "--disable-pip-version-check", "--require-hashes",
            "-r", str(pins),
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
