"""DBOS Transact: one async workflow a run, one step a call, its own defaults.

On a SQLite file in the folder, or on the PostgreSQL that BENCH_STORE names.
"""

from __future__ import annotations

import os
import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dbos import DBOS

from bench import workload


async def open_dbos(folder: Path, book: workload.Book) -> Dbos:
    """Launch DBOS on a file of its own."""
    path = folder / "dbos.sqlite"
    DBOS(
        config={
            "name": "bench",
            "system_database_url": os.environ.get("BENCH_STORE") or f"sqlite:///{path}",
            "log_level": "ERROR",
            "console_log_level": "ERROR",
        }
    )

    @DBOS.step()
    async def model(turn: int) -> dict[str, Any]:
        book.model_called()
        return workload.reply(turn)

    @DBOS.step()
    async def search(query: str, turn: int) -> dict[str, Any]:
        book.tool_called()
        return workload.result(turn)

    @DBOS.workflow()
    async def agent(message: str, steps: int) -> str:
        for turn in range(steps):
            said = await model(turn)
            await search(**said["tool_calls"][0]["arguments"])
        return "done"

    DBOS.launch()
    return Dbos(path, agent)


class Dbos:
    """DBOS with one workflow."""

    def __init__(self, path: Path, agent: Any) -> None:
        self._path = path
        self._agent = agent

    async def run(self, number: int, steps: int) -> None:
        """Start a workflow and wait for its result."""
        handle = await DBOS.start_workflow_async(self._agent, workload.prompt(number), steps)
        await handle.get_result()

    def facts(self) -> dict[str, Any]:
        """Return what is stored, and the version."""
        stored = 0 if "BENCH_STORE" in os.environ else stored_bytes(self._path)
        return {"version": f"dbos {version('dbos')}", "stored_bytes": stored}


def stored_bytes(path: Path) -> int:
    """Return the size of a database as the next reader sees it."""
    reader = sqlite3.connect(path)
    pages = reader.execute("PRAGMA page_count").fetchone()[0]
    size = reader.execute("PRAGMA page_size").fetchone()[0]
    reader.close()
    return int(pages * size)


if __name__ == "__main__":
    workload.main(open_dbos)
