"""The pepper: what keys are hashed with, kept beside the catalog and never in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from perdure.core.errors import InvalidInput, StoreRefused

PEPPER_BYTES = 32
GIVEN_CHARS_MIN = 32


def open_pepper(path: Path, given: str | None, fresh: Callable[[int], bytes]) -> bytes:
    """Return the pepper `given` as text, or else the one in the file at `path`, made if missing.

    Two processes must not do it at once: hold the catalog's lock. Raises `InvalidInput` for a text
    that is too short, and `StoreRefused` for a file that others may read or that is not one of
    ours.
    """
    if given:
        if len(given) < GIVEN_CHARS_MIN:
            raise InvalidInput(
                f"PERDURE_KEY_PEPPER has {len(given)} characters: at least {GIVEN_CHARS_MIN} that "
                "nobody can guess are needed"
            )
        return hashlib.sha256(given.encode()).digest()
    if not path.exists():
        _write(path, fresh(PEPPER_BYTES))
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise StoreRefused(f"{path} can be read by others (its mode is {mode:o}): chmod 600 it")
    pepper = path.read_bytes()
    if len(pepper) != PEPPER_BYTES:
        raise StoreRefused(
            f"{path} has {len(pepper)} bytes, not {PEPPER_BYTES}: restore it from a backup, or "
            "remove it, after which no API key is known any more"
        )
    return pepper


def _write(path: Path, pepper: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, pepper)
        os.fsync(fd)
    finally:
        os.close(fd)
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
