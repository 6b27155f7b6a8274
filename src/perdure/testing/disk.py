"""A disk in memory under the real SQLite, whose power can be cut at every operation.

What was not synced when the power went is kept, dropped or torn, sector by sector, as a seed
decides; what was created or unlinked since the directory was last synced may be or not be.

    disk = Disk(dies_at=120)              # refuses its 120th operation and everything after
    db = connect_to_write(path, "FULL", connect=disk.connect)
    ...                                   # until apsw.IOError
    found = disk.after_loss(seed=7)       # another disk: what is found when the power is back

What a disk can do wrong while the power is on is in `disk_faults`.

A VFS of apsw has no shared memory, so a connection to such a disk locks it for itself: there is one
at a time, and what several connections do to one log is out of reach.
"""

# ruff: noqa: N802 - the methods of a VFS have the names that SQLite gave them

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Literal, cast

import apsw

VFS_NAME = "perdure-disk"
SECTOR = 512
SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)
"""How much of what was not synced a loss may leave; each draws one of these."""

DIRECTORY_SYNCING = (
    apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL
)
"""SQLite on Unix syncs the directory at the first sync of one of these that it may create."""


Operation = Literal["create", "read", "write", "truncate", "sync", "unlink"]
"""What a disk is asked for; all but `read` change it, and are counted."""

Phase = Literal["open", "work", "close"]
"""What the store is doing with the disk; whoever runs it says so."""


