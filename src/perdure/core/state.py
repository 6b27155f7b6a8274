"""What is true of a session now: the fold of its log. Small, whatever the length of the log."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.core.agent import Effect

RunStatus = Literal["idle", "acting", "thinking", "delayed", "compacting"]
CallStatus = Literal["intended", "begun", "unknown", "undecided", "timing", "asking"]
CallKind = Literal["model", "compaction", "tool", "timer", "question", "backoff"]


class Call(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An owed effect with an identity of its own; it leaves the state when it is answered.

    A tool call's arguments are in the log, in the reply at `reply`, at place `ordinal`.
    """

    id: str
    kind: CallKind
    status: CallStatus
    step: int
    ordinal: int = 0
    name: str = ""
    reply: int = 0
    effect: Effect = "read"
    key: str = ""
    attempt: int = 1
    due_at: int | None = None
    first: int = 0
    upto: int = 0
    keep_from: int = 0
    summary: int | None = None
    intended_at: int = 0


class Run(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The run in progress, or the last one. `meta` came with its message, also where it retries."""

    id: str
    number: int
    started_seq: int
    started_at: int
    accepted_at: int = 0
    deadline_at: int | None = None
    status: Literal["running", "completed", "failed", "cancelled"] = "running"
    step: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    answer: int | None = None
    error_class: str | None = None
    code: str | None = None
    message: str | None = None
    ended_at: int | None = None
    meta: dict[str, Any] | None = None


class Mark(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A place where the history may be cut: the first message of a group, and the group's size."""

    seq: int
    size: int


class State(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A session, folded.

    `version` is the position of the last event, `agent` the digest of the definition that the log
    named last. `base` is the first position of the history that is still shown to the model;
    `summary` the position of the event that summarises what is before it. `meta` came with the last
    message.
    """

    version: int = 0
    status: RunStatus = "idle"
    agent: str = ""
    run: Run | None = None
    runs_started: int = 0
    calls: dict[str, Call] = {}
    marks: tuple[Mark, ...] = ()
    base: int = 1
    summary: int | None = None
    context_tokens: int = 0
    reply: int | None = None
    reply_wants_tools: bool = False
    compaction_tried: bool = False
    meta: dict[str, Any] | None = None


EMPTY = State()

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(State)
SNAPSHOT_VERSION = 3
"""Raise it with every change of `State`: snapshots of another version are ignored and refolded."""


def encode_snapshot(state: State) -> bytes:
    """Return the bytes of a snapshot."""
    return b"%d\n" % SNAPSHOT_VERSION + _encoder.encode(state)


def decode_snapshot(body: bytes) -> State | None:
    """Return the state in a snapshot, or None when it cannot serve and the log must be folded."""
    version, _, data = body.partition(b"\n")
    if version != b"%d" % SNAPSHOT_VERSION:
        return None
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
