"""What is checked before a file is trusted: the library, the disk, the file, the settings.

Whatever is refused is left as it was found, to the byte.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import apsw

from perdure.adapters.sqlite import log
from perdure.core.durability import Durability
from perdure.core.errors import StoreRefused, Unavailable

Synchronous = Literal["FULL", "NORMAL"]

SYNCHRONOUS: Mapping[Synchronous, int] = {"NORMAL": 1, "FULL": 2}
SQLITE_MIN = (3, 51, 3)
BUSY_TIMEOUT_MS = 5_000
CACHE_KIB = 16 * 1024
NETWORK_FILESYSTEMS = frozenset({
    "9p", "afs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs",
    "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
})  # fmt: skip


def check_library(version: str) -> None:
    """Raise `StoreRefused` for an SQLite whose write-ahead log can corrupt a file."""
    if tuple(int(part) for part in version.split(".")) < SQLITE_MIN:
        needed = ".".join(map(str, SQLITE_MIN))
        raise StoreRefused(
            f"SQLite {version} can corrupt a write-ahead log; at least {needed} is needed: "
            "install a newer apsw (pip install --upgrade apsw)"
        )


def check_place(path: Path) -> None:
    """Raise `StoreRefused` for a folder, and where the kernel knows a network filesystem."""
    if path.is_dir():
        raise StoreRefused(f"{path} is a folder: name a file in it")
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    kind = filesystem(path.parent, mounts)
    if kind in NETWORK_FILESYSTEMS:
        raise StoreRefused(
            f"{path.parent} is on a network filesystem ({kind}), where SQLite's log and locks do "
            "not hold: put the store on a local disk"
        )


def filesystem(folder: Path, mounts: str) -> str:
    """Return the type of the filesystem that holds `folder`, from the text of /proc/mounts."""
    best, found = "", ""
    for line in mounts.splitlines():
        _, point, kind, *_ = [*line.split(" "), "", "", ""]
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if folder.is_relative_to(point) and len(point) >= len(best):
            best, found = point, kind
    return found


def check_file(path: Path, application_id: int, newest: int) -> int:
    """Return the schema version of the file at `path`: 0 if it is missing or empty.

    Raises `StoreRefused` if it is not a file of this application, is damaged, or is newer than
    `newest`.
    """
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with refusing(path):
        db = connect_to_read(path)
        try:
            application = db.pragma("application_id")
            version = int(db.pragma("user_version"))
            objects = int(db.execute("SELECT count(*) FROM sqlite_schema").get)
        finally:
            db.close()
    if application != application_id and (application or version or objects):
        raise StoreRefused(f"{path} is a database of another program: choose another file")
    if version > newest:
        raise StoreRefused(
            f"{path} was written by a newer version of perdure (its schema is {version}, this one "
            f"knows {newest}): upgrade perdure to open it"
        )
    return version


def connect_to_write(
    path: Path,
    synchronous: Synchronous,
    *,
    connect: Callable[[str], apsw.Connection] = apsw.Connection,
) -> apsw.Connection:
    """Open the one connection that writes and checkpoints, with its settings read back.

    `connect` opens the file; perdure.testing.disk puts one of its own under it.
    """
    with refusing(path):
        db = connect(str(path))
        try:
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            log.make_durable(db)
            db.pragma("journal_mode", "wal")
            db.pragma("synchronous", synchronous)
            db.pragma("wal_autocheckpoint", 0)
            db.pragma("cache_size", -CACHE_KIB)
            db.pragma("temp_store", "memory")
            check_settings(path, settings(db), synchronous)
        except BaseException:
            db.close()
            raise
    return db


def connect_to_read(path: Path) -> apsw.Connection:
    """Open a connection that cannot write.

    Where nothing may be written beside the file either (a backup on a read-only disk), it is read
    as it is, which is right only if no write-ahead log lies beside it: else it is refused.
    """
    flags = apsw.SQLITE_OPEN_READONLY
    name = str(path)
    if not os.access(path.parent, os.W_OK):
        wal = Path(f"{path}-wal")
        if wal.exists() and wal.stat().st_size:
            raise StoreRefused(
                f"{path} has a write-ahead log, and its folder cannot be written: copy both files "
                "to a folder of yours and read them there"
            )
        flags |= apsw.SQLITE_OPEN_URI
        name = f"{path.as_uri()}?immutable=1"
    db = apsw.Connection(name, flags=flags)
    db.set_busy_timeout(BUSY_TIMEOUT_MS)
    return db


def settings(db: apsw.Connection) -> dict[str, str | int]:
    """Return the settings that durability rests on, as the connection reports them."""
    names = ("journal_mode", "synchronous", "wal_autocheckpoint", "page_size", "user_version")
    found = {name: db.pragma(name) for name in names}
    return {"schema_version": found.pop("user_version"), **found}


def durability(found: Mapping[str, object]) -> Durability:
    """Return what survives when the power fails, with these settings."""
    return "fsynced" if found["synchronous"] == SYNCHRONOUS["FULL"] else "os"


def facts(path: Path) -> dict[str, str | int]:
    """Return what can be said of a store's file from outside."""
    wal = Path(f"{path}-wal")
    return {
        "path": str(path),
        "sqlite_version": apsw.sqlite_lib_version(),
        "database_bytes": path.stat().st_size,
        "log_bytes": wal.stat().st_size if wal.exists() else 0,
    }


def check_settings(path: Path, found: Mapping[str, object], synchronous: Synchronous) -> None:
    """Raise `StoreRefused` if a setting was not taken."""
    wanted = {"journal_mode": "wal", "synchronous": SYNCHRONOUS[synchronous]}
    for name, value in wanted.items():
        if found[name] != value:
            raise StoreRefused(
                f"{path} does not take PRAGMA {name}={value} (it has {found[name]}): "
                "put the store on a local disk"
            )


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn SQLite's and the system's words for a file that cannot be opened into ours."""
    try:
        yield
    except apsw.NotADBError:
        raise StoreRefused(f"{path} is not an SQLite database: choose another file") from None
    except apsw.CorruptError as error:
        raise StoreRefused(f"{path} is damaged ({error}): restore it from a backup") from None
    except (apsw.CantOpenError, apsw.PermissionsError, apsw.ReadOnlyError, OSError) as error:
        where = "" if os.access(path.parent, os.W_OK) else "; its folder is not writable"
        raise StoreRefused(f"{path} cannot be opened: {error}{where}") from None
    except apsw.Error as error:
        raise Unavailable(f"the store {path} could not be opened: {first_cause(error)}") from None


def first_cause(error: BaseException) -> BaseException:
    """Return what SQLite said first.

    After an I/O error it rolls back by itself, and whoever then fails to roll back says only that.
    """
    while isinstance(error.__context__, apsw.Error):
        error = error.__context__
    return error
