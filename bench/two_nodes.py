"""Two nodes on one store, each in its own process and with half of the clients, at the same time.

It prints the sum of what both did. BENCH_STORE names the store.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import workload

NODES = 2


def main() -> None:
    """Measure both, and print their sum."""
    options = workload.options()
    half = str(options.concurrency // NODES)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "bench.runtime", "--folder", folder),
                    *("--concurrency", half, "--seconds", str(options.seconds)),
                ],
                cwd=Path(__file__).parent.parent,
                stdout=subprocess.PIPE,
            )
            for _ in range(NODES)
        ]
        found = [json.loads(node.communicate()[0].splitlines()[-1]) for node in started]
    figures: dict[str, Any] = dict(found[0])
    figures["calls_per_second"] = sum(one["calls_per_second"] for one in found)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