class Content:
    """The bytes of a file: as SQLite sees them, as they are safe, and the writes in between."""

    def __init__(self, data: bytes = b"") -> None:
        self.now = bytearray(data)
        self.safe = bytearray(data)
        self.unsynced: list[tuple[int, bytes | None]] = []

    def write(self, offset: int, data: bytes) -> None:
        _put(self.now, offset, data)
        self.unsynced.append((offset, data))

    def cut(self, size: int) -> None:
        del self.now[size:]
        self.unsynced.append((size, None))

    def sync(self) -> None:
        """Make safe what was written since the last sync, and nothing else that is to be seen."""
        for offset, data in self.unsynced:
            if data is None:
                del self.safe[offset:]
            else:
                _put(self.safe, offset, data)
        self.unsynced.clear()

    def forget(self) -> None:
        """Take what was not synced for clean, as a kernel may after a sync that failed."""
        self.unsynced.clear()

    def after_loss(self, share: float, chance: random.Random) -> bytes:
        """Return what is left: each sector as some write since the last sync had made it."""
        writes = Counter(
            at // SECTOR for offset, data in self.unsynced for at, _ in _sectors(offset, data)
        )
        kept = {sector: _how_many(n, share, chance) for sector, n in writes.items()}
        left = bytearray(self.safe)
        for offset, data in self.unsynced:
            if data is None and chance.random() < share:
                del left[offset:]
            for at, part in _sectors(offset, data):
                kept[at // SECTOR] -= 1
                if kept[at // SECTOR] >= 0:
                    _put(left, at, part)
                elif kept[at // SECTOR] == -1 and chance.random() < share / 4:
                    _put(left, at, part[: chance.randrange(len(part))])
        if len(left) < len(self.now) and chance.random() < share:
            left.extend(bytes(len(self.now) - len(left)))
        return bytes(left)


def _put(into: bytearray, offset: int, data: bytes) -> None:
    into.extend(bytes(max(0, offset - len(into))))
    into[offset : offset + len(data)] = data


def _sectors(offset: int, data: bytes | None) -> Iterator[tuple[int, bytes]]:
    at, end = offset, offset + len(data or b"")
    while data is not None and at < end:
        border = min(end, (at // SECTOR + 1) * SECTOR)
        yield at, data[at - offset : border - offset]
        at = border


def _how_many(changes: int, share: float, chance: random.Random) -> int:
    """Draw how many of the changes since the last sync are kept, the oldest first."""
    return changes if chance.random() < share else chance.choice((0, chance.randrange(changes)))


class Disk:
    """Files in one directory, the count of the operations that changed them, and a day to die."""

    def __init__(self, dies_at: int = sys.maxsize) -> None:
        self.operations = 0
        self.phase: Phase = "open"
        self.dies_at = dies_at
        self.names: dict[str, Content] = {}
        self._earlier: dict[str, list[Content | None]] = {}

    def die(self) -> None:
        """Cut the power: from now on everything is refused."""
        self.dies_at = 0

    def operate(self, what: Operation) -> None:
        """Count an operation. Raises `apsw.IOError` if the disk dies of it, or is dead."""
        self.operations += what != "read"
        if self.operations >= self.dies_at:
            raise apsw.IOError("the power is gone")

    def read(self, content: Content, offset: int, amount: int) -> bytes:
        """Return what was written, synced or not."""
        self.operate("read")
        return bytes(content.now[offset : offset + amount])

    def write(self, content: Content, offset: int, data: bytes) -> None:
        """Write; that is not safe until it is synced."""
        self.operate("write")
        content.write(offset, data)

    def truncate(self, content: Content, size: int) -> None:
        """Cut a file; that is not safe until it is synced."""
        self.operate("truncate")
        content.cut(size)

    def sync(self, content: Content) -> None:
        """Make what was written to a file safe."""
        self.operate("sync")
        content.sync()

    def name(self, name: str, content: Content | None) -> None:
        """Create or unlink a file; that is not safe until the directory is synced."""
        self._earlier.setdefault(name, []).append(self.names.pop(name, None))
        if content is not None:
            self.names[name] = content

    def sync_directory(self) -> None:
        """Make what was created and unlinked safe."""
        self._earlier.clear()

    def after_loss(self, seed: int | str) -> Disk:
        """Return the disk as it is found when the power is back; this one stays as it is."""
        chance = random.Random(seed)
        found, share = Disk(), chance.choice(SHARES)
        for name in sorted({*self.names, *self._earlier}):
            entries = [*self._earlier.get(name, ()), self.names.get(name)]
            content = entries[_how_many(len(entries) - 1, share, chance) if entries[1:] else 0]
            if content is not None:
                found.names[name] = Content(content.after_loss(share, chance))
        return found

    def connect(self, path: str) -> apsw.Connection:
        """Open a file of this disk with SQLite."""
        vfs = _vfs()
        # Only opening goes by the name of the VFS; what is open keeps to its own disk.
        vfs.disk = self
        db = _Connection(path, vfs=VFS_NAME)
        db.pragma("locking_mode", "exclusive")
        return db


class _Connection(apsw.Connection):
    """A connection whose last words to a disk that fails nobody hears."""

    def close(self, force: bool = False) -> None:
        with suppress(apsw.Error):
            super().close(force)


class _Vfs(apsw.VFS):
    """What SQLite asks of an operating system besides open files."""

    def __init__(self) -> None:
        super().__init__(VFS_NAME, "")
        self.disk = Disk()

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        name = name.filename() if isinstance(name, apsw.URIFilename) else name
        disk = self.disk
        content = Content() if name is None else disk.names.get(name)
        if content is None and not flags[0] & apsw.SQLITE_OPEN_CREATE:
            raise apsw.CantOpenError(f"there is no {name}")
        if content is None:
            assert name is not None
            disk.operate("create")
            content = Content()
            disk.name(name, content)
        flags[1] = flags[0]
        creates = bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
        syncs_directory = creates and bool(flags[0] & DIRECTORY_SYNCING)
        return cast(apsw.VFSFile, _File(disk, content, syncs_directory))

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.disk.operate("unlink")
        self.disk.name(filename, None)
        if syncdir:
            self.disk.sync_directory()

    def xAccess(self, pathname: str, flags: int) -> bool:
        return pathname in self.disk.names

    def xFullPathname(self, name: str) -> str:
        return name


@cache
def _vfs() -> _Vfs:
    return _Vfs()


class _File:
    """An open file, as apsw calls it. It is never locked: there is one connection at a time."""

    def __init__(self, disk: Disk, content: Content, syncs_directory: bool) -> None:
        self._disk = disk
        self._content = content
        self._syncs_directory = syncs_directory

    def xRead(self, amount: int, offset: int) -> bytes:
        return self._disk.read(self._content, offset, amount)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.write(self._content, offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        self._disk.truncate(self._content, size)

    def xSync(self, flags: int) -> None:
        self._disk.sync(self._content)
        if self._syncs_directory:
            self._syncs_directory = False
            self._disk.sync_directory()

    def xFileSize(self) -> int:
        return len(self._content.now)

    def xLock(self, level: int) -> None: ...

    def xUnlock(self, level: int) -> None: ...

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096  # as on Unix

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE  # as on Unix

    def xClose(self) -> None: ...
