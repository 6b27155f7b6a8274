"""The auditor sees each thing that must not be, and nothing where all is well."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.codec import Record, genesis, link
from perdure.core.ids import SessionId
from perdure.testing.nodes.audit import VIOLATIONS, Stall, claims_and_commits
from perdure.testing.nodes.recorder import Trace
from perdure.testing.witness import Seen, Store

SESSION = SessionId("default", "agent", "key")
NAME = str(SESSION)
A, B = (1, "a"), (2, "b")


def chain(*bodies: bytes, base: bytes | None = None, after: int = 0) -> list[Record]:
    """Return records that follow each other."""
    head, records = base or genesis(SESSION), []
    for seq, body in enumerate(bodies, after + 1):
        head = link(head, body)
        records.append(Record(seq, body, head))
    return records


class Story:
    """What two nodes noted."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def note(self, node: str, what: str, **fields: Any) -> Story:
        at = float(len(self.traces))
        line = {"what": what, "node": node, "pid": 1, "at": at, "session": NAME, **fields}
        self.traces.append(Trace(node, line))
        return self

    def claims(self, node: str, token: tuple[int, str]) -> Story:
        return self.note(node, "claimed", token=[*token], strikes=0)

    def writes(
        self,
        node: str,
        token: tuple[int, str],
        records: list[Record],
        error: str | None = None,
        consumed: tuple[str, ...] = (),
    ) -> Story:
        number = len(self.traces)
        expected = records[0].seq - 1 if records else 0
        hashes = [record.hash.hex() for record in records]
        self.note(
            node,
            "submitted",
            number=number,
            token=[*token],
            expected=expected,
            hashes=hashes,
            consumed=[*consumed],
        )
        return self.note(node, "told", number=number, error=error)

    def found(
        self, log: list[Record], inbox: tuple[str, ...] = (), stalls: tuple[Stall, ...] = ()
    ) -> dict[str, int]:
        store: Store = {NAME: Seen(SESSION, tuple(log), inbox)}
        counts = claims_and_commits(store, self.traces, stalls)._asdict()
        return {name: counts[name] for name in VIOLATIONS if counts[name]}


def test_a_handover_is_in_order() -> None:
    log = chain(b"1", b"2", b"3")
    story = Story().note("n0", "accepted", entry="m").claims("n0", A)
    story.writes("n0", A, log[:2], consumed=("m",)).claims("n1", B)
    story.writes("n0", A, chain(b"x", base=log[1].hash, after=2), "Fenced")
    assert story.writes("n1", B, log[2:]).found(log) == {}


def test_what_was_written_before_an_answer_was_lost_is_in_order() -> None:
    log = chain(b"1", b"2")
    story = Story().claims("n0", A).writes("n0", A, log[:1], "Unavailable")
    story.writes("n0", A, log[:1], "Conflict").claims("n1", B).writes("n1", B, log[1:])
    assert story.found(log) == {}


def test_a_stale_base_is_seen() -> None:
    first, stale = chain(b"1"), chain(b"x", base=genesis(SESSION), after=1)
    story = Story().claims("n0", A).writes("n0", A, first).claims("n1", B).writes("n1", B, stale)
    assert story.found(first + stale) == {"stale_commits": 1}


def test_an_epoch_that_goes_back_is_seen() -> None:
    log = chain(b"1", b"2")
    story = Story().claims("n0", A).claims("n1", B).writes("n1", B, log[:1])
    assert story.writes("n0", A, log[1:]).found(log) == {"epoch_regressions": 1}


def test_a_token_that_is_given_twice_is_seen() -> None:
    assert Story().claims("n0", A).claims("n1", A).found([]) == {"tokens_given_twice": 1}
    assert Story().claims("n0", A).claims("n1", (1, "b")).found([]) == {"epochs_given_twice": 1}


def test_events_from_nowhere_and_events_that_are_gone_are_seen() -> None:
    log = chain(b"1", b"2")
    story = Story().claims("n0", A).writes("n0", A, log[:1])
    assert story.found(log) == {"strange_events": 1}
    assert story.found([]) == {"lost_commits": 1}


def test_a_refusal_of_what_was_written_is_seen() -> None:
    log = chain(b"1")
    story = Story().claims("n0", A).writes("n0", A, log, "Fenced")
    assert story.found(log) == {"refused_and_written": 1}


def test_a_message_that_is_nowhere_is_seen() -> None:
    story = Story().note("n0", "accepted", entry="m")
    assert story.found([], inbox=("m",)) == {}
    assert story.found([]) == {"lost_messages": 1}


@pytest.mark.parametrize("taken", [True, False])
def test_a_lease_that_is_kept_by_a_loop_that_stands_still_is_seen(taken: bool) -> None:
    log = chain(b"1", b"2")
    story = Story().claims("n0", A).writes("n0", A, log[:1])
    stall = Stall("n0", began=3.0, ended=3.5)
    if taken:
        story.claims("n1", B).writes("n1", B, log[1:])
    else:
        story.note("n0", "idle").writes("n0", A, log[1:])
    assert story.found(log, stalls=(stall,)) == ({} if taken else {"leases_kept": 1})
