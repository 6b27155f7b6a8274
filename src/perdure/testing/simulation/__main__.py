"""The command: `python -m perdure.testing.simulation --seeds A-B`, or `--seed N` to replay one."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from perdure.testing.simulation.probes import PROBES
from perdure.testing.simulation.replay import replay
from perdure.testing.simulation.runner import Summary, simulate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m perdure.testing.simulation")
    parser.add_argument("--seeds", default="1-400", help="a range A-B; each runs twice")
    parser.add_argument("--seed", type=int, help="replay one seed, and print what happens")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--break", dest="mutant", metavar="MUTANT", help="break the engine first")
    parser.add_argument("--json", type=Path, help="write the summary to this file")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        with _broken(options.mutant):
            return replay(options.seed, sys.stdout)
    first, _, last = options.seeds.partition("-")
    summary = simulate(
        int(first), int(last or first), processes=options.processes, mutant=options.mutant
    )
    if options.json:
        options.json.write_bytes(msgspec.json.encode(summary))
    sys.stdout.write(told(summary))
    return 0 if summary.good else 1


def told(summary: Summary) -> str:
    """Return a summary for people."""
    lines = [f"{summary.coverage.get(name, 0):9d}  {what}" for name, what in PROBES.items()]
    effects = ", ".join(f"{count} {name}" for name, count in sorted(summary.effects.items()))
    lines += [
        (
            f"{summary.seeds} seeds, each twice: {summary.virtual_hours:.1f} virtual hours, "
            f"{summary.crashes} crashes, {summary.pauses} pauses, {summary.fences} fences, "
            f"{summary.drains} drains"
        ),
        f"{summary.events} events; effects: {effects}; {summary.unknowns} outcomes unknown",
        (
            f"{len(PROBES) - len(summary.unreached)} of {len(PROBES)} rare situations reached, "
            f"{summary.determinism_mismatches} digests differ, "
            f"{summary.failed_seeds} seeds failed, {summary.wall_seconds:.1f} s"
        ),
    ]
    for failure in summary.failures:
        lines.append(f"FAILED {failure.reproduce}   # {failure.what}")
    return "\n".join(lines) + "\n"


def _broken(mutant: str | None) -> contextlib.AbstractContextManager[object]:
    if mutant is None:
        return contextlib.nullcontext()
    from perdure.testing.mutants import broken

    manager: contextlib.AbstractContextManager[object] = broken(mutant)
    return manager


if __name__ == "__main__":
    sys.exit(main())
