"""The tables of the README name tests that are there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
README = (HERE / "README.md").read_text(encoding="utf-8")
WEAKNESSES = 26


def missing(text: str) -> list[str]:
    """Return the tests that a text names and that are not there."""
    return [name for name in re.findall(r"`([\w/]*test_\w+\.py(?:::\w+)?)`", text) if not _is(name)]


def _is(name: str) -> bool:
    file, _, function = name.partition("::")
    path = (ROOT if "/" in file else HERE) / file
    return path.is_file() and (not function or function in _functions(path))


@functools.cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, _FUNCTIONS))


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_every_test_that_is_named_is_there() -> None:
    """Whoever renames one renames it here."""
    assert missing(README) == []


def test_one_that_is_not_there_is_noticed() -> None:
    """In a file, and a file."""
    gone = ["test_readme.py::test_gone", "tests/core/test_gone.py", "test_gone.py::test_x"]
    assert missing(" ".join(f"`{name}`" for name in gone)) == gone


def test_every_row_has_a_test() -> None:
    """Weaknesses and behaviours alike."""
    rows = [line for line in README.splitlines() if line.startswith("| ") and "---" not in line]
    weaknesses = [row for row in rows if re.match(r"\| \d+ \|", row)]
    assert [int(row.split("|")[1]) for row in weaknesses] == list(range(1, WEAKNESSES + 1))
    behaviours = [row for row in rows if row not in weaknesses and not row.endswith("| here |")]
    for row in (*behaviours, *weaknesses):
        assert "test_" in row, row
