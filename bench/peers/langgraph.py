"""LangGraph: a graph of a model node and a tools node, each checkpointed before the next begins.

`BENCH_API=functional` takes its functional API instead: an entrypoint with a task for each call. A
task's result is written in the background there: its `await` does not wait for the commit.
"""

from __future__ import annotations

import json
import os
import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph

from bench import workload

FUNCTIONAL = os.environ.get("BENCH_API") == "functional"


class State(MessagesState):
    """The conversation, and how many steps it is to have."""

    steps: int


def turns(state: State) -> int:
    """Return how many steps are done."""
    return (len(state["messages"]) - 1) // 2


def graph(book: workload.Book, saver: AsyncSqliteSaver) -> Any:
    """Return the agent as a graph."""

    async def model(state: State) -> dict[str, Any]:
        book.model_called()
        said = workload.reply(turns(state))
        calls = [
            {"id": call["id"], "name": call["name"], "args": call["arguments"]}
            for call in said["tool_calls"]
        ]
        metadata = {"model": said["model"], "usage": said["usage"]}
        message = AIMessage(said["content"], tool_calls=calls, response_metadata=metadata)
        return {"messages": [message]}

    async def search(state: State) -> dict[str, Any]:
        book.tool_called()
        call = state["messages"][-1].tool_calls[0]
        found = json.dumps(workload.result(call["args"]["turn"]))
        return {"messages": [ToolMessage(found, tool_call_id=call["id"])]}

    builder = StateGraph(State)
    builder.add_node("model", model)
    builder.add_node("search", search)
    builder.add_edge(START, "model")
    builder.add_edge("model", "search")
    builder.add_conditional_edges(
        "search", lambda state: "model" if turns(state) < state["steps"] else END, ["model", END]
    )
    return builder.compile(checkpointer=saver)


def function(book: workload.Book, saver: AsyncSqliteSaver) -> Any:
    """Return the agent as a function with tasks."""

    @task
    async def model(turn: int) -> dict[str, Any]:
        book.model_called()
        return workload.reply(turn)

    @task
    async def search(query: str, turn: int) -> dict[str, Any]:
        book.tool_called()
        return workload.result(turn)

    @entrypoint(checkpointer=saver)
    async def agent(asked: dict[str, Any]) -> str:
        for turn in range(asked["steps"]):
            said = await model(turn)
            await search(**said["tool_calls"][0]["arguments"])
        return "done"

    return agent


class LangGraph:
    """LangGraph with one agent."""

    def __init__(self, path: Path, agent: Any, opening: Any) -> None:
        self._path = path
        self._agent = agent
        self._keeps_it_open = opening

    async def run(self, number: int, steps: int) -> None:
        """Invoke the agent on a thread of its own."""
        message = workload.prompt(number)
        asked = {"message": message, "steps": steps}
        if not FUNCTIONAL:
            asked = {"messages": [HumanMessage(message)], "steps": steps}
        config = {"configurable": {"thread_id": f"run-{number}"}, "recursion_limit": 100}
        await self._agent.ainvoke(asked, config, durability="sync")

    def facts(self) -> dict[str, Any]:
        """Return what is stored, and the version."""
        reader = sqlite3.connect(self._path)
        pages = reader.execute("PRAGMA page_count").fetchone()[0]
        size = reader.execute("PRAGMA page_size").fetchone()[0]
        reader.close()
        checkpoint = version("langgraph-checkpoint-sqlite")
        return {
            "version": f"langgraph {version('langgraph')}, its SQLite checkpointer {checkpoint}",
            "stored_bytes": pages * size,
        }


async def open_langgraph(folder: Path, book: workload.Book) -> LangGraph:
    """Open a checkpointer on a file of its own."""
    path = folder / "langgraph.sqlite"
    opening = AsyncSqliteSaver.from_conn_string(str(path))
    saver = await opening.__aenter__()
    await saver.setup()
    return LangGraph(path, (function if FUNCTIONAL else graph)(book, saver), opening)


if __name__ == "__main__":
    workload.main(open_langgraph)
