"""Copies of files that may be in use: as one transaction sees each, checked, and on the disk.

A copy is made in one step, by a reader. One in many steps would begin again with every commit of
the process that writes. Nobody waits for it; only the write-ahead log cannot be given back until it
is done, and grows meanwhile by what is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import apsw

from perdure.adapters.sqlite import checks
from perdure.core.errors import InvalidInput, NotFound, StoreRefused

EVERYTHING = -1


def files(folder: Path, application_ids: Iterable[int]) -> dict[Path, int]:
    """Return the files in a folder that are of these kinds, with their kind, in that order.

    Raises `NotFound` if there is none, and `StoreRefused` for a file that cannot be read.
    """
    kinds: dict[Path, int] = {}
    for path in sorted(folder.glob("*.db")):
        with checks.refusing(path), closing(checks.connect_to_read(path)) as db:
            kinds[path] = int(db.pragma("application_id"))
    found = {path: each for each in application_ids for path in kinds if kinds[path] == each}
    if not found:
        raise NotFound(f"there is nothing of perdure's in {folder}")
    return found


def begin(to: Path) -> Path:
    """Make the folder that copies are made in, until `finish`. Raises `InvalidInput`."""
    if to.exists():
        raise InvalidInput(f"{to} is there already: name a folder that is not")
    partial = to.with_name(f"{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(0o700, parents=True)
    return partial


def copy(source: Path, target: Path) -> None:
    """Copy a database to a file that does not exist yet, for its owner alone.

    Raises `StoreRefused` if the source cannot be read or is not sound, and `Unavailable` if the
    copy cannot be written.
    """
    target.touch(0o600)
    with (
        checks.refusing(source),
        closing(checks.connect_to_read(source)) as reader,
        closing(apsw.Connection(str(target))) as writer,
    ):
        with writer.backup("main", reader, "main") as copying:
            copying.step(EVERYTHING)
        found = writer.execute("PRAGMA quick_check(1)").get
    if found != "ok":
        raise StoreRefused(f"{source} is damaged ({found}): its copy would be too")


def finish(partial: Path, to: Path) -> None:
    """Put all of it on the disk, and give it its name: what has that is whole."""
    for lock in partial.glob("*.lock"):
        lock.unlink()
    for path in (*partial.iterdir(), partial):
        _sync(path)
    partial.rename(to)
    _sync(to.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
