"""Calls a second, latency and bytes: the floor, perdure and the peers, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.environments import NotInstalled, python_for
from bench.measure import Failed, Figures, measure

Ask = Callable[[], Figures]
Key = tuple[str, int]
"""A contestant and a concurrency."""


class Case(NamedTuple):
    """One contestant at one concurrency, and how long it is watched."""

    contestant: str
    module: str
    concurrency: int
    watched: tuple[str, str]
    environment: tuple[tuple[str, str], ...] = ()


OURS = [
    Case(name, module, concurrency, watched)
    for concurrency, watched in (
        (1, ("--runs", "60")),
        (100, ("--seconds", "1.5")),
        (1000, ("--seconds", "2")),
    )
    for name, module in (("floor", "bench.floor"), ("perdure", "bench.runtime"))
]
PINS = Path(__file__).parent / "peers"
FUNCTIONAL = (("BENCH_API", "functional"),)
PEERS = [
    Case("DBOS", "bench.peers.dbos", 1, ("--runs", "15")),
    Case("DBOS", "bench.peers.dbos", 1000, ("--seconds", "2")),
    Case("LangGraph", "bench.peers.langgraph", 1, ("--runs", "25")),
    Case("LangGraph", "bench.peers.langgraph", 1000, ("--seconds", "2")),
    Case(
        "LangGraph functional",
        "bench.peers.langgraph",
        1000,
        ("--seconds", "1"),
        FUNCTIONAL,
    ),
]


class Speed:
    """What was measured, repetition by repetition, and what could not be."""

    def __init__(self) -> None:
        self.found: dict[Key, dict[int, Figures]] = {}
        self.missing: dict[str, str] = {}

    def ratios(self, figure: str, concurrency: int, other: str) -> list[float]:
        """Return a figure of perdure's relative to another contestant's, repetition by repetition.

        There are none if the other one was not measured.
        """
        ours = self.found.get(("perdure", concurrency), {})
        theirs = self.found.get((other, concurrency), {})
        return [ours[one][figure] / theirs[one][figure] for one in ours if one in theirs]


def run(repetitions: int, peers: bool, tell: Callable[[str], None]) -> Speed:
    """Measure every case once in each repetition, so that ratios are taken side by side."""
    speed = Speed()
    pythons = {"floor": Path(sys.executable), "perdure": Path(sys.executable)}
    for case in PEERS if peers else ():
        pins = PINS / f"{case.module.rpartition('.')[2]}.txt"
        try:
            pythons[case.contestant] = python_for(pins)
        except NotInstalled as why:
            speed.missing[case.contestant] = str(why)
    cases = [case for case in (*OURS, *PEERS) if case.contestant in pythons]
    for repetition in range(repetitions):
        for case in cases:
            tell(f"{repetition + 1}/{repetitions} {case.contestant} at {case.concurrency}")
            concurrency = ("--concurrency", str(case.concurrency))
            try:
                figures = measure(
                    case.module,
                    (*concurrency, *case.watched),
                    python=pythons[case.contestant],
                    environment=dict(case.environment),
                )
            except Failed as why:
                if case.contestant in ("floor", "perdure"):
                    raise
                speed.missing[case.contestant] = str(why)
                continue
            key = case.contestant, case.concurrency
            speed.found.setdefault(key, {})[repetition] = figures
    return speed
