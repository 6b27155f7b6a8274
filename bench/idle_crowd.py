"""The other end of `bench.idle_sockets`: workers or clients that have joined and do nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from bench.sockets import Line, allow_files, opened

BEAT_SECONDS = 30
"""How often the peers of Phoenix send a heartbeat."""

SEARCH: dict[str, Any] = {
    "name": "search",
    "description": "Search.",
    "input_schema": {
        "type": "object",
        "properties": {"query": {"type": "string"}, "turn": {"type": "integer"}},
        "required": ["query", "turn"],
    },
    "effect": "idempotent",
}


def registration(number: int) -> dict[str, Any]:
    """Return what a worker of ours says when it joins."""
    return {
        "worker_id": f"worker-{number}",
        "capabilities": ["llm", "tools"],
        "tools": [SEARCH],
        "features": ["begin", "cancel", "message_cache", "native", "results", "text"],
        "agents": [{"name": "bench", "tools": ["search"]}],
        "concurrency": 16,
    }


async def live(port: int, key: str, kind: str, count: int) -> None:
    """Join, beat once all at the same time, and then each in its turn."""

    def line(number: int) -> Line:
        if kind == "worker":
            url = f"ws://127.0.0.1:{port}/worker/websocket?vsn=2.0.0&token={key}"
            return Line(url, "worker:lobby", registration(number))
        url = f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0&token={key}"
        return Line(url, "agent:1", {})

    began = time.perf_counter()
    lines = await opened(port, count, line)
    tell(joined_seconds=time.perf_counter() - began)
    began = time.perf_counter()
    for one in lines:
        one.beat()
    await asyncio.gather(*(one.heard for one in lines))
    tell(beat_seconds=time.perf_counter() - began)
    while True:
        for one in lines:
            one.beat()
            await asyncio.sleep(BEAT_SECONDS / count)


def tell(**figures: float) -> None:
    """Tell whoever started this process."""
    print(json.dumps(figures), flush=True)


async def main() -> None:
    """Live until whoever started this process has gone."""
    port, key, kind, count = sys.argv[1:]
    allow_files()
    living = asyncio.ensure_future(live(int(port), key, kind, int(count)))
    living.add_done_callback(lambda done: print(done.exception(), file=sys.stderr))
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
