"""One process per file: an OS lock that the kernel gives back when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from perdure.core.errors import StoreLocked


class FileLock:
    """The exclusive right to write the store at a path, held in `<path>.lock` with our pid."""

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises `StoreLocked` if somebody holds it."""
        self._fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreLocked(
                f"the store {path} is in use by process {holder}: stop that process first, or "
                "choose another file"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back. The file stays: to remove it would let two processes lock it."""
        os.close(self._fd)
