"""Exports: anyone can verify them, and every forgery is found at its position."""

from __future__ import annotations

import msgspec
import pytest

from perdure.core import events as e
from perdure.core.codec import genesis, seal
from perdure.core.errors import BrokenChain, InvalidInput
from perdure.core.export import export_lines, verify_export
from tests.core.story import SESSION, Story, call


def exported() -> list[bytes]:
    """Return the export of a run with a tool call."""
    story = Story()
    story.message()
    story.reply(call("look"))
    story.result("look", "seen")
    story.reply(text="done")
    return list(export_lines(SESSION, seal(genesis(SESSION), 0, story.log)))


def test_an_export_tells_the_session_its_length_and_its_state() -> None:
    found = verify_export(exported())
    assert (found.session, found.events) == (SESSION, 9)
    assert found.state.status == "idle"


def test_an_empty_log_can_be_exported() -> None:
    assert verify_export(export_lines(SESSION, [])).events == 0


@pytest.mark.parametrize(
    ("forge", "position"),
    [
        (lambda lines: [*lines[:3], lines[3].replace(b"1.1.m1", b"1.1.m2"), *lines[4:]], 3),
        (lambda lines: [*lines[:4], *lines[5:]], 4),
        (lambda lines: lines[:-1], 9),
        (lambda lines: [*lines[:2], b"{}", *lines[3:]], 2),
        (lambda lines: [*lines[:2], b"not json", *lines[3:]], 2),
        (lambda lines: [*lines, lines[-1]], 10),
        (lambda lines: [lines[0].replace(b"support", b"another"), *lines[1:]], 1),
    ],
    ids=["changed", "removed", "truncated", "emptied", "garbled", "repeated", "other session"],
)
def test_a_forged_export_is_found(forge: object, position: int) -> None:
    with pytest.raises(BrokenChain) as caught:
        verify_export(forge(exported()))  # type: ignore[operator]
    assert caught.value.seq == position


def test_a_log_that_is_chained_but_unlawful_is_found() -> None:
    events = [e.RunStarted(at=1, run="r1", number=1, agent="a"), e.TimerFired(at=2, call="x")]
    records = seal(genesis(SESSION), 0, events)
    with pytest.raises(BrokenChain, match="timer_fired"):
        verify_export(export_lines(SESSION, records))


@pytest.mark.parametrize("lines", [[], [b"[]"], [b"\xff"], [b'{"perdure_export":1}']])
def test_what_is_no_export_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(InvalidInput, match="line 1 is not the header"):
        verify_export(lines)


def test_a_newer_format_is_refused() -> None:
    header = msgspec.json.decode(exported()[0])
    with pytest.raises(InvalidInput, match="format 2"):
        verify_export([msgspec.json.encode({**header, "perdure_export": 2})])
