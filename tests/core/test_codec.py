"""Bytes of events: encoded once, chained, lifted from old versions, refused when unknown."""

from __future__ import annotations

import msgspec
import pytest

from perdure.core import events as e
from perdure.core.codec import (
    Record,
    decode_event,
    encode_event,
    genesis,
    link,
    seal,
    verify_chain,
)
from perdure.core.errors import BrokenChain, UnreadableEvent
from perdure.core.ids import SessionId
from tests.core.story import SESSION

EVENTS = (
    e.MessageReceived(at=1, message="r1", content="hello"),
    e.RunStarted(at=2, run="r1", number=1, agent="abc"),
    e.RunCancelled(at=3, run="r1", reason="no"),
)


def records() -> list[Record]:
    """Return a sealed log."""
    return seal(genesis(SESSION), 0, EVENTS)


def test_an_event_survives_the_round_trip() -> None:
    assert [decode_event(encode_event(event)) for event in EVENTS] == list(EVENTS)


def test_the_chain_binds_the_session_the_order_and_the_bytes() -> None:
    log = records()
    assert [record.seq for record in log] == [1, 2, 3]
    assert verify_chain(genesis(SESSION), 0, log) == log[-1].hash
    assert log[1].hash == link(log[0].hash, log[1].body)
    assert genesis(SESSION) != genesis(SessionId("t1", "support", "s2"))


@pytest.mark.parametrize(
    ("forge", "position"),
    [
        (
            lambda log: [log[0], log[1]._replace(body=log[1].body.replace(b"abc", b"abd")), log[2]],
            2,
        ),
        (lambda log: [log[0], log[2]], 2),
        (lambda log: [log[1], log[0], log[2]], 1),
        (lambda log: [log[0], log[1], log[2]._replace(hash=b"\0" * 32)], 3),
        (lambda log: [log[0], log[0]._replace(seq=2), log[2]], 2),
    ],
    ids=["changed", "removed", "reordered", "rehashed", "repeated"],
)
def test_a_forged_log_breaks_at_the_first_bad_position(forge: object, position: int) -> None:
    with pytest.raises(BrokenChain) as caught:
        verify_chain(genesis(SESSION), 0, forge(records()))  # type: ignore[operator]
    assert caught.value.seq == position


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not an event"),
        (b"\xff\xfe", "not an event"),
        (b"[1,2]", "not an event"),
        (b'{"at":1}', "not an event"),
        (b'{"type":"dream_had","at":1}', "'dream_had' is unknown"),
        (b'{"type":"run_started.9","at":1}', "'run_started.9' is unknown"),
        (b'{"type":"run_started","at":1}', "corrupt: .*missing required field"),
        (b'{"type":"run_started","at":"x","run":"r","number":1,"agent":"a"}', "corrupt"),
        (b'{"type":"run_started","at":1,"run":"r","number":1,"agent":"a","new":1}', "corrupt"),
        (b"[" * 100_000, "not an event"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(body: bytes, message: str) -> None:
    with pytest.raises(UnreadableEvent, match=message):
        decode_event(body)


def test_an_old_version_is_lifted_step_by_step() -> None:
    upcasts = {
        "run_begun": lambda old: {"type": "run_started.0", "at": old["at"], "run": old["id"]},
        "run_started.0": lambda old: {**old, "type": "run_started", "number": 1, "agent": "?"},
    }
    body = msgspec.json.encode({"type": "run_begun", "at": 7, "id": "r1"})
    assert decode_event(body, upcasts) == e.RunStarted(at=7, run="r1", number=1, agent="?")


def test_an_event_costs_its_content_and_little_more() -> None:
    content = "x" * 1000
    assert (
        len(encode_event(e.ToolCallSucceeded(at=1_700_000_000_000, call="1.1.t0", content=content)))
        < 1100
    )
