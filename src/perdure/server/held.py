"""A task that the pool holds: what a worker is told of it, and what is reported of it."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

from msgspec import UNSET
from msgspec.structs import replace

from perdure.core.agent import ToolSpec
from perdure.core.commands import Report, ReportModelError, ReportProbe, ReportToolLost
from perdure.core.commands import ReportToolResult as ToolResult
from perdure.ports.deadlines import Queue
from perdure.ports.workers import ModelTask, OnReport, OnText, Task, ToolTask
from perdure.server.members import Member, Need
from perdure.wire import results, tasks
from perdure.wire.frames import TooLarge
from perdure.wire.results import CacheMiss, Result

Known = tuple[tasks.Number, tasks.Number]
"""The ids that the REST surface knows a task's agent and run by."""

Numbers = Callable[[Task], Known | Awaitable[Known]]
"""Returns the ids of a task; of one that came from elsewhere they may have to be asked for."""


def by_name(task: Task) -> Known:
    """Return the names of a task's agent and run, where nobody knows them otherwise."""
    return task.agent, task.run


Offers = Callable[[ModelTask], Sequence[ToolSpec]]
"""The tools that a model call is offered when it is sent; that may be long after it began."""

DEADLINE_SLACK_MS = 5_000
"""What a native worker, which keeps the time of its calls itself, has for telling so."""


class Held:
    """A task from its start to its report. It has an owner, or waits for one.

    `expects` is the id of the worker that had it when its connection ended, and may come back until
    `until_ms`.

    A `once` call is `unasked`, then `asked` while its beginning is made durable, then `granted`.
    `released` once its worker may act: before that, nothing can have happened. `by` is the one who
    may act, if it is known. A task is `borrowed` when its session is run by another node, and
    `is_at_home` while only workers of this one can have had it.
    """

    __slots__ = (
        "begin",
        "borrowed",
        "by",
        "expects",
        "id",
        "is_at_home",
        "known_as",
        "need",
        "number",
        "on_late",
        "on_report",
        "on_text",
        "owner",
        "released",
        "sent",
        "since_ms",
        "task",
        "timing",
        "until_ms",
        "wants",
        "whole",
    )

    def __init__(
        self, task: Task, need: Need, number: int, since_ms: int, on_report: OnReport,
        on_text: OnText,
    ) -> None:  # fmt: skip
        self.id = task_id(task)
        self.task = task
        self.need = need
        self.known_as: Known = task.agent, task.run
        self.number = number
        self.since_ms = since_ms
        self.on_report = on_report
        self.on_text = on_text
        self.on_late: Callable[[], None] = _never
        self.timing: Queue | None = None
        self.owner: Member | None = None
        self.expects: str | None = None
        self.until_ms: int | None = None
        self.begin: Literal["unasked", "asked", "granted"] = "unasked"
        self.by: str | None = None
        self.wants = self.borrowed = False
        self.is_at_home = True
        self.sent = self.released = self.whole = False

    def limit(self, queue: Queue, on_late: Callable[[], None]) -> None:
        """Begin the time of this task, anew if it is under way."""
        self.unlimit()
        self.on_late, self.timing = on_late, queue
        queue.add(self)

    def unlimit(self) -> None:
        """Let the task take as long as it likes."""
        if self.timing is not None:
            self.timing.drop(self)
            self.timing = None
            self.on_late = _never  # it knows this task: a cycle that would live until collected

    def time_out(self) -> None:
        """Tell who set the limit that the time is over."""
        self.on_late()

    @property
    def is_once(self) -> bool:
        """Whether the call may happen only once, and is to happen now."""
        task = self.task
        return isinstance(task, ToolTask) and task.effect == "once" and not task.probing

    def given(self, owner: Member | None) -> None:
        """Belong to a worker, or to nobody; what was said to the one before does not count."""
        self.owner = owner
        self.expects = None
        self.sent = self.released = self.wants = self.whole = False

    def is_of(self, task: Task) -> bool:
        """Say whether this is the same attempt at the same call."""
        one, other = self.task, task
        if isinstance(one, ToolTask) and isinstance(other, ToolTask):
            return (one.attempt, one.probing) == (other.attempt, other.probing)
        return type(one) is type(other)

    def take_over(
        self, task: Task, on_report: OnReport, on_text: OnText, by: str, borrowed: bool
    ) -> None:
        """Be reported to whoever runs the session now, and has begun it: another node, or ours."""
        self.task, self.on_report, self.on_text = task, on_report, on_text
        self.borrowed, self.is_at_home = borrowed, False
        self.begin, self.by = "granted", by or None

    def untouched(self) -> bool:
        """Say whether another worker may have it: this one cannot have done anything about it, and
        is not named as the only one who may."""
        waits = self.is_once and self.begin != "unasked" and not self.released
        return (not self.sent or waits) and self.by is None

    def counts(self, member: Member) -> bool:
        """Say whether what a worker brings is the outcome: its owner's, or with none, anybody's."""
        if self.owner is None:
            return member.fits(self.need)
        return self.owner is member and self.sent

    def report(self, result: Result) -> Report | CacheMiss:
        """Return what a result says about this task."""
        task = self.task
        if isinstance(task, ModelTask):
            return results.model_report(result, task.call)
        if task.probing:
            return results.probe_report(result, task.call, task.attempt)
        return results.tool_report(result, task.call, task.attempt)


