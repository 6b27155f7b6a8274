"""A server for a fuzzer, in a process of its own: in memory, with a worker, without a rate limit.

Called with a folder and an API key. Prints its URL once it can be used, and stops on SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from perdure.bootstrap import MEMORY_URL, open_service
from perdure.server.limits import RequestLimit, TenantLimits
from perdure.server.serving import serve
from tests.server.house import echo
from tests.server.peers import Peer, registration

UNLIMITED = TenantLimits(requests_per_second=1_000_000)


async def main(folder: Path, key: str) -> None:
    """Serve until SIGTERM."""
    environment = {"PERDURE_BOOTSTRAP_KEY": key}
    async with open_service(folder, MEMORY_URL, environment) as (service, _):
        service.requests = RequestLimit(lambda tenant: UNLIMITED)

        def ready(url: str) -> None:
            Peer(service.pool, registration("w1"), does=echo)
            print(url, flush=True)

        await serve(service, "127.0.0.1", 0, ready)


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
