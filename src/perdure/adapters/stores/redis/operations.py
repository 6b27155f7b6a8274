"""What the writer's script is asked for: each operation as it goes out, and what its answer means.

An operation is a header of text and integers, which the script takes apart at once, and payloads.
"""

from __future__ import annotations

import hashlib
from operator import itemgetter
from typing import Any

import msgspec

from perdure.adapters.redis.names import escape
from perdure.adapters.redis.writer import Answer, Header
from perdure.adapters.stores.redis.packing import (
    name,
    pack,
    pack_entry,
    pack_record,
)
from perdure.core.errors import Conflict, Fenced, StoreError
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import CommitDone, InboxEntry, StepCommit, Token

DIGEST_BYTES = 16
NONE = -1
TIME_MAX = 2**53
"""What a sorted set can keep apart from the next integer."""

_first = itemgetter(0)
_encode_row = msgspec.json.Encoder().encode


class Commit:
    """A step commit on its way."""

    load_bytes = 0
    __slots__ = ("done", "error", "step", "submitted")

    def __init__(self, step: StepCommit, done: CommitDone, submitted: float) -> None:
        self.step = step
        self.done = done
        self.submitted = submitted
        self.error: StoreError | None = None

    @property
    def claim(self) -> tuple[SessionId, Token]:
        """What the step was decided under."""
        return self.step.session, self.step.token

    def packed(self) -> tuple[Header, list[bytes]]:
        """Return the header and the payloads. Raises `OverflowError`."""
        step = self.step
        if step.wake_at is not None and abs(step.wake_at) > TIME_MAX:
            raise OverflowError(f"{step.wake_at} is no time in milliseconds since 1970")
        payloads = [*map(pack_record, step.records)]
        # Most steps have none of these, and an empty comprehension is not for nothing.
        if step.rows:
            payloads += map(_encode_row, step.rows)
        if step.blobs:
            payloads += [pack(body) for _, body in step.blobs]
        if step.refusals:
            payloads += [refusal for _, refusal in step.refusals]
        if step.snapshot is not None:
            payloads.append(pack(step.snapshot))
        header = (
            "commit",
            len(payloads),
            name(step.session),
            str(step.token.epoch),
            step.token.nonce,
            step.expected,
            len(step.records),
            _wrong(step),
            step.consumed,
            step.postponed,
            "" if step.wake_at is None else str(step.wake_at),
            step.generation,
            [*map(_row, step.rows)],
            [*map(_first, step.blobs)],
            [*map(_first, step.refusals)],
            0 if step.snapshot is None else 1,
        )
        return header, payloads

    def settle(self, answer: Answer, load: Any) -> None:
        """Note what became of it."""
        self.error = refusal_of(self.step, answer) if answer else None

    def fail(self, error: StoreError) -> None:
        """Note that nothing came of it, or that what came of it is not known."""
        self.error = type(error)(str(error))

    def tell(self) -> None:
        """Call back."""
        self.done(self.error)


def accepting(
    entry: InboxEntry, row: RunRow | None, generation: int, waiting_max: int
) -> tuple[Header, list[bytes]]:
    """Return how a command is put into an inbox."""
    rows = () if row is None else (row,)
    digest = hashlib.sha256(entry.command).digest()[:DIGEST_BYTES]
    payloads = [digest, pack_entry(entry), *map(_encode_row, rows)]
    session = name(entry.session)
    asked = ("accept", len(payloads), session, entry.id, generation, [*map(_row, rows)])
    return (*asked, NONE if row is None else waiting_max), payloads


def claiming(
    session: SessionId, owner: str, nonce: str, strikes_max: int | None, reads: int | None
) -> Header:
    """Return how a session is claimed."""
    limits = (NONE if limit is None else limit for limit in (strikes_max, reads))
    return ("claim", 0, name(session), owner, nonce, *limits)


def releasing(
    session: SessionId,
    token: Token | None,
    snapshot: tuple[int, bytes] | None,
    quarantine: str | None,
) -> tuple[Header, list[bytes]]:
    """Return how a claim is given up."""
    epoch, nonce = ("", "") if token is None else (str(token.epoch), token.nonce)
    version, payloads = (0, []) if snapshot is None else (snapshot[0], [pack(snapshot[1])])
    reason = [] if quarantine is None else [quarantine]
    header = ("release", len(payloads), name(session), epoch, nonce, version, reason)
    return header, payloads


def refusal_of(step: StepCommit, answer: Answer) -> StoreError:
    """Return the error that a step's answer stands for."""
    match answer[0]:
        case b"fenced":
            return fenced(step.session, step.token)
        case b"version":
            return Conflict(f"{step.session} is at {answer[1]}, not at {step.expected}")
        case b"gap":
            position = step.expected
            return Conflict(f"the records do not follow position {position} of {step.session}")
        case _:
            return Conflict(f"a consumed command is not in the inbox of {step.session}")


def fenced(session: SessionId, token: Token) -> Fenced:
    """Return the error of a token that is not the current one."""
    return Fenced(f"the claim {token.epoch} of {session} is not the current one")


def _wrong(step: StepCommit) -> str:
    """Say what is wrong with a step whatever the store holds."""
    seq = step.expected
    for record in step.records:
        seq += 1
        if record[0] != seq:
            return "gap"
    return "inbox" if len(set(step.consumed)) < len(step.consumed) else ""


def _row(row: RunRow) -> tuple[str, str, str, str, int]:
    return escape(row.session.tenant), row.id, row.status, name(row.session), row.created_at
