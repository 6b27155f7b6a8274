"""Opening a file to write it: for this process alone, and after every check."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import apsw

from perdure.adapters.sqlite import checks
from perdure.adapters.sqlite.checks import Synchronous
from perdure.adapters.sqlite.lock import FileLock
from perdure.adapters.sqlite.schema import Schema


class Opened(NamedTuple):
    """A file that is locked for this process, and the one connection that writes it."""

    path: Path
    lock: FileLock
    db: apsw.Connection

    def abandon(self) -> None:
        """Close it again."""
        self.db.close()
        self.lock.release()


def open_to_write(path: Path, schema: Schema, synchronous: Synchronous, now: int) -> Opened:
    """Open the file at `path`, creating it and its folder if they are missing, with its tables.

    Raises `StoreLocked` and `StoreRefused`.
    """
    checks.check_library(apsw.sqlite_lib_version())
    path = path.resolve()
    with checks.refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        checks.check_place(path)
        lock = FileLock(path)
    try:
        checks.check_file(path, schema.application_id, schema.newest())
        db = checks.connect_to_write(path, synchronous)
        try:
            with checks.refusing(path):
                schema.migrate(db, path, now)
        except BaseException:
            db.close()
            raise
    except BaseException:
        lock.release()
        raise
    return Opened(path, lock, db)
