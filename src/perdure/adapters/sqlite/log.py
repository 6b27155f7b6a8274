"""The write-ahead log that a process has left behind.

When a sync fails, a kernel may keep the pages in its cache, take them for written, and drop them
later. A process that opens the file in between sees them, builds on them and syncs, with success,
what comes after them: then the power goes, the log has a hole, and what was acknowledged after the
hole is lost. Nothing in the file tells such a log from a good one. So a log that was left behind is
written over with its own bytes, which makes every page of it wait for a sync, and synced, before
anything is built on it.
"""

from __future__ import annotations

import apsw

CHUNK_BYTES = 1 << 16
"""SQLite on Unix writes less than 128 KiB at once."""


def make_durable(db: apsw.Connection) -> None:
    """Put on the disk what its cache shows of the log; `db` has not been used yet.

    It is a matter of the log's size, some 16 MB at most, and only after a process that did not end
    in order. Raises `apsw.Error`.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_WAL
    try:
        log = apsw.VFSFile(db.open_vfs, f"{db.filename}-wal", [flags, 0])
    except apsw.CantOpenError:
        return
    try:
        size = log.xFileSize()
        for offset in range(0, size, CHUNK_BYTES):
            log.xWrite(log.xRead(min(CHUNK_BYTES, size - offset), offset), offset)
        if size:
            log.xSync(apsw.SQLITE_SYNC_NORMAL)
    finally:
        log.xClose()
