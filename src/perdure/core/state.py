"""What is true of a session now: the fold of its log. Small, whatever the length of the log."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.core.agent import Effect
from perdure.core.budget import Purse, Shortfall
from perdure.core.family import Child, Letter, Parent
from perdure.core.messages import Usage, plus

RunStatus = Literal["idle", "acting", "thinking", "delayed", "compacting"]
CallStatus = Literal[
    "pending", "exceeded", "intended", "begun", "unknown", "undecided", "timing", "asking",
    "launched",
]  # fmt: skip
CallKind = Literal[
    "model", "compaction", "tool", "timer", "question", "backoff", "child", "budget"
]  # fmt: skip


class Approval(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a call waits for: `needed` people with one of the `roles`, of whom `by` have approved.

    `rule` of the `policy` asks, for that `reason`. `edited_by` changed the arguments. At
    `escalate_at` it is for the roles `escalate_to` instead.
    """

    rule: str
    reason: str
    policy: str = ""
    needed: int = 1
    roles: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    edited_by: str = ""
    escalate_at: int | None = None
    escalate_to: tuple[str, ...] = ()


class Call(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An owed effect with an identity of its own; it leaves the state when it is answered.

    A tool call's arguments are in the log, in the reply at `reply`, at place `ordinal`. `worker` is
    the one that was allowed to begin a `once` call: no other one may run this attempt. A call that
    waits for approval, or whose arguments a person edited, has its `arguments` here, and `approval`
    says what it waits for; of a call that does not fit into the budget, `short` does, and it has
    its `arguments` here too. `child` is the run that it launched. `due_at` is when a timer fires,
    an approval expires, or the far end may have forgotten the key. People were `reminded` so many
    times, and next at `remind_at`.
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
    worker: str = ""
    due_at: int | None = None
    first: int = 0
    upto: int = 0
    keep_from: int = 0
    summary: int | None = None
    intended_at: int = 0
    version: str = ""
    digest: str = ""
    arguments: dict[str, Any] | None = None
    approval: Approval | None = None
    child: Child | None = None
    short: Shortfall | None = None
    remind_at: int | None = None
    reminded: int = 0

    def next_at(self) -> int | None:
        """Return when the clock has something to say about it; None for never."""
        if self.remind_at is None and self.approval is None:
            return self.due_at
        escalate_at = None if self.approval is None else self.approval.escalate_at
        times = (self.due_at, self.remind_at, escalate_at)
        return min((at for at in times if at is not None), default=None)


class Doubtful(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A call of which the model was told that its outcome is unknown, until that is resolved."""

    call: str
    name: str
    digest: str
    key: str
    attempt: int


class Decided(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What was decided on an approval or a budget, by whom and when."""

    call: str
    outcome: Literal["approved", "denied", "expired", "raised"]
    by: str
    at: int


class ModelUse(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a model was used for: `model` is the name that it gave itself.

    If it gave itself none, it is the model of the definition with the digest `agent`.
    """

    model: str | None
    agent: str | None
    calls: int
    usage: Usage


class Run(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The run in progress, or the last one. `meta` came with its message, also where it retries.

    `first_seq` is the position of the first event that came with what asked for it. `parent` is
    what launched it, if a run did, and `children` how many it has launched itself. A run without a
    budget has no `purse`.
    """

    id: str
    number: int
    started_seq: int
    started_at: int
    first_seq: int = 0
    accepted_at: int = 0
    deadline_at: int | None = None
    status: Literal["running", "completed", "failed", "cancelled"] = "running"
    step: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    use: tuple[ModelUse, ...] = ()
    answer: int | None = None
    error_class: str | None = None
    code: str | None = None
    message: str | None = None
    ended_at: int | None = None
    meta: dict[str, Any] | None = None
    parent: Parent | None = None
    children: int = 0
    purse: Purse | None = None


def spent(
    run: Run, model: str | None, agent: str, usage: Usage, *, retries: int | None = None
) -> Run:
    """Return the run after a model was used for `agent`; `model` is what it named itself.

    With `retries` that is how often its next call has been tried again.
    """
    digest = None if model else agent
    others = run.use
    now = ModelUse(model, digest, 1, usage)
    for place, one in enumerate(run.use):
        if one.model == model and one.agent == digest:
            others = (*run.use[:place], *run.use[place + 1 :])
            now = ModelUse(model, digest, one.calls + 1, plus(one.usage, usage))
            break
    return msgspec.structs.replace(
        run,
        retries=run.retries if retries is None else retries,
        input_tokens=run.input_tokens + usage.input_tokens,
        output_tokens=run.output_tokens + usage.output_tokens,
        use=(*others, now),
    )


class Mark(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A place where the history may be cut: the first message of a group, and the group's size."""

    seq: int
    size: int


class Counted(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a model was shown and said, in `tokens`, at a measure of `said`.

    They are as it reported them, with frames around what it said. It was asked under this
    definition and policy.
    """

    tokens: int
    said: int
    agent: str
    policy: str


class State(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A session, folded.

    `version` is the position of the last event, `agent` the digest of the definition that the log
    named last. `base` is the first position of the history that is still shown to the model;
    `summary` the position of the event that summarises what is before it. `meta` came with the last
    message, and `asked_seq` is where what asks for the next run begins, 0 if nothing does.
    `messages` counts all that was said, also what is shown no more, and `content_bytes` its bytes:
    of a text its characters, of anything else its JSON. `policy` is the version that the log named
    last, `doubts` are calls of unknown outcome, and `decided` the last approvals that were decided.
    `outbox` is what the session owes to others. `uses` counts the calls that each standing approval
    let through here, by their ids. All that was said has at most `said_tokens_max` tokens, and
    `counted` is what a model counted.
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
    asked_seq: int = 0
    messages: int = 0
    content_bytes: int = 0
    policy: str = ""
    doubts: tuple[Doubtful, ...] = ()
    decided: tuple[Decided, ...] = ()
    outbox: tuple[Letter, ...] = ()
    uses: dict[str, int] = {}
    said_tokens_max: int = 0
    counted: Counted | None = None


EMPTY = State()

_encoder = msgspec.json.Encoder()


def size_of(content: Any) -> int:
    """Return about how many bytes a content has."""
    return len(content) if isinstance(content, str) else len(_encoder.encode(content))


def heard(state: State, contents: tuple[Any, ...]) -> State:
    """Return the state after messages with these contents."""
    return msgspec.structs.replace(
        state,
        messages=state.messages + len(contents),
        content_bytes=state.content_bytes + sum(map(size_of, contents)),
    )


_decoder = msgspec.json.Decoder(State)
SNAPSHOT_VERSION = 7
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
