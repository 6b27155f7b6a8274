"""The facts. Past tense, frozen, typed; appended to a session's log and never changed.

An event is stored as the JSON of its struct. Its tag names its type, and from the second version
of a type on also the version (`run_started.2`), so that one pass decodes any log. What changes in
the shape or in a default of a stored event is a new version: see `upcast`.

An event stores only what is new. A model call names the range of the log that the model saw, and
the agent's definition where it is another one than before; a tool call names its place in the reply
that asked for it. Times are milliseconds since 1970 in UTC.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from perdure.core.budget import Budget, Reserve
from perdure.core.budget_events import BudgetExceeded, BudgetRaised, ModelCallResent
from perdure.core.call_events import (
    ApprovalGiven,
    ApprovalReassigned,
    ApprovalRequested,
    ArgumentsEdited,
    ChildLaunched,
    ChildRestarted,
    DecisionRequested,
    Event,
    LettersDelivered,
    PeopleReminded,
    ToolCallBegun,
    ToolCallCancelled,
    ToolCallDenied,
    ToolCallFailed,
    ToolCallIntended,
    ToolCallLost,
    ToolCallReopened,
    ToolCallResolved,
    ToolCallSucceeded,
    ToolCallUnknown,
)
from perdure.core.family import Parent
from perdure.core.messages import Message, ToolRequest, Usage

__all__ = [
    "EVENT_TYPES",
    "TYPE_NAMES",
    "AnyEvent",
    "ApprovalGiven",
    "ApprovalReassigned",
    "ApprovalRequested",
    "ArgumentsEdited",
    "BudgetExceeded",
    "BudgetRaised",
    "ChildLaunched",
    "ChildRestarted",
    "DecisionRequested",
    "ErrorClass",
    "Event",
    "LettersDelivered",
    "Mode",
    "ModelCallResent",
    "PeopleReminded",
    "ToolCallBegun",
    "ToolCallCancelled",
    "ToolCallDenied",
    "ToolCallFailed",
    "ToolCallIntended",
    "ToolCallLost",
    "ToolCallReopened",
    "ToolCallResolved",
    "ToolCallSucceeded",
    "ToolCallUnknown",
    "type_of",
]

Mode = Literal["queue", "steer", "interrupt"]
ErrorClass = Literal["transient", "external_dependency", "validation", "policy", "internal"]


class MessageReceived(Event, frozen=True, tag="message_received"):
    """A message entered the history. Its id is also the id of the run it asked for."""

    message: str
    content: Any
    mode: Mode = "queue"
    sender: str | None = None
    meta: dict[str, Any] | None = None


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The part of a log that a fork goes on from: up to `upto`, where the hash is `head` (hex).

    There, step `step` of the run `run` was over. `agent` and `session` say whose log it is.
    """

    agent: str
    session: str
    run: str
    step: int
    upto: int
    head: str


class SessionForked(Event, frozen=True, tag="session_forked"):
    """The session goes on from a run of another one, whose history follows as inherited.

    `message` is the id of the run that was asked for; `meta` came with it if it has no message.
    """

    message: str
    origin: Origin
    meta: dict[str, Any] | None = None


class HistoryInherited(Event, frozen=True, tag="history_inherited"):
    """What was not said here entered the history: a message, or a reply and the answers to it.

    `message` is the id of the message or run that brought it.
    """

    message: str
    messages: tuple[Message, ...]


class RunStarted(Event, frozen=True, tag="run_started"):
    """A run, asked for at `accepted_at`, began under the agent definition with this digest.

    `parent` is what launched it, if a run did.
    `budget` is what it may spend: that of its agent and that of its message, whichever is less.
    """

    run: str
    number: int
    agent: str
    accepted_at: int = 0
    deadline_at: int | None = None
    retry_of: str | None = None
    parent: Parent | None = None
    budget: Budget | None = None


class RunWithdrawn(Event, frozen=True, tag="run_withdrawn"):
    """A run was cancelled before it had begun; `parent` is what launched it, if a run did."""

    run: str
    reason: str
    by: str | None = None
    code: str = "cancelled"
    parent: Parent | None = None


class ModelCallIntended(Event, frozen=True, tag="model_call_intended.2"):
    """A model is to be asked, with the log from `first` to `upto` as its history.

    `agent` is the digest of the definition that says which model, prompt and tools, where it is not
    the one that the run named last: agents may change between two calls. So with `policy`, the
    version of the policy that says which tools are shown; empty is none. `reserved` is the most
    that it can take of the budget of the run, if that limits tokens or money.
    """

    call: str
    step: int
    first: int
    upto: int
    agent: str | None = None
    summary: int | None = None
    policy: str | None = None
    reserved: Reserve | None = None


