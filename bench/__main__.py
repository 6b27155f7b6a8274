"""`make bench`: measure, and write bench/RESULTS.md.

`--scale` measures parked sessions instead, `--served` the server with a worker behind a socket,
`--stores` the stores of many nodes, with `--scale` sessions that are parked on PostgreSQL;
`--profile` only shows where the time of a call goes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from bench import machine, over_socket, parked, parked_postgres, report, scale, speed, stores, where
from bench.measure import Failed, Figures, measure
from bench.report import Target, values

Tell = Callable[[str], None]


def repeated(module: str, repetitions: int, tell: Tell) -> list[Figures]:
    """Run one measurement some times."""
    found = []
    for repetition in range(repetitions):
        tell(f"{repetition + 1}/{repetitions} {module.rpartition('.')[2]}")
        found.append(measure(module))
    return found


def histories(repetitions: int, tell: Tell) -> list[Target]:
    """Measure what must not depend on the length of a history, and what happens at a crash."""
    crash = repeated("bench.recovery", repetitions, tell)
    growth = repeated("bench.growth", repetitions, tell)
    tell("sessions of 1,000, 10,000 and 50,000 events")
    loading = measure("bench.loading")["rounds"]
    longer = [
        Target(f"taking up {events:,} events, to 1,000", values(loading, f"ratio_{events}"))
        for events in (10_000, 50_000)
    ]
    step = "step 900-1,000 to step 100-200 of one session"
    return [
        Target(
            "1,000 runs killed at half-way: restart to the last one's end",
            values(crash, "seconds"),
            most=3,
            unit=" s",
        ),
        Target(
            "completed calls that were made again",
            values(crash, "completed_calls_made_again"),
            digits=0,
            most=0,
        ),
        *(target._replace(most=1.25) for target in longer),
        Target("taking up 10,000 events", values(loading, "take_up_10000_ms"), 1, unit=" ms"),
        Target(f"time of a step: {step}", values(growth, "late_to_early_wall"), most=1.05),
        Target(f"bytes of a step: {step}", values(growth, "late_to_early_bytes"), 3, most=1.05),
    ]


def measure_speed(repetitions: int, peers: bool, command: str, tell: Tell) -> None:
    """Measure the hot path, crashes and histories; write their section."""
    began, described = time.monotonic(), machine.described()
    found = speed.run(repetitions, peers, tell)
    rows = [*report.speed_targets(found), *histories(repetitions, tell)]
    report.write(
        "Speed",
        [
            f"`{command}`, {repetitions} repetitions in {time.monotonic() - began:.0f} s",
            "",
            *described,
            *report.WORKLOAD,
            *report.versions(found),
            "",
            *report.targets(rows),
            "",
            "Absolute, this machine on this day:",
            "",
            *report.absolute(found),
        ],
    )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--scale", action="store_true", help="100,000 parked sessions")
    parser.add_argument("--served", action="store_true", help="the server, over a socket")
    parser.add_argument("--stores", action="store_true", help="PostgreSQL, Redis and NATS")
    parser.add_argument("--profile", action="store_true", help="where the time of a call goes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="without DBOS and LangGraph")
    parser.add_argument("--sessions", type=int, default=parked.SESSIONS, help="for --scale")
    options = parser.parse_args()
    command = "make bench" + (f' ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "")

    def tell(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    try:
        if options.profile:
            for concurrency in (1, 1000):
                print("\n".join([*where.profile(concurrency), ""]))
            return
        if options.stores and not options.scale:
            stores.run(options.repetitions, not options.no_peers, command, tell)
        elif options.served:
            over_socket.run(options.repetitions, command, tell)
        elif options.scale and options.stores:
            parked_postgres.run(options.sessions, command, tell)
        elif options.scale:
            scale.measure(options.sessions, options.repetitions, command, tell)
        else:
            measure_speed(options.repetitions, not options.no_peers, command, tell)
    except Failed as why:
        sys.exit(f"bench: {why}")
    print(report.RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
