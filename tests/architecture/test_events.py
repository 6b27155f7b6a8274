"""Every event type has a row in the table, a stored sample, and an entry in the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from perdure.core import transitions
from perdure.core.codec import decode_event, encode_event
from perdure.core.events import EVENT_TYPES
from scripts import docs

ROOT: Final = Path(__file__).parents[2]
SAMPLES: Final = ROOT / "tests" / "golden" / "events"
REFERENCE: Final = ROOT / "docs" / "reference" / "events.md"


def in_table(table: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Return the types of event that a transition table lets happen at all."""
    return {type_ for row in table.values() for type_ in row}


def entries(page: str) -> set[str]:
    """Return the types that the reference page has a heading for."""
    return {line.strip("# `") for line in page.splitlines() if line.startswith("## `")}


def test_every_event_may_happen_and_every_row_is_an_event() -> None:
    """The session's table has them all; the calls' table has only types that exist."""
    assert in_table(transitions.SESSION) == set(EVENT_TYPES)
    assert in_table(transitions.CALL) <= set(EVENT_TYPES)


def test_every_event_is_in_the_reference() -> None:
    """`make docs` writes the page."""
    assert entries(REFERENCE.read_text(encoding="utf-8")) == set(EVENT_TYPES)


def test_the_generated_pages_are_current() -> None:
    """A table that changed without its page is a lie in print."""
    stale = [
        str(path.relative_to(ROOT))
        for path, text in docs.pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run make docs"


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_every_event_has_a_sample_that_reads_back(type_: str) -> None:
    """The file is one line, as stored; it stays as it is when the type gets a new version."""
    body = (SAMPLES / f"{type_}.json").read_bytes().strip()
    event = decode_event(body)
    assert type(event) is EVENT_TYPES[type_]
    assert decode_event(encode_event(event)) == event


def test_every_sample_reads_back() -> None:
    """Also those of versions and types that are no longer written."""
    for path in sorted(SAMPLES.glob("*.json")):
        assert decode_event(path.read_bytes().strip()), path.name


def test_a_planted_gap_is_found() -> None:
    """A type without a row, a heading without a type."""
    assert in_table({"idle": {"run_started": "acting"}}) == {"run_started"}
    assert entries("# Events\n\n## `run_started`\n\ntext\n") == {"run_started"}
