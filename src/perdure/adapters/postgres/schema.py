"""The schema and its history: numbered SQL files that are run once, in order, and never changed.

Each is run in one transaction with its own record, so that wherever it is cut off, it was run as a
whole or not at all. Nodes of two versions may run at the same time: a file first adds what the next
version needs, and one of a later version removes what nobody uses any more. The first line of a
file says which schema a node has to know at least to work with what the file leaves behind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.core.errors import StoreRefused

if TYPE_CHECKING:
    import asyncpg

HISTORY = (
    # Two that create the same schema at the same time trip over each other: one at a time.
    "SELECT pg_advisory_xact_lock(hashtext('perdure'))",
    "CREATE SCHEMA IF NOT EXISTS perdure",
    """CREATE TABLE IF NOT EXISTS perdure.migrations (
        part text NOT NULL,
        number integer NOT NULL,
        name text NOT NULL,
        checksum text NOT NULL,
        works_with integer NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (part, number)
    )""",
)
EXISTS = "SELECT to_regclass('perdure.migrations') IS NOT NULL"
DONE = "SELECT number, name, checksum, works_with FROM perdure.migrations WHERE part = $1"
NOTE = """
INSERT INTO perdure.migrations (part, number, name, checksum, works_with)
VALUES ($1, $2, $3, $4, $5)
"""
WORKS_WITH = re.compile(r"-- works with: (\d+)\n")

Execute = Callable[..., Awaitable[Any]]


class Migration(NamedTuple):
    """One step from a schema version to the next."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of its text: what was run is what is in this package."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def works_with(self) -> int:
        """The oldest schema version whose nodes work with what it leaves behind."""
        said = WORKS_WITH.match(self.sql)
        assert said is not None, f"{self.name} does not say what it works with"
        return int(said[1])

    @property
    def statements(self) -> list[str]:
        """Its statements, one by one."""
        return [one.strip() for one in self.sql.split(";\n") if one.strip()]


class Schema(NamedTuple):
    """The tables of one part of a database: `part` is its name, `package` has its `migrations`."""

    part: str
    package: str

    def migrations(self) -> list[Migration]:
        """Return every migration, in order."""
        folder = resources.files(self.package).joinpath("migrations")
        files = (file for file in folder.iterdir() if file.name.endswith(".sql"))
        return [
            Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
            for file in sorted(files, key=lambda file: file.name)
        ]

    async def migrate(
        self,
        connection: asyncpg.Connection[Any],
        where: str,
        steps: list[Migration] | None = None,
        execute: Execute | None = None,
    ) -> None:
        """Bring the tables up to date, whoever else does it at the same time.

        Raises `StoreRefused` if a step that was run in the past differs from ours, or if a newer
        version has made what this one cannot work with. `execute` is for tests that cut it off.
        """
        steps = self.migrations() if steps is None else steps
        execute = execute or connection.execute
        if not await connection.fetchval(EXISTS):
            async with connection.transaction():
                for statement in HISTORY:
                    await execute(statement)
        for step in steps:
            if step.number in self._check(await connection.fetch(DONE, self.part), where, steps):
                continue
            async with connection.transaction():
                await execute(HISTORY[0])
                # Somebody may have been faster.
                if step.number in {row[0] for row in await connection.fetch(DONE, self.part)}:
                    continue
                for statement in step.statements:
                    await execute(statement)
                said = (step.number, step.name, step.checksum, step.works_with)
                await execute(NOTE, self.part, *said)

    def _check(self, rows: list[Any], where: str, steps: list[Migration]) -> set[int]:
        ours = {step.number: step for step in steps}
        newest = max(ours)
        for number, name, checksum, works_with in rows:
            if number in ours and checksum != ours[number].checksum:
                raise StoreRefused(
                    f"the schema of {where} was made by another {name} than this version's: it was "
                    "written by a build that was never released"
                )
            if number > newest and works_with > newest:
                raise StoreRefused(
                    f"{where} was brought to {name} by a newer version of perdure, which needs "
                    f"nodes that know schema {works_with} (this one knows {newest}): upgrade it"
                )
        return {row[0] for row in rows}
