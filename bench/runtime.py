"""Perdure itself, as anybody would use it: `Runtime` over a store, an agent, a tool.

The store is a SQLite file in the folder, or what BENCH_STORE names.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apsw

from bench import workload
from perdure import Agent, ModelReply, ModelRequest, NodeSettings, Runtime, ToolRequest, Usage, tool

FAKE_USAGE = Usage(1200, 180)


def replied(turn: int) -> ModelReply:
    """Return the model's reply of a turn: what `workload.reply` says, as the model port has it."""
    request = ToolRequest(f"call_{turn}", "search", {"query": workload.query(turn), "turn": turn})
    return ModelReply(workload.said(turn), (request,), "tool_call", FAKE_USAGE, "fake-1")


class Perdure:
    """A node with one agent."""

    def __init__(self, book: workload.Book, path: Path) -> None:
        self._path = str(path)
        self._store = os.environ.get("BENCH_STORE")

        async def play(request: ModelRequest) -> ModelReply:
            """Play the model: as many tool calls as the message asks for, then an answer."""
            turn = len(request.messages) // 2
            if turn == int(request.messages[0].content.rpartition(" ")[2]):
                return ModelReply("done")
            book.model_called()
            return replied(turn)

        @tool(effect="idempotent")
        async def search(query: str, turn: int) -> dict[str, Any]:
            """Search."""
            book.tool_called()
            return workload.result(turn)

        agent = Agent("bench", model=play, tools=[search])
        self._runtime = Runtime(
            self._store or f"sqlite:///{path}",
            agents=[agent],
            settings=NodeSettings(linger_ms=50),
        )

    async def start(self) -> Perdure:
        """Open the store and take a lease."""
        self._node = await self._runtime.start()
        return self

    async def run(self, number: int, steps: int) -> None:
        """Send a message and wait for its answer."""
        run = await self._node.send("bench", f"{workload.prompt(number)} {steps}")
        await run.result()

    def facts(self) -> dict[str, Any]:
        """Return the version; of a file also what is stored, and in how many commits."""
        if self._store is not None:
            return {"version": f"perdure {version('perdure')}", "stored_bytes": 0}
        store: Any = self._node._store  # a node does not show its store
        reader = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
        stored = reader.pragma("page_count") * reader.pragma("page_size")
        reader.close()
        return {
            "version": f"perdure {version('perdure')}",
            "stored_bytes": stored,
            "commits": store.facts()["transactions"],
        }


async def open_perdure(folder: Path, book: workload.Book) -> Perdure:
    """Open the runtime."""
    return await Perdure(book, folder / "perdure.db").start()


if __name__ == "__main__":
    workload.main(open_perdure)
