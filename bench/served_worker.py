"""The worker of `bench.served`: the fake model and the fake tool, in a process of their own."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from bench import workload
from bench.runtime import replied
from perdure import Agent, Limits, ModelReply, ModelRequest, Worker, tool


async def play(request: ModelRequest) -> ModelReply:
    """Play the model: as many tool calls as the message asks for, then an answer."""
    turn = len(request.messages) // 2
    if turn == int(request.messages[0].content.rpartition(" ")[2]):
        return ModelReply("done")
    return replied(turn)


STEPS_MAX = 1_000


@tool(effect="idempotent")
async def search(query: str, turn: int) -> dict[str, Any]:
    """Search."""
    return workload.result(turn)


def end_with_parent() -> None:
    """End when the measuring process is gone: it holds the other end of our standard input."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    agent = Agent("bench", model=play, tools=[search], limits=Limits(steps_max=STEPS_MAX))
    Worker(sys.argv[1], sys.argv[2], concurrency_max=2_000).serve([agent])
