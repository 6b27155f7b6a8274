"""The worker of `bench.served_norns`: it speaks as norns-sdk does, one frame for each result.

It is no slower than it has to be, so that what is measured is the protocol, not somebody's SDK.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import threading
from typing import Any

from websockets.asyncio.client import connect

from bench import workload
from bench.idle_crowd import SEARCH
from bench.served_worker import end_with_parent
from perdure.wire.registration import NORNS_FEATURES, Registration, ToolOffer
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from perdure.wire.worker import WorkerSide


def make_agent(url: str, key: str) -> None:
    """Make the agent over REST, as Norns' workers do."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    everything = {"context_strategy": "none"}
    body = json.dumps({"name": "bench", "system_prompt": "Work.", "model_config": everything})
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/api/v1/agents", body, headers)
    answer = connection.getresponse()
    if answer.status != 201:
        sys.exit(f"no agent was made: {answer.status} {answer.read().decode()}")


def done(task: LlmTask | ToolTask) -> Result:
    """Play the tool, and the model: as many calls as the message asks for, then an answer."""
    if isinstance(task, ToolTask):
        result = json.dumps(workload.result(task.input["turn"]))
        return Result(task_id=task.task_id, status="ok", result=result)
    messages: Any = task.messages
    turn = len(messages) // 2
    if turn == int(messages[0].content.rpartition(" ")[2]):
        return Result(task_id=task.task_id, status="ok", content="done", finish_reason="stop")
    reply = workload.reply(turn)
    return Result(task_id=task.task_id, status="ok", finish_reason="tool_call", **reply)


async def work(url: str, key: str) -> None:
    """Join, and do what comes."""
    offer = ToolOffer(
        SEARCH["name"], SEARCH["description"], SEARCH["input_schema"], False, SEARCH["effect"]
    )
    side = WorkerSide(
        Registration(
            worker_id="norns",
            tools=(offer,),
            capabilities=("llm", "tools"),
            features=NORNS_FEATURES,
            concurrency=2_000,
        )
    )
    where = f"ws{url.removeprefix('http')}/worker/websocket?vsn=2.0.0&token={key}"
    async with connect(where, compression=None, max_size=None) as socket:
        await socket.send(side.join())
        async for text in socket:
            for told in side.feed(text):
                if isinstance(told, LlmTask | ToolTask):
                    await socket.send(side.result(done(told)))
                elif isinstance(told, str):
                    await socket.send(told)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    make_agent(*sys.argv[1:3])
    asyncio.run(work(*sys.argv[1:3]))
