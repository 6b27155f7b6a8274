"""A node of its own process: `node.py FOLDER PORT KEY`. Says its URL when it can be used."""

import asyncio
import logging
import sys
from pathlib import Path

from perdure.bootstrap import open_service
from perdure.server.serving import serve


async def main(folder: Path, port: int, key: str) -> None:
    """Serve until SIGTERM."""
    store, environment = f"sqlite:///{folder}/perdure.db", {"NORNS_DEFAULT_TENANT_KEY": key}
    async with open_service(folder, store, environment) as (service, _):
        await serve(service, "127.0.0.1", port, lambda url: print(url, flush=True))


logging.basicConfig(level=logging.INFO, stream=sys.stderr)
asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
