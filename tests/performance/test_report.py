"""What `make bench` writes: ratios within a repetition, verdicts, sections in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report, where
from bench.report import Target
from bench.speed import Speed


def speed(**rates: dict[int, float]) -> Speed:
    """Return calls a second at concurrency 1 of contestants, by repetition."""
    found = Speed()
    for name, by_repetition in rates.items():
        found.found[name, 1] = {
            repetition: {"calls_per_second": rate} for repetition, rate in by_repetition.items()
        }
    return found


@pytest.mark.parametrize(
    ("peer", "ratios"),
    [
        ({0: 5.0, 1: 10.0}, [2.0, 2.0]),
        ({1: 10.0}, [2.0]),
        ({}, []),
    ],
)
def test_a_ratio_is_taken_within_a_repetition(peer: dict[int, float], ratios: list[float]) -> None:
    """A repetition in which the peer failed is left out, and shifts no other."""
    found = speed(perdure={0: 10.0, 1: 20.0}, peer=peer)
    assert found.ratios("calls_per_second", 1, "peer") == ratios


@pytest.mark.parametrize(
    ("target", "row"),
    [
        (Target("a", [1, 3, 2], least=2), "| a | 2.00 [1.00-3.00] | >= 2 | met |"),
        (Target("a", [1, 1, 3], least=2), "| a | 1.00 [1.00-3.00] | >= 2 | **missed** |"),
        (Target("a", [3, 3], 0, most=2, unit=" s"), "| a | 3 [3-3] s | <= 2 s | **missed** |"),
        (Target("a", [1_000.0], 0), "| a | 1,000 [1,000-1,000] |  |  |"),
    ],
)
def test_the_median_decides_whether_a_target_is_met(target: Target, row: str) -> None:
    assert target.row() == row


def test_a_section_is_written_in_the_place_of_its_last_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    report.write("One", ["first"])
    report.write("Two", ["other"])
    report.write("One", ["second", "| a \\1 |"])
    text = report.RESULTS.read_text(encoding="utf-8")
    assert text == report.HEAD + "\n## One\n\nsecond\n| a \\1 |\n\n## Two\n\nother\n"


def test_a_sample_belongs_to_the_file_of_the_innermost_function() -> None:
    samples = [
        "MainThread;run (asyncio/runners.py);decide (perdure/core/session.py) 60",
        "perdure-writer;run (threading.py);_write (perdure/adapters/stores/sqlite/writer.py) 40",
        "MainThread;EpollSelector.select (selectors.py) 900",
        "MainThread;<module> (perdure/x.py);_find (importlib/_bootstrap.py);read (y.py) 900",
    ]
    assert where.table(1, samples)[2:] == [
        "| loop | perdure/core/session.py | 60% |",
        "| writer | perdure/adapters/stores/sqlite/writer.py | 40% |",
    ]
