"""The README promises what the proof has shown, with the same figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.testing.mutants import MUTANTS
from perdure.testing.proof_page import BEGIN, END, marked

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROOF = (ROOT / "docs" / "proof.md").read_text(encoding="utf-8")


def row(text: str, what: str) -> list[int]:
    """Return the figures in the row of a table whose first cell begins so."""
    found = re.search(rf"^\| {re.escape(what)}.*\| ([\d, /]+) \|$", text, re.MULTILINE)
    assert found is not None, f"no row begins with {what!r}"
    return [int(one.replace(",", "")) for one in re.split(r", | / ", found[1])]


def test_the_figures_of_the_readme_are_those_of_the_proof() -> None:
    assert marked(README) == marked(PROOF), "run make proof"


def test_the_figures_are_marked_where_they_stand() -> None:
    figures = marked(README)
    assert figures.count("\n| ") > 8
    assert marked(f"a {BEGIN} 1 {END} b") == f"{BEGIN} 1 {END}"
    assert marked("no figures") == ""


@pytest.mark.parametrize(
    "what",
    [
        "completed calls made again",
        "effects that happened twice",
        "acknowledged operations lost",
        "runs that did not end",
    ],
)
def test_nothing_that_must_not_happen_has_happened(what: str) -> None:
    assert set(row(README, what)) == {0}


@pytest.mark.parametrize(
    ("what", "at_least"),
    [
        ("losses of power", 5_000),
        ("errors of the disk", 1_000),
        ("simulated worlds", 20_000),
    ],
)
def test_a_rig_was_run_at_its_size_and_found_nothing(what: str, at_least: int) -> None:
    cases, wrong = row(README, what)
    assert cases >= at_least
    assert wrong == 0


def test_processes_were_killed_at_every_fault_point() -> None:
    reached, known = row(PROOF, "fault points reached")
    assert reached == known
    assert row(PROOF, "scenarios")[0] >= 1_500
    deaths, recovering = row(README, "real processes killed")
    assert deaths > recovering > 0


def test_every_mutant_was_found_out() -> None:
    broken, found = row(README, "engines broken on purpose")
    assert broken == found == len(MUTANTS)
    assert [name for name in MUTANTS if f"| `{name}` |" not in PROOF] == []
