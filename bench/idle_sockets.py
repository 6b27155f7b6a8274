"""What idle sockets cost: one node in this process, thousands of workers or clients in another.

Each has joined, and sends a heartbeat every 30 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from bench import rig
from bench.memory import pss_mib, rss_mib
from bench.served import KEY, open_node
from perdure.ports.entries import Agent
from perdure.server.limits import TenantLimits


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what so many sockets of a kind cost."""
    service, url = await open_node(options.folder)
    many = TenantLimits(client_sockets_max=options.sockets, worker_sockets_max=options.sockets)
    service.limits = lambda tenant: many
    await service.desk("default").catalog.create(Agent(name="bench", system_prompt="Work."))
    port = url.rpartition(":")[2]
    crowd = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.idle_crowd"),
        *(port, KEY, options.kind, str(options.sockets)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert crowd.stdout is not None
    alone = rss_mib()
    figures: dict[str, Any] = {"alone_rss_mib": alone}
    figures |= json.loads(await crowd.stdout.readline())
    figures |= json.loads(await crowd.stdout.readline())
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.sleep(options.seconds)
    figures["idle_cpu_fraction"] = (time.process_time() - cpu) / (time.perf_counter() - began)
    figures |= {"rss_mib": rss_mib(), "pss_mib": pss_mib()}
    figures["kib_per_socket"] = (figures["rss_mib"] - alone) * 1024 / options.sockets
    figures["open"] = service.sockets[options.kind].count("default")
    return figures


if __name__ == "__main__":
    rig.main(measure, kind="worker", sockets=5_000, seconds=3.0)
