"""The schema and its history: numbered SQL files that are run once, in order, and never changed."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import apsw

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


class Schema(NamedTuple):
    """What is in a kind of file: the id in its header, and how its tables came about."""

    application_id: int
    package: str
    """The package whose folder `migrations` holds the files."""

    def migrations(self) -> list[Migration]:
        """Return every migration, in order."""
        folder = resources.files(self.package).joinpath("migrations")
        files = (file for file in folder.iterdir() if file.name.endswith(".sql"))
        return [
            Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
            for file in sorted(files, key=lambda file: file.name)
        ]

    def newest(self) -> int:
        """Return the schema version that this version of perdure writes."""
        return self.migrations()[-1].number

    def migrate(
        self, db: apsw.Connection, path: Path, now: int, steps: list[Migration] | None = None
    ) -> None:
        """Bring the tables up to date, each step in one transaction with its own record.

        Raises `StoreRefused` if a step that was run in the past differs from ours.
        """
        done = {}
        if db.pragma("user_version"):
            done = dict(db.execute("SELECT number, checksum FROM migrations"))
        for step in self.migrations() if steps is None else steps:
            if step.number not in done:
                self._apply(db, step, now)
            elif done[step.number] != step.checksum:
                raise StoreRefused(
                    f"the schema of {path} was made by another {step.name} than this version's: "
                    "it was written by a build that was never released"
                )

    def _apply(self, db: apsw.Connection, step: Migration, now: int) -> None:
        with db:
            if not db.pragma("user_version"):
                db.pragma("application_id", self.application_id)
                db.execute(HISTORY)
            db.execute(step.sql)
            db.execute(
                "INSERT INTO migrations VALUES (?, ?, ?, ?)",
                (step.number, step.name, step.checksum, now),
            )
            db.pragma("user_version", step.number)
