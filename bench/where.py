"""`make bench ARGS=--profile`: where the time of a call goes, by file.

py-spy looks at the runtime from outside, a hundred times a second, while it does the workload. A
sample belongs to the file of the innermost Python function; what SQLite, msgspec or a hash function
does is counted where it is called, the fsync of a commit too. A thread that waits for work is not
counted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.environments import NotInstalled, python_for
from bench.measure import ROOT, Failed

PINS = Path(__file__).parent / "py-spy.txt"
SECONDS = 8
SAMPLES_PER_SECOND = 100
SHARE_MIN = 0.01
WAITING = ("select (selectors", "_worker (concurrent", "wait (threading")
"""Functions in which a thread waits for work."""


def profile(concurrency: int) -> list[str]:
    """Return a table of where the time goes at a concurrency. Raises `Failed`."""
    try:
        sampler = python_for(PINS).parent / "py-spy"
    except NotInstalled as why:
        raise Failed(f"py-spy cannot be installed: {why}") from None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples"
        command = [str(sampler), "record", "--format", "raw", "--output", str(out)]
        command += ["--rate", str(SAMPLES_PER_SECOND), "--threads", "--function", "--"]
        command += [sys.executable, "-m", "bench.runtime", "--folder", folder]
        command += ["--concurrency", str(concurrency)]
        # With one client there is no window: so many runs take about as long.
        command += ["--seconds", str(SECONDS)] if concurrency > 1 else ["--runs", "600"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not out.exists():
            raise Failed(f"py-spy failed: {done.stderr.strip()}")
        return table(concurrency, out.read_text(encoding="utf-8").splitlines())


def table(concurrency: int, samples: Iterable[str]) -> list[str]:
    """Return a table of the shares of files in samples of the form `thread;outer;inner count`."""
    shares: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        stack, _, times = sample.rpartition(" ")
        thread, *frames = stack.split(";")
        # Importing is no part of a call.
        if not frames or any("importlib" in frame for frame in frames):
            continue
        if not any(waiting in frames[-1] for waiting in WAITING):
            who = "writer" if "writer" in thread else "reader" if "reader" in thread else "loop"
            shares[who, place(frames[-1])] += int(times)
    total = shares.total()
    lines = [f"| thread | file | share at concurrency {concurrency} |", "| --- | --- | --- |"]
    for (who, where), count in shares.most_common():
        if count / total >= SHARE_MIN:
            lines.append(f"| {who} | {where} | {count / total:.0%} |")
    return lines


def place(frame: str) -> str:
    """Return the file of a frame of the form `function (file)`, as far as it says something."""
    file = frame.rpartition("(")[2].partition(")")[0].partition(":")[0]
    if "perdure/" in file:
        return "perdure/" + file.rpartition("perdure/")[2]
    if "asyncio" in file or "selectors" in file:
        return "asyncio"
    return "the fakes" if "bench/" in file else "the standard library"
