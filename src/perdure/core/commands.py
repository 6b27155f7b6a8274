"""What is asked of a session. Commands with an id are accepted durably through the inbox."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from perdure.core.budget import Budget
from perdure.core.errors import InvalidInput
from perdure.core.events import ErrorClass, Mode, Origin
from perdure.core.family import Parent
from perdure.core.messages import Message, ModelReply


class Command(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", gc=False
):
    """What is asked of a session."""


class Accepted(Command, frozen=True):
    """A command that waits in the inbox, under an id of its own, until its session consumes it."""

    id: str


class SendMessage(Accepted, frozen=True, tag="send_message"):
    """Start a run (its id is the message's), steer the current one, or interrupt it.

    With `retry_of` there is no new message: the run goes on from the history as it stands. The
    groups of `inherited` enter the history before the message; with `fork_of` they are that of
    another session, and a content of None is no message. With `parent`, a run launches this one: it
    is refused where another one is in progress.
    A `budget` may be less than the agent's, never more.
    `accepted_at` is filled in from the inbox entry; it is no part of what was asked.
    """

    content: Any = None
    accepted_at: int = 0
    mode: Mode = "queue"
    sender: str | None = None
    meta: dict[str, Any] | None = None
    retry_of: str | None = None
    inherited: tuple[tuple[Message, ...], ...] = ()
    fork_of: Origin | None = None
    parent: Parent | None = None
    budget: Budget | None = None


class CancelRun(Accepted, frozen=True, tag="cancel_run"):
    """End a run, wherever it stands."""

    run: str
    reason: str = "cancelled on request"
    by: str | None = None


class AnswerQuestion(Accepted, frozen=True, tag="answer_question"):
    """Answer a question; without `call`, the oldest open one of the run."""

    run: str
    content: Any
    call: str | None = None
    by: str | None = None


class ResolveCall(Accepted, frozen=True, tag="resolve_call"):
    """Say what became of a call whose outcome is unknown.

    `attempt` is the one that was looked into: what is said of it says nothing of a later one.
    """

    run: str
    call: str
    resolution: Literal["happened", "did_not_happen", "tell_model"]
    attempt: int | None = None
    content: Any = None
    by: str = "person"


class DecideApproval(Accepted, frozen=True, tag="decide_approval"):
    """Decide on a call that waits for approval.

    `edit` replaces its `arguments`, `reassign` has others asked, those with one of the `roles`.
    `digest` is that of the arguments that were looked at. `by` decides, and has the `held` roles;
    None is whoever has the last word, as on the command line of the machine.
    """

    run: str
    call: str
    decision: Literal["approve", "deny", "edit", "reassign"]
    digest: str | None = None
    arguments: dict[str, Any] | None = None
    roles: tuple[str, ...] = ()
    held: tuple[str, ...] | None = None
    reason: str = ""
    by: str = "person"


class EndChild(Accepted, frozen=True, tag="end_child"):
    """Tell the parent, the run `run`, that the child that its `call` waits for has ended."""

    run: str
    call: str
    child: str
    status: Literal["completed", "failed", "cancelled"]
    content: Any = None
    code: str = ""
    message: str = ""


class ReportNoChild(Command, frozen=True, tag="report_no_child"):
    """The run that a call wanted to launch was not accepted where it should begin."""

    call: str
    child: str
    message: str


class ReportDelivered(Command, frozen=True, tag="report_delivered"):
    """Letters were accepted where they should be, or will never be."""

    letters: tuple[str, ...]


class RaiseBudget(Accepted, frozen=True, tag="raise_budget"):
    """Add to what a run may spend: tokens, millionths of money, milliseconds from now on, calls.

    With `call` only if that one still waits for it. `by` and `held` are as for an approval.
    """

    run: str
    call: str | None = None
    tokens: int = 0
    cost_micros: int = 0
    wall_ms: int = 0
    calls: dict[str, int] = {}
    held: tuple[str, ...] | None = None
    reason: str = ""
    by: str = "person"


class DenyBudget(Accepted, frozen=True, tag="deny_budget"):
    """Give no more to what waits for it: calls of tools are denied, a waiting run fails.

    With `call` only to that one.
    """

    run: str
    call: str | None = None
    held: tuple[str, ...] | None = None
    reason: str = ""
    by: str = "person"


class ReportReply(Command, frozen=True, tag="report_reply"):
    """A worker brings a model's reply."""

    call: str
    reply: ModelReply


class ReportModelError(Command, frozen=True, tag="report_model_error"):
    """A worker could not get a reply."""

    call: str
    error_class: ErrorClass
    code: str
    message: str
    retry_after_ms: int | None = None


class ReportToolBegin(Command, frozen=True, tag="report_tool_begin"):
    """A worker holds a `once` call with valid arguments and asks to begin.

    `instead_of` is one that was allowed to, and of which it is certain that it did not act.
    """

    call: str
    attempt: int
    worker: str
    instead_of: str | None = None


class ReportToolResult(Command, frozen=True, tag="report_tool_result"):
    """A worker brings the outcome of a tool call; `kind` names what went wrong if not `ok`.

    `remembered` says that it did nothing now: it knew the outcome from before.
    """

    call: str
    attempt: int
    ok: bool
    content: Any
    kind: str = "result"
    remembered: bool = False


class ReportToolLost(Command, frozen=True, tag="report_tool_lost"):
    """The worker that held this call is gone, or gave it up without knowing the outcome."""

    call: str
    attempt: int
    reason: str


class ReportProbe(Command, frozen=True, tag="report_probe"):
    """A tool's probe says what became of a call whose outcome was unknown."""

    call: str
    attempt: int
    verdict: Literal["happened", "did_not_happen", "undecided"]
    content: Any = None


class Doubt(Command, frozen=True, tag="doubt"):
    """The session may lack what was acknowledged before `since`: what it was at is not repeated.

    The run in progress fails, and of `Context.waiting` what was accepted before that is withdrawn:
    a person says what is to be done again.
    """

    since: int


class ResendModelCall(Command, frozen=True, tag="resend_model_call"):
    """A model may have been asked by a node that is gone, and is to be asked again."""

    call: str


class FireTimer(Command, frozen=True, tag="fire_timer"):
    """The time of a timer, a retry or the run's deadline (`call` is then the run) has come."""

    call: str


Report = (
    ReportReply
    | ReportModelError
    | ReportToolBegin
    | ReportToolResult
    | ReportToolLost
    | ReportProbe
)


class BringReport(Accepted, frozen=True, tag="bring_report"):
    """A report of a call that another node took in: it waits for whoever owns the session."""

    report: Report


InboxCommand = (
    SendMessage
    | CancelRun
    | AnswerQuestion
    | ResolveCall
    | DecideApproval
    | EndChild
    | RaiseBudget
    | DenyBudget
    | BringReport
)
AnyCommand = (
    InboxCommand | Report | ReportNoChild | ReportDelivered | Doubt | ResendModelCall | FireTimer
)

_encoder = msgspec.json.Encoder()
_inbox_decoder = msgspec.json.Decoder(InboxCommand)


def encode_command(command: InboxCommand) -> bytes:
    """Return the bytes under which a command is kept in the inbox."""
    return _encoder.encode(command)


def report_id(report: Report) -> str:
    """Return the id under which a report waits in an inbox: said twice, it waits there once."""
    body = _encoder.encode(report)
    return f"report:{report.call}:{hashlib.sha256(body).hexdigest()[:24]}"


def decode_command(body: bytes, accepted_at: int) -> InboxCommand:
    """Return the command in `body`, copied and of the right types.

    Raises `InvalidInput` if it is none of ours.
    """
    try:
        command: InboxCommand = _inbox_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"this is not a command that this version knows: {error}") from None
    if isinstance(command, SendMessage):
        return msgspec.structs.replace(command, accepted_at=accepted_at)
    return command
