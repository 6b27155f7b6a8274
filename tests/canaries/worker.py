"""A worker process that logs all it can: `python -m tests.canaries.worker URL FOLDER`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from perdure import Worker
from tests.canaries.agents import Vault, clerk


def main() -> None:
    """Serve the clerk until the end."""
    logging.basicConfig(level=logging.DEBUG)
    url, folder = sys.argv[1:]
    worker = Worker(
        url, os.environ["PERDURE_KEY"], worker_id="w1", credential_providers={"vault": Vault()}
    )
    worker.serve([clerk(Path(folder))])


if __name__ == "__main__":
    main()