class ModelReplied(Event, frozen=True, tag="model_replied"):
    """A model's complete reply; nothing of a partial one is ever recorded.

    `cost_micros` is what it cost, in millionths, if the run has a budget and the model a price.
    """

    call: str
    content: Any = ""
    tool_calls: tuple[ToolRequest, ...] = ()
    finish: str = "stop"
    usage: Usage = Usage()
    model: str | None = None
    extra: Any = None
    cost_micros: int | None = None


class ModelCallFailed(Event, frozen=True, tag="model_call_failed"):
    """A model could not be asked, or its reply could not be used.

    If it is `doubtful`, the provider may bill it all the same.
    """

    call: str
    error_class: ErrorClass
    code: str
    message: str
    doubtful: bool = False


class RetryScheduled(Event, frozen=True, tag="retry_scheduled"):
    """The model will be asked again at `due_at`; `attempt` is the number of that attempt."""

    call: str
    attempt: int
    delay_ms: int
    due_at: int


class RetryFellDue(Event, frozen=True, tag="retry_fell_due"):
    """The delay before the next attempt is over."""

    call: str


class CompactionIntended(Event, frozen=True, tag="compaction_intended.2"):
    """A model is to fold the log from `first` to `upto` into a summary.

    `agent` and `reserved` are as for a call.
    """

    call: str
    step: int
    first: int
    upto: int
    keep_from: int
    agent: str | None = None
    summary: int | None = None
    reserved: Reserve | None = None


class ContextCompacted(Event, frozen=True, tag="context_compacted"):
    """The history before `keep_from` is now represented by this summary; costs as of a reply."""

    call: str
    content: Any
    keep_from: int
    usage: Usage = Usage()
    cost_micros: int | None = None


class CompactionFailed(Event, frozen=True, tag="compaction_failed"):
    """No summary could be had; the run goes on with the whole history. `doubtful` as of a call."""

    call: str
    error_class: ErrorClass
    code: str
    message: str
    doubtful: bool = False


class TimerStarted(Event, frozen=True, tag="timer_started"):
    """The agent waits until `due_at`, an absolute time that outlives every process."""

    call: str
    step: int
    ordinal: int
    due_at: int
    reason: str = ""


class TimerFired(Event, frozen=True, tag="timer_fired"):
    """The wait is over."""

    call: str
    content: Any = "The wait is over."


class QuestionAsked(Event, frozen=True, tag="question_asked"):
    """The agent waits for a person's answer; who should give it is reminded at `remind_at`."""

    call: str
    step: int
    ordinal: int
    question: str
    remind_at: int | None = None


class QuestionAnswered(Event, frozen=True, tag="question_answered"):
    """A person answered."""

    call: str
    content: Any
    by: str | None = None


class RunCompleted(Event, frozen=True, tag="run_completed"):
    """The run ended with an answer: the content of the `model_replied` event at `answer`."""

    run: str
    answer: int


class RunFailed(Event, frozen=True, tag="run_failed"):
    """The run ended without an answer."""

    run: str
    error_class: ErrorClass
    code: str
    message: str


class RunCancelled(Event, frozen=True, tag="run_cancelled"):
    """The run was cancelled by a person, a program, or an interrupting message."""

    run: str
    reason: str
    by: str | None = None


AnyEvent = (
    MessageReceived
    | SessionForked
    | HistoryInherited
    | RunStarted
    | RunWithdrawn
    | ModelCallIntended
    | ModelReplied
    | ModelCallFailed
    | RetryScheduled
    | RetryFellDue
    | CompactionIntended
    | ContextCompacted
    | CompactionFailed
    | ModelCallResent
    | BudgetExceeded
    | BudgetRaised
    | ToolCallIntended
    | ToolCallDenied
    | ApprovalRequested
    | ApprovalGiven
    | ApprovalReassigned
    | ArgumentsEdited
    | ChildLaunched
    | ChildRestarted
    | LettersDelivered
    | ToolCallBegun
    | ToolCallSucceeded
    | ToolCallFailed
    | ToolCallLost
    | ToolCallUnknown
    | ToolCallReopened
    | DecisionRequested
    | PeopleReminded
    | ToolCallCancelled
    | ToolCallResolved
    | TimerStarted
    | TimerFired
    | QuestionAsked
    | QuestionAnswered
    | RunCompleted
    | RunFailed
    | RunCancelled
)


def type_of(event: Event) -> str:
    """Return the type name of an event, without a version."""
    return TYPE_NAMES[type(event)]


EVENT_TYPES: dict[str, type[Event]] = {
    str(cls.__struct_config__.tag).partition(".")[0]: cls for cls in get_args(AnyEvent)
}
TYPE_NAMES: dict[type[Event], str] = {cls: name for name, cls in EVENT_TYPES.items()}
