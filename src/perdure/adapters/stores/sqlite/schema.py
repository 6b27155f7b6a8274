"""The schema and its history: numbered SQL files that are run once, in order, and never changed."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import apsw

from perdure.adapters.stores.sqlite.checks import APPLICATION_ID
from perdure.core.errors import StoreRefused

HISTORY = """
CREATE TABLE migrations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at INTEGER NOT NULL
) STRICT
"""


class Migration(NamedTuple):
    """One step from a schema version to the next."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of its text: what was run is what is in this package."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return every migration of this package, in order."""
    folder = resources.files(__package__).joinpath("migrations")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in files
    ]


def newest() -> int:
    """Return the schema version that this package writes."""
    return migrations()[-1].number


def migrate(db: apsw.Connection, path: Path, now: int, steps: list[Migration]) -> None:
    """Bring the schema up to date, each step in one transaction with its own record.

    Raises `StoreRefused` if a step that was run in the past differs from ours.
    """
    done = {}
    if db.pragma("user_version"):
        done = dict(db.execute("SELECT number, checksum FROM migrations"))
    for step in steps:
        if step.number not in done:
            _apply(db, step, now)
        elif done[step.number] != step.checksum:
            raise StoreRefused(
                f"the schema of {path} was made by another {step.name} than this version's: "
                "it was written by a build that was never released"
            )


def _apply(db: apsw.Connection, step: Migration, now: int) -> None:
    with db:
        if not db.pragma("user_version"):
            db.pragma("application_id", APPLICATION_ID)
            db.execute(HISTORY)
        db.execute(step.sql)
        db.execute(
            "INSERT INTO migrations VALUES (?, ?, ?, ?)",
            (step.number, step.name, step.checksum, now),
        )
        db.pragma("user_version", step.number)
