"""`make bench ARGS=--served`: the server against a floor that has a socket, and under many sockets.

The contestants do the workload one after the other. The rigs put sockets on the node: idle ones,
slow readers, and somebody who asks for a run while it does all it can.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bench import machine, report
from bench.measure import Figures, measure
from bench.report import Target, values

Tell = Callable[[str], None]
Found = dict[str, list[Figures]]

AT_1 = ("--concurrency", "1", "--runs", "60")
AT_1000 = ("--concurrency", "1000", "--seconds", "3")
CONTESTANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "floor, at 1": ("bench.served_floor", AT_1),
    "perdure, at 1": ("bench.served", AT_1),
    "floor, at 1000": ("bench.served_floor", AT_1000),
    "perdure, at 1000": ("bench.served", AT_1000),
    "norns, at 1000": ("bench.served_norns", AT_1000),
}
SLOW = {
    "stream": "streams of a long run's events",
    "agent": "sockets that follow the agent",
    "get": "GETs of a long run's events",
}
RIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reads": ("bench.served_reads", ()),
    **{f"slow {kind}": ("bench.slow_readers", ("--kind", kind)) for kind in SLOW},
}
IDLE = {
    "worker": ("bench.idle_sockets", ("--kind", "worker")),
    "agent": ("bench.idle_sockets", ("--kind", "agent")),
}
RIG_REPETITIONS_MAX = 3


def run(repetitions: int, command: str, tell: Tell) -> None:
    """Measure everything in each repetition, and write the section."""
    began, described = time.monotonic(), machine.described()
    found: Found = {}
    for repetition in range(repetitions):
        cases = dict(CONTESTANTS)
        if repetition < RIG_REPETITIONS_MAX:
            cases |= RIGS
        if repetition == 0:
            cases |= IDLE
        for name, (module, arguments) in cases.items():
            tell(f"{repetition + 1}/{repetitions} {name}")
            found.setdefault(name, []).append(measure(module, arguments))
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
            (
                "- norns: a worker that speaks as norns-sdk does, one frame for each result "
                "(bench/norns_worker.py)"
            ),
            (
                "- slow readers: 200 that take one byte a second, beside one client that does the "
                "workload (bench/slow_readers.py); ratios are to the same client without them"
            ),
            f"- at most {RIG_REPETITIONS_MAX} repetitions with sockets, one of idle ones",
            "",
            *report.targets([*speed(found), *latency(found), *memory(found)]),
        ],
    )


def speed(found: Found) -> list[Target]:
    """Return what the contestants did."""

    def ratios(ours: str, floor: str) -> list[float]:
        pairs = zip(found[ours], found[floor], strict=True)
        return [one["calls_per_second"] / other["calls_per_second"] for one, other in pairs]

    at_1 = zip(found["perdure, at 1"], found["floor, at 1"], strict=True)
    added = [(ours["call_p50_us"] - floor["call_p50_us"]) / 1000 for ours, floor in at_1]
    return [
        Target(
            "calls/s to the floor's, at 1000",
            ratios("perdure, at 1000", "floor, at 1000"),
            least=0.6,
        ),
        Target(
            "norns: calls/s to the floor's, at 1000",
            ratios("norns, at 1000", "floor, at 1000"),
            least=0.3,
        ),
        Target("calls/s to the floor's, at 1", ratios("perdure, at 1", "floor, at 1")),
        Target("p50 of a call over the floor's, at 1", added, most=1.5, unit=" ms"),
        *(
            Target(f"{name}: calls/s", values(found[name], "calls_per_second"), 0)
            for name in CONTESTANTS
        ),
    ]


def latency(found: Found) -> list[Target]:
    """Return how long somebody waited beside all the others."""
    reads = found["reads"]
    rows = [
        Target(
            "GET of a run at full load: p99", values(reads, "load_p99_ms"), 1, most=10, unit=" ms"
        ),
        Target("GET of a run at full load: p50", values(reads, "load_p50_ms"), 1, unit=" ms"),
        Target("GET of a run at rest: p99", values(reads, "rest_p99_ms"), 1, unit=" ms"),
        Target("calls/s beside those GETs, at 1000", values(reads, "load_calls_per_second"), 0),
    ]
    for kind, what in SLOW.items():
        one = found[f"slow {kind}"]
        rows += [
            Target(f"200 slow {what}: p50 of a step, ratio", values(one, "p50_ratio"), most=1.25),
            Target(f"200 slow {what}: p99 of a step, ratio", values(one, "p99_ratio"), most=1.5),
            Target(f"200 slow {what}: memory", values(one, "added_mib"), 0, most=128, unit=" MiB"),
        ]
    return rows


def memory(found: Found) -> list[Target]:
    """Return what idle sockets cost."""
    rows = []
    for kind, who in (("worker", "workers"), ("agent", "clients")):
        many = f"{found[kind][0]['open']:,.0f} idle {who}"
        rows += [
            Target(f"{many}: RSS", values(found[kind], "rss_mib"), 0, most=300, unit=" MiB"),
            Target(f"{many}: PSS", values(found[kind], "pss_mib"), 0, unit=" MiB"),
            Target(f"{many}: a socket", values(found[kind], "kib_per_socket"), 1, unit=" KiB"),
            Target(f"{many}: CPU, of a core", values(found[kind], "idle_cpu_fraction"), 3),
            Target(
                f"{many}: all joined within", values(found[kind], "joined_seconds"), 1, unit=" s"
            ),
        ]
    return rows
