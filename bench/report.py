"""RESULTS.md: ratios within one run first, absolute figures after them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.measure import Figures
from bench.speed import Speed

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = """# What durability costs

Ratios are taken within one repetition, between processes that ran one after the other, and are what
counts. Absolute figures are **one machine on one day**. Every figure is the median of the
repetitions with their [range]. How to read and repeat this: docs/internals/performance.md.
"""
WORKLOAD = (
    (
        "- a run is 1 start and 10 steps, each a model's reply of 1 KB and one tool call with a "
        "result of 1 KB, faked and instant: 20 durable calls; a closed loop of so many clients"
    ),
    (
        "- durability: SQLite in WAL mode with synchronous=FULL, page size 4,096, a checkpoint "
        "every 4,000 pages, for the floor and for perdure; the peers' own defaults, which fsync "
        "too (DBOS: rollback journal; LangGraph: WAL)"
    ),
    (
        "- the floor: the payloads alone, encoded by msgspec, appended to one table by one writer "
        "thread that commits whatever waits (bench/floor.py)"
    ),
)


class Target(NamedTuple):
    """A figure with what is wanted of it."""

    name: str
    values: Sequence[float]
    digits: int = 2
    least: float | None = None
    most: float | None = None
    unit: str = ""

    def row(self) -> str:
        """Return the row of a table."""
        if self.least is not None:
            wanted, met = f">= {self.least:g}", statistics.median(self.values) >= self.least
        elif self.most is not None:
            wanted, met = f"<= {self.most:g}", statistics.median(self.values) <= self.most
        else:
            wanted, met = "", None
        verdict = {None: "", True: "met", False: "**missed**"}[met]
        value = spread(self.values, self.digits)
        wanted += self.unit if wanted else ""
        return f"| {self.name} | {value}{self.unit} | {wanted} | {verdict} |"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and the range of some figures."""
    low, high, middle = min(values), max(values), statistics.median(values)
    return f"{middle:,.{digits}f} [{low:,.{digits}f}-{high:,.{digits}f}]"


def targets(rows: Iterable[Target]) -> list[str]:
    """Return a table of what was wanted and what was found."""
    lines = ["| figure | found | wanted | |", "| --- | --- | --- | --- |"]
    return lines + [row.row() for row in rows if row.values]


def speed_targets(speed: Speed) -> list[Target]:
    """Return the ratios of the hot path."""
    rate, cpu, stored = "calls_per_second", "cpu_us_per_call", "bytes_per_call"
    rows = [
        Target("calls/s to the floor's, at 1000", speed.ratios(rate, 1000, "floor"), least=0.5),
        Target("calls/s to the floor's, at 100", speed.ratios(rate, 100, "floor")),
        Target("calls/s to the floor's, at 1", speed.ratios(rate, 1, "floor")),
        Target("CPU of a call to the floor's, at 1000", speed.ratios(cpu, 1000, "floor")),
        Target(
            "p50 of a call to the floor's, at 1", speed.ratios("call_p50_us", 1, "floor"), most=1.5
        ),
        Target("stored bytes of a call to the floor's", speed.ratios(stored, 1, "floor"), most=1.3),
    ]
    for peer in ("DBOS", "LangGraph", "LangGraph functional"):
        least = 60 if peer == "DBOS" else None
        rows += [
            Target(f"calls/s to {peer}'s, at 1000", speed.ratios(rate, 1000, peer), 1, least),
            Target(f"calls/s to {peer}'s, at 1", speed.ratios(rate, 1, peer), 1),
        ]
    return rows


def absolute(speed: Speed) -> list[str]:
    """Return a table of every measurement."""
    lines = [
        (
            "| contestant | at | calls/s | p50 of a call, us | CPU of a call, us | bytes a call "
            "| peak RSS, MiB |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, concurrency), by_repetition in speed.found.items():
        found = [*by_repetition.values()]
        cells = [
            spread([one["calls_per_second"] for one in found], 0),
            spread([one["call_p50_us"] for one in found], 0) if concurrency == 1 else "",
            spread([one["cpu_us_per_call"] for one in found], 0),
            f"{statistics.median(one['bytes_per_call'] for one in found):,.0f}"
            if concurrency == 1
            else "",
            f"{statistics.median(one['peak_rss_mib'] for one in found):,.0f}",
        ]
        lines.append(f"| {name} | {concurrency} | {' | '.join(cells)} |")
    return lines


def versions(speed: Speed) -> list[str]:
    """Return who was measured, in which version, and who could not be."""
    told = {
        figures["version"]: None
        for (name, _), found in speed.found.items()
        for figures in found.values()
        if name != "floor"
    }
    lines = [f"- measured: {', '.join(told)}"]
    return lines + [f"- not measured: {peer}: {why}" for peer, why in speed.missing.items()]


def values(found: Sequence[Figures], figure: str) -> list[float]:
    """Return one figure of each repetition."""
    return [one[figure] for one in found]


def write(section: str, lines: Iterable[str]) -> None:
    """Put a section into RESULTS.md in the place of its last version."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
    body = f"## {section}\n\n" + "\n".join(lines) + "\n"
    found = re.search(rf"^## {re.escape(section)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found:
        text = text[: found.start()] + body + "\n" + text[found.end() :]
    else:
        text = f"{text}\n{body}"
    RESULTS.write_text(text.rstrip() + "\n", encoding="utf-8")
