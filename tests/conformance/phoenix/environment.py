"""The official Phoenix client for JavaScript, in a folder of its own beside the environments.

What is installed is exactly what `package-lock.json` says, by hash; npm's own settings say where
packages come from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from bench.environments import NotInstalled

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json")
PROGRAMS = {"node": "nodejs", "npm": "npm"}
"""What has to be on the path, and Debian's package that brings it."""
INSTALL_SECONDS_MAX = 120


def node_modules(home: Path) -> Path:
    """Return the folder of the installed packages, under `home/.venvs`.

    Of several processes that ask at once, one installs; node and npm as well, if they are missing
    and this is root on a Debian. Raises `NotInstalled`.
    """
    made_from = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in FILES)).hexdigest()
    folder = home / ".venvs" / "phoenix"
    stamp = folder / "made_from"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _have_programs()
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_from:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in FILES:
                shutil.copy(HERE / name, folder)
            _do("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
            stamp.write_text(made_from, encoding="utf-8")
    return folder / "node_modules"


def _have_programs() -> None:
    missing = [package for name, package in PROGRAMS.items() if shutil.which(name) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(f"the Phoenix client needs {' and '.join(missing)}: install them")
    _do("apt-get", "update", "-qq")
    _do("apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing)


def _do(*command: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX,
            check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{command[0]}: not done within {INSTALL_SECONDS_MAX} s") from None
    if done.returncode:
        raise NotInstalled(f"{' '.join(command)}: {done.stderr[-1_000:]}")