def _never() -> None:
    """Stand for a limit that is not there."""


def task_id(task: Task) -> str:
    """Return the id of a task: 22 URL-safe characters, the same for every attempt at its call."""
    what = "probe" if isinstance(task, ToolTask) and task.probing else "call"
    parts = "\x1f".join((*task.session, task.run, task.call, what))
    return urlsafe_b64encode(hashlib.sha256(parts.encode()).digest()[:16]).decode().rstrip("=")


# --------------------------------------------------------------------------- what a worker is told


def told(held: Held, member: Member, offers: Offers, now_ms: int) -> tasks.LlmTask | tasks.ToolTask:
    """Return the payload that gives a task to a worker."""
    agent_id, run_id = held.known_as
    task = held.task
    detail = _detail(task) if member.native else UNSET
    if isinstance(task, ToolTask):
        return tasks.ToolTask(
            task_id=held.id,
            tool_name=task.tool,
            input=task.arguments,
            agent_id=agent_id,
            run_id=run_id,
            idempotency_key=task.key if member.native or task.effect != "read" else None,
            perdure=detail,
        )
    request = task.request
    compacting = request.purpose == "compact"
    delta = None
    if member.cache is not None and not compacting and not held.whole:
        delta = member.cache.delta(run_id, request.messages)
    messages = request.messages if delta is None else delta.append
    if not member.native:
        messages = tasks.for_norns(messages)
    return tasks.LlmTask(
        task_id=held.id,
        model=request.model,
        system_prompt=request.instructions,
        date=None if member.native else _date(now_ms),
        messages=messages if delta is None else UNSET,
        messages_delta=UNSET if delta is None else replace(delta, append=messages),
        tools=tuple(
            tasks.ToolSchema(tool.name, tool.description, tool.parameters)
            for tool in (() if compacting else offers(task))
        ),
        max_tokens=request.max_tokens,
        agent_id=agent_id,
        run_id=run_id,
        step=_step(task.call),
        purpose="compact" if compacting else UNSET,
        perdure=detail,
    )


def sent(held: Held, member: Member, payload: tasks.LlmTask | tasks.ToolTask) -> None:
    """Note what the worker has now."""
    held.sent = True
    task = held.task
    if isinstance(payload, tasks.LlmTask) and isinstance(task, ModelTask):
        held.whole = payload.messages is not UNSET
        if member.cache is not None and payload.purpose is UNSET:
            member.cache.keep(payload.run_id, task.request.messages)


def _detail(task: Task) -> tasks.Detail:
    if isinstance(task, ModelTask):
        return tasks.Detail(session=task.session, run=task.run, call=task.call, agent=task.agent)
    return tasks.Detail(
        session=task.session,
        run=task.run,
        call=task.call,
        agent=task.agent,
        attempt=task.attempt,
        effect=task.effect,
        timeout_ms=task.timeout_ms,
        probe=task.probing,
        version=task.version,
    )


def _date(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()


def _step(call: str) -> int:
    """Return the step in a call's id, which begins `run.step.`."""
    parts = call.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else 0


# ------------------------------------------------------------------------------ what is reported


def lost(task: Task, worker_id: str | None) -> Report:
    """Return the report of a task whose worker is gone; None: nobody knows who it was."""
    why = "its worker did not come back" if worker_id is None else f"worker {worker_id!r} was lost"
    if isinstance(task, ModelTask):
        return ReportModelError(
            call=task.call,
            error_class="transient",
            code="worker_disconnected",
            message=f"worker disconnected: {why}",
        )
    if task.probing:
        return _undecided(task)
    return ReportToolLost(call=task.call, attempt=task.attempt, reason=why)


def too_late(task: Task, timeout_ms: int, can_be_stopped: bool) -> Report:
    """Return the report of a task whose worker did not answer in time."""
    within = f"within {timeout_ms / 1000:g} s"
    if isinstance(task, ModelTask):
        message = f"the model did not reply {within}"
        return ReportModelError(
            call=task.call, error_class="transient", code="timeout", message=message
        )
    if task.probing:
        return _undecided(task)
    if task.effect == "once":
        reason = f"the tool did not answer {within}"
        return ReportToolLost(call=task.call, attempt=task.attempt, reason=reason)
    text = f"The tool did not answer {within}."
    if not can_be_stopped:
        text += " It cannot be stopped and may still be at work."
    return ToolResult(call=task.call, attempt=task.attempt, ok=False, content=text, kind="timeout")


def too_large(task: Task, error: TooLarge) -> Report:
    """Return the report of a task that no frame to its worker can carry."""
    size = f"{error.size_bytes} bytes, more than the {error.bytes_max} that its worker takes"
    if isinstance(task, ModelTask):
        return ReportModelError(
            call=task.call,
            error_class="validation",
            code="too_large",
            message=f"the request to the model has {size}: shorten or compact the history",
        )
    if task.probing:
        return _undecided(task)
    return ToolResult(
        call=task.call,
        attempt=task.attempt,
        ok=False,
        content=f"The tool was not called: the call has {size}.",
        kind="too_large",
    )


def _undecided(task: ToolTask) -> Report:
    return ReportProbe(call=task.call, attempt=task.attempt, verdict="undecided")
