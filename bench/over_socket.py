"""`make bench ARGS=--served`: the server against a floor that has a socket as well."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench import machine, report
from bench.measure import Figures, measure
from bench.report import Target, values

Tell = Callable[[str], None]
SECONDS = "5"


def run(repetitions: int, command: str, tell: Tell) -> None:
    """Measure pairs one after the other, and write the section."""
    began, described = time.monotonic(), machine.described()
    pairs: dict[int, list[tuple[Figures, Figures]]] = {1: [], 1000: []}
    for repetition in range(repetitions):
        for concurrency, found in pairs.items():
            tell(f"{repetition + 1}/{repetitions} at {concurrency}")
            arguments = ("--concurrency", str(concurrency), "--seconds", SECONDS)
            found.append(
                (measure("bench.served_floor", arguments), measure("bench.served", arguments))
            )
    report.write(
        "Over a socket",
        [
            f"`{command}`, {repetitions} repetitions in {time.monotonic() - began:.0f} s",
            "",
            *described,
            "- the workload of above; the worker is a second process, over a WebSocket",
            (
                "- the floor: the same payloads to an echo worker and back, one frame a call, and "
                "into the bare store (bench/served_floor.py)"
            ),
            "",
            *report.targets(rows(pairs)),
        ],
    )


def rows(pairs: dict[int, list[tuple[Figures, Figures]]]) -> list[Target]:
    """Return what was found, and what was wanted."""
    ratios = {
        concurrency: [ours["calls_per_second"] / floor["calls_per_second"] for floor, ours in found]
        for concurrency, found in pairs.items()
    }
    added = [(ours["call_p50_us"] - floor["call_p50_us"]) / 1000 for floor, ours in pairs[1]]
    return [
        Target("calls/s to the floor's, at 1000", ratios[1000], least=0.6),
        Target("calls/s to the floor's, at 1", ratios[1]),
        Target("p50 of a call over the floor's, at 1", added, most=1.5, unit=" ms"),
        *(
            Target(f"{name}: calls/s, at {concurrency}", values(one, "calls_per_second"), 0)
            for concurrency, found in pairs.items()
            for name, one in (
                ("floor", [floor for floor, _ in found]),
                ("perdure", [ours for _, ours in found]),
            )
        ),
    ]
