"""`perdure server`, which stands still whenever something is durable: `halting.py FD ARGUMENT...`.

It writes a byte to the file descriptor then, before anybody is told, and goes on when one comes.
"""

import os
import sys

from perdure.cli.main import main
from perdure.ports import faults

fd = int(sys.argv.pop(1))


def halt(site: str) -> None:
    """Stand still."""
    if site == "store.after_commit":
        os.write(fd, b".")
        os.read(fd, 1)


faults.install(halt)
main()
