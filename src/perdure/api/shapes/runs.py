"""Runs, their events, their cost, and what is asked of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, UnsetType, field

from perdure.api.limits import (
    ID_MAX,
    KEY_CHARS_MAX,
    LINE_CHARS_MAX,
    PROMPT_CHARS_MAX,
    WAIT_SECONDS_MAX,
)
from perdure.api.shapes.budgets import Purse
from perdure.api.shapes.common import Content, Id, Name, PageQuery, Shape, Timestamp
from perdure.core.budget import Kind
from perdure.core.limits import ROLES_MAX
from perdure.core.runs import RowStatus

RunStatus = Literal["pending", "running", "waiting", "completed", "failed"]
AskedStatus = Literal[
    "pending", "running", "waiting", "completed", "failed", "queued", "cancelled", "merged"
]
TriggerType = Literal["message", "schedule", "webhook", "fork"]
Source = Literal["system", "user", "worker"]


class Event(Shape, frozen=True, kw_only=True):
    """A fact of a run's timeline; `sequence` counts from 1 without a gap.

    `id` is unique within the run's session and grows with time.
    """

    id: int
    sequence: int
    event_type: str
    payload: dict[str, Any]
    source: Source = "system"
    inserted_at: Timestamp


class EventGlimpse(Shape, frozen=True, kw_only=True):
    """An event inside a failure inspector."""

    sequence: int
    event_type: str
    payload: dict[str, Any]
    inserted_at: Timestamp


class FailureInspector(Shape, frozen=True, kw_only=True):
    """Where a run stands that failed, or may."""

    error_class: str | None = None
    error_code: str | None = None
    retry_decision: str | None = None
    last_checkpoint: EventGlimpse | None = None
    last_event: EventGlimpse | None = None


class Question(Shape, frozen=True, kw_only=True):
    """What a person is asked. `call` is what a reply may name if there are several."""

    question: str
    tool_call_id: str
    asked_at: Timestamp | None = None
    call: str


class Approval(Shape, frozen=True, kw_only=True):
    """What people have to know of a call to approve it.

    The decision is on the arguments with this `digest`; large ones are left out here and in the
    event `approval_requested`. `needed` different people have to approve, each with one of the
    `roles`, if there are any; `approved_by` have. `rule` of the `policy` asks, for that `reason`.
    At `escalate_at` it is for those with one of the roles `escalate_to` instead.
    """

    tool: str
    effect: str
    arguments: dict[str, Any] | None
    digest: str
    rule: str
    reason: str = ""
    policy: str = ""
    needed: int = 1
    approved_by: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    edited_by: str = ""
    requested_at: Timestamp
    expires_at: Timestamp
    escalate_at: Timestamp | None = None
    escalate_to: tuple[str, ...] = ()


class Wait(Shape, frozen=True, kw_only=True):
    """What a run waits for: an answer, a decision, an approval, more budget, a time, its next
    attempt, a worker, a run that it launched (`run_id`, of `agent`), or that its session is
    released from quarantine. `needs` says what a worker must have, or why it is there; `short_of`,
    `needed` and `left` what a budget lacks (money in millionths). People were `reminded` so many
    times.
    """

    what: Literal[
        "answer", "decision", "approval", "budget", "time", "retry", "child", "worker", "release"
    ]
    call: str
    approval: Approval | UnsetType = UNSET
    question: str | UnsetType = UNSET
    tool: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    due_at: Timestamp | UnsetType | None = UNSET
    short_of: Kind | UnsetType = UNSET
    needed: int | UnsetType = UNSET
    left: int | UnsetType = UNSET
    needs: str | UnsetType = UNSET
    agent: str | UnsetType = UNSET
    run_id: Id | UnsetType = UNSET
    reminded: int | UnsetType = UNSET


class Unpriced(Shape, frozen=True, kw_only=True):
    """Tokens of a model whose price is not known."""

    model: str
    input_tokens: int
    output_tokens: int


class Cost(Shape, frozen=True, kw_only=True):
    """What models cost, in US dollars as a decimal string; what has no price is listed instead."""

    usd: str = "0.000000"
    unpriced: tuple[Unpriced, ...] = ()


class Run(Shape, frozen=True, kw_only=True):
    """One piece of work: from a message to an answer, a failure or a cancellation.

    `row_status` is the finer status that `status` is made of: a cancelled run reads as failed, a
    merged one as the run that it joined. A run without a budget has no `purse`.
    """

    id: int
    agent_id: int
    conversation_id: int | None = None
    parent_run_id: int | None = None
    gard_id: int | None = None
    depth: int = 0
    status: RunStatus
    row_status: RowStatus
    trigger_type: TriggerType = "message"
    input: dict[str, Any]
    output: str | None = None
    failure_metadata: dict[str, Any] = field(default_factory=dict)
    failure_inspector: FailureInspector = FailureInspector()
    waiting_for: Question | None = None
    waits: tuple[Wait, ...] = ()
    steps: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost = Cost()
    total_cost: Cost = Cost()
    purse: Purse | UnsetType = UNSET
    inserted_at: Timestamp
    updated_at: Timestamp


class RunQuery(PageQuery, frozen=True, kw_only=True):
    """Which runs to list, newest first.

    `status` is a run's `status`, or what its `row_status` says more finely: `queued`, `cancelled`
    or `merged`.
    """

    status: AskedStatus | UnsetType = UNSET
    agent_id: Id | UnsetType = UNSET


class EventQuery(Shape, frozen=True, kw_only=True):
    """Which events of a run: those after the sequence `after`, at most `limit`."""

    after: Annotated[int, Meta(ge=0, le=ID_MAX)] = 0
    limit: Annotated[int, Meta(ge=1)] | UnsetType = UNSET


class WaitQuery(Shape, frozen=True, kw_only=True):
    """How long to wait for a run to end or to need somebody, in seconds."""

    timeout: Annotated[float, Meta(ge=0, le=WAIT_SECONDS_MAX)] = 30.0


class ReplyCreate(Shape, frozen=True, kw_only=True):
    """An answer to a run's question: to the oldest open one, or to the one that `call` names."""

    SAID_IF_WRONG: ClassVar = {"answer": "answer is required"}

    answer: Content
    call: Annotated[str, Meta(max_length=KEY_CHARS_MAX)] | None = None


class ResolveCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of a call whose outcome nobody here can know.

    `attempt` is the one that was looked into; `content` is what the model is told if it happened.
    """

    call: Annotated[str, Meta(max_length=KEY_CHARS_MAX)]
    resolution: Literal["happened", "did_not_happen", "tell_model"]
    attempt: Annotated[int, Meta(ge=1, le=ID_MAX)] | None = None
    content: Content | None = None


class DecisionCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decision on a call that waits for approval.

    `digest` is that of the arguments that were looked at: if they have changed, nothing is decided.
    `edit` needs the new `arguments`, `reassign` the `roles` of those who are to decide.
    """

    call: Annotated[str, Meta(max_length=KEY_CHARS_MAX)]
    decision: Literal["approve", "deny", "edit", "reassign"]
    digest: Annotated[str, Meta(max_length=KEY_CHARS_MAX)] | None = None
    arguments: dict[str, Any] | None = None
    roles: Annotated[tuple[Name, ...], Meta(max_length=ROLES_MAX)] = ()
    reason: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | None = None


class WaitsQuery(PageQuery, frozen=True, kw_only=True):
    """What to list: all that waits for people, or one kind of it, of all agents or one."""

    what: Literal["answer", "decision", "approval", "budget"] | UnsetType = UNSET
    agent_id: Id | UnsetType = UNSET


class Waiting(Shape, frozen=True, kw_only=True):
    """Something that waits for people, and the run that it is of."""

    run_id: Id
    agent_id: Id
    conversation_id: Id | None = None
    wait: Wait


class CancelCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a run is to be cancelled."""

    reason: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | None = None


class ForkCreate(Shape, frozen=True, kw_only=True):
    """After which step of a run to go on, and with what: a message, another model or prompt.

    Step 0 is the run's beginning. A `model` or `system_prompt` makes a copy of the agent.
    """

    SAID_IF_WRONG: ClassVar = {
        "step": "step must be a non-negative integer",
        "message": "message must be text or a content block",
    }

    step: Annotated[int, Meta(ge=0, le=ID_MAX)]
    message: Content | None = None
    model: Name | None = None
    system_prompt: Annotated[str, Meta(max_length=PROMPT_CHARS_MAX)] | None = None


class Accepted(Shape, frozen=True, kw_only=True):
    """That a run was accepted, and how durably: memory, os, fsynced or replicated(n)."""

    status: str = "accepted"
    run_id: int
    durability: str | UnsetType = UNSET


class Forked(Accepted, frozen=True, kw_only=True):
    """That a run was accepted that goes on from another one; `agent_id` is who goes on."""

    agent_id: int
    data: Run
