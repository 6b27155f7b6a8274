"""The facts of tool calls: what was allowed, by whom, what was sent, and what is known of it.

See `events` for what all events have in common.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core.agent import Effect
from perdure.core.family import Parent


class Event(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="type",
    gc=False,
):
    """A fact, with the time at which it was recorded."""

    at: int


class ToolCallIntended(Event, frozen=True, tag="tool_call_intended"):
    """A tool call was allowed by `rule` and may be sent to a worker that has that `version`.

    `policy` is the version of the policy that has the rule. `digest` is that of the arguments of a
    call that may change something. From `unsure_at` on, the far end may not know the key any more:
    then the call is not sent again.
    """

    call: str
    step: int
    ordinal: int
    name: str
    effect: Effect
    key: str
    rule: str = "declared"
    version: str = ""
    policy: str = ""
    digest: str = ""
    unsure_at: int | None = None


class ToolCallDenied(Event, frozen=True, tag="tool_call_denied"):
    """A tool call was refused before anything was sent; `content` is what the model is told.

    `by` is the person who denied it, if one did.
    """

    call: str
    step: int
    ordinal: int
    name: str
    rule: str
    content: Any
    policy: str = ""
    by: str = ""


class ApprovalRequested(Event, frozen=True, tag="approval_requested"):
    """People have to approve a call before it is made: `needed` of those with one of the `roles`.

    It is bound to the `arguments` with this `digest`, to the `version` of the tool and to that of
    the `policy` whose `rule` asks. At `expires_at` it is denied, at `escalate_at` it is for those
    with one of the roles `escalate_to`, and at `remind_at` people are reminded.
    """

    call: str
    step: int
    ordinal: int
    name: str
    effect: Effect
    key: str
    arguments: dict[str, Any]
    digest: str
    rule: str
    reason: str
    expires_at: int
    version: str = ""
    policy: str = ""
    needed: int = 1
    roles: tuple[str, ...] = ()
    escalate_at: int | None = None
    escalate_to: tuple[str, ...] = ()
    remind_at: int | None = None


class ApprovalGiven(Event, frozen=True, tag="approval_given"):
    """One of the people who are needed approved the call with these arguments."""

    call: str
    digest: str
    by: str
    role: str = ""


class ApprovalReassigned(Event, frozen=True, tag="approval_reassigned"):
    """Others are to approve the call: whoever has one of the `roles`.

    `by` says who decided so: a person, or as `rule:ID` the rule that had asked.
    """

    call: str
    roles: tuple[str, ...]
    by: str
    reason: str = ""


class ArgumentsEdited(Event, frozen=True, tag="arguments_edited"):
    """A person changed the arguments of a call that waits for approval: it is asked for anew."""

    call: str
    arguments: dict[str, Any]
    digest: str
    by: str


class ToolCallResolved(Event, frozen=True, tag="tool_call_resolved"):
    """What the model was told to be unknown is known now: the call took effect, or it did not."""

    call: str
    happened: bool
    by: str
    content: Any = None


class ChildLaunched(Event, frozen=True, tag="child_launched"):
    """A run of another agent was launched, and is waited for: `content` is what it is asked.

    `child` is its id, and (`agent`, `key`) its session; `agent_name` is what the model called it.
    `context` and `meta` go with the message. `rule` of the `policy` allowed it.
    """

    call: str
    step: int
    ordinal: int
    name: str
    child: str
    agent: str
    key: str
    agent_name: str
    content: Any
    parent: Parent
    context: dict[str, Any] | None = None
    meta: dict[str, Any] | None = None
    rule: str = "declared"
    policy: str = ""


class ChildRestarted(Event, frozen=True, tag="child_restarted"):
    """A child that failed for `reason` is launched again, as the run `child` with the key `key`."""

    call: str
    child: str
    key: str
    reason: str


class LettersDelivered(Event, frozen=True, tag="letters_delivered"):
    """What was owed to other sessions has been accepted there, or was refused for good."""

    letters: tuple[str, ...]


class ToolCallBegun(Event, frozen=True, tag="tool_call_begun"):
    """A worker may now run this `once` call: from here on it is never sent again."""

    call: str
    attempt: int
    worker: str


class ToolCallSucceeded(Event, frozen=True, tag="tool_call_succeeded"):
    """The call took effect.

    `by` says who knew: the worker, its memory of an earlier attempt, the tool's probe, or a person.
    """

    call: str
    content: Any
    by: str = "worker"


class ToolCallFailed(Event, frozen=True, tag="tool_call_failed"):
    """The call ended without a usable result; `content` is what the model is told."""

    call: str
    kind: str
    content: Any
    by: str = "worker"


class ToolCallLost(Event, frozen=True, tag="tool_call_lost"):
    """The worker was lost in mid-call; the call may be repeated and will be sent again."""

    call: str
    attempt: int
    reason: str


class ToolCallUnknown(Event, frozen=True, tag="tool_call_unknown"):
    """Nobody here can know whether this call took effect, and it must not be repeated blindly."""

    call: str
    attempt: int
    reason: str


class ToolCallReopened(Event, frozen=True, tag="tool_call_reopened"):
    """It is now known that the call did not take effect: it may be sent again."""

    call: str
    by: str


class DecisionRequested(Event, frozen=True, tag="decision_requested"):
    """A person must say whether the call took effect, and is reminded at `remind_at`."""

    call: str
    question: str
    remind_at: int | None = None


class PeopleReminded(Event, frozen=True, tag="people_reminded"):
    """A call still waits for people: this is reminder number `count`, and `remind_at` the next."""

    call: str
    count: int
    remind_at: int | None = None


class ToolCallCancelled(Event, frozen=True, tag="tool_call_cancelled"):
    """An open call was given up with its run; `content` is what the model would be told."""

    call: str
    content: Any
