"""`make bench ARGS=--scale`: park once, then live several lives over copies of that store."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import apsw

from bench import machine, parked, report
from bench.measure import Figures
from bench.parked import STORE
from bench.report import Target, values

Tell = Callable[[str], None]
START_SECONDS = 3
"""How long a life may take to start."""


def measure(sessions: int, repetitions: int, command: str, tell: Tell) -> None:
    """Measure, and write the section."""
    described = machine.described()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as work:
        original = Path(work) / "original"
        original.mkdir()
        tell(f"parking {sessions:,} sessions")
        parking = parked.in_process(original, "park", sessions=sessions)
        rests: list[Figures] = []
        for repetition in range(repetitions):
            tell(f"{repetition + 1}/{repetitions} restart, rest, wake")
            rests.append(_life(original, "rest", parked.FIRST_TIMERS_MS))
        tell("waking all within a minute")
        alls = [_life(original, "all", parked.LAST_TIMERS_MS)]
    took = time.monotonic() - began
    report.write(
        "Parked sessions",
        [
            (
                f"`{command}`, {repetitions} repetitions of all but parking and waking everybody, "
                f"in {took:.0f} s"
            ),
            "",
            *described,
            (
                f"- {sessions:,} sessions of 5 events, one half waits for an answer, the other for "
                "a timer; see bench/parked.py"
            ),
            "",
            *report.targets(rows(sessions, parking, rests, alls)),
        ],
    )


def rows(
    sessions: int, parking: Figures, rests: list[Figures], alls: list[Figures]
) -> list[Target]:
    """Return what was found, and what was wanted."""
    many = f"{sessions:,} parked"
    return [
        Target(f"{many}: idle RSS", values(rests, "idle_rss_mib"), 0, most=150, unit=" MiB"),
        Target(f"{many}: restart to ready", values(rests, "ready_seconds"), most=5, unit=" s"),
        Target(
            "1,000 answered at once: p99", values(rests, "answered_p99_ms"), 0, None, 1000, " ms"
        ),
        Target("1,000 answered at once: p50", values(rests, "answered_p50_ms"), 0, unit=" ms"),
        Target(
            "1,000 timers due within a second: p99",
            values(rests, "timer_p99_ms"),
            0,
            most=1000,
            unit=" ms",
        ),
        Target(f"{many}: CPU while idle, of a core", values(rests, "idle_cpu_fraction"), 4),
        Target("all woken within 60 s: the last after", values(alls, "all_awake_after_seconds"), 1),
        Target("all woken within 60 s: p50", values(alls, "all_p50_ms"), 0, unit=" ms"),
        Target("all woken within 60 s: p99", values(alls, "all_p99_ms"), 0, unit=" ms"),
        Target("all woken within 60 s: RSS", values(alls, "all_peak_rss_mib"), 0, unit=" MiB"),
        Target("sessions parked a second", [parking["parked_per_second"]], 0),
        Target("RSS of the process that parked them", [parking["rss_after_parking_mib"]], 0),
        Target("stored bytes of a parked session", [parking["stored_bytes_per_session"]], 0),
    ]


def _life(original: Path, mode: str, timers_ms: int) -> Figures:
    """Live a life over a copy, shifted so that the timers are due some seconds after its start."""
    with tempfile.TemporaryDirectory(dir=original.parent) as work:
        copy = Path(work)
        shutil.copy(original / STORE, copy / STORE)
        due = first_due(copy, timers_ms)
        lead_ms = parked.LEAD_MS + START_SECONDS * 1000
        ahead = due - int(time.time() * 1000) - lead_ms
        return parked.in_process(copy, mode, ahead_ms=ahead)


def first_due(folder: Path, timers_ms: int) -> int:
    """Return when the first timer of a wave is due: the soon ones, or the late ones."""
    later = timers_ms - parked.FIRST_TIMERS_MS
    db = apsw.Connection(str(folder / STORE), flags=apsw.SQLITE_OPEN_READONLY)
    first = int(db.execute("SELECT min(wake_at) FROM sessions WHERE wake_at > 0").get)
    found = int(
        db.execute("SELECT min(wake_at) FROM sessions WHERE wake_at >= ?", (first + later,)).get
    )
    db.close()
    return found
