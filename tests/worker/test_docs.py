"""Docstrings of every style become descriptions."""

from __future__ import annotations

import docstring_parser
import pytest

from perdure.worker import docs, tool

GOOGLE = """Charge a card.

    Twice is too much.

    Args:
        cents (int): How much,
            in cents.
        to: Whom.

    Returns:
        A receipt.

    Raises:
        ValueError: Never.
"""
NUMPY = """Charge a card.

    Twice is too much.

    Parameters
    ----------
    cents : int
        How much,
        in cents.
    to
        Whom.

    Returns
    -------
    str
        A receipt.
"""
SPHINX = """Charge a card.

    Twice is too much.

    :param int cents: How much,
        in cents.
    :param to: Whom.
    :returns: A receipt.
"""
BOTH = ("Charge a card.\n\nTwice is too much.", {"cents": "How much, in cents.", "to": "Whom."})


@pytest.mark.parametrize(
    "docstring,description,parameters",
    [
        (GOOGLE, *BOTH),
        (NUMPY, *BOTH),
        (SPHINX, *BOTH),
        ("One line.", "One line.", {}),
        ("Two lines\n    of prose.", "Two lines\nof prose.", {}),
        ("Look: a colon, and `code`.", "Look: a colon, and `code`.", {}),
        ("", "", {}),
        (None, "", {}),
    ],
)
def test_a_docstring_is_read(
    docstring: str | None, description: str, parameters: dict[str, str]
) -> None:
    """In the style that its author has."""
    told = docs.read(docstring)
    assert told.description == description
    assert dict(told.parameters) == parameters


def test_a_docstring_that_no_parser_reads_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool is not refused for its prose."""

    def parse(text: str) -> None:
        raise docstring_parser.ParseError("what is this")

    monkeypatch.setattr(docstring_parser, "parse", parse)
    assert docs.read("  Odd\n   prose. ") == ("Odd\nprose.", {})


def test_a_tool_is_described_by_its_docstring() -> None:
    """Its parameters too."""

    @tool
    def charge(cents: int, to: str = "") -> None: ...

    charge_doc = charge.function
    charge_doc.__doc__ = GOOGLE
    spec = tool(charge_doc).spec
    assert spec.description == BOTH[0]
    told = spec.parameters["properties"]
    assert {name: each["description"] for name, each in told.items()} == BOTH[1]
    assert charge.spec.description == ""
