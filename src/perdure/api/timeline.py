"""A run's timeline: our facts told as the events that clients of Norns know.

A `Timeline` is fed the log of a session, event by event, and returns what each adds to the timeline
of one run. It is the same for a whole log and for a stream. Sequences count from 1 and never change
afterwards, so they serve as cursors: `BECOMES` is only ever added to.

Nothing is told twice: where Norns repeats the whole history in each `llm_request`, here stands how
many messages there were and which part of the log holds them. Two facts have no event of their own,
because one of the same commit tells them whole: a run's first message is its input, and the failure
of a model call is in the `retry` or `run_failed` after it. Facts that Norns has no event for appear
under our own names. Our ids of calls stand as `call` beside the model's, `tool_call_id`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from perdure.api import budgets
from perdure.api.payloads import given, is_blank, source_of, usage_of
from perdure.api.shapes.common import timestamp
from perdure.api.shapes.runs import Event, Source
from perdure.api.transcript import add_context
from perdure.core import events as e
from perdure.core import ids
from perdure.core.agent import AgentSpec
from perdure.core.family import Parent
from perdure.core.history import with_distinct_ids
from perdure.core.messages import Usage, UserMessage, plus

EVENTS_PER_FACT = 4
"""The room for the events of one fact in their ids: position * EVENTS_PER_FACT + 0, 1, 2, ..."""

BUILTINS = frozenset({"wait", "ask_human", "launch_agent", "list_agents"})
_FINISH = {"tool_calls": "tool_call", "tool_use": "tool_call", "end_turn": "stop"}

Told = Iterator[tuple[str, dict[str, Any], Source]]


class AskedCall(NamedTuple):
    """A tool call that the model asked for: its id there, and what is known of it here."""

    id: str
    name: str
    arguments: dict[str, Any]
    step: int
    key: str | None = None
    asked_at: int | None = None


class ModelUse(NamedTuple):
    """What one model was used for in a run."""

    calls: int
    usage: Usage


class Timeline:
    """The timeline of one run, kept up event by event.

    `agents` gives the definitions by their digests; it may grow meanwhile (see `definition_of`).
    What is not in it is left out of `llm_request`. `agent_id` is the agent's number.

    After `feed`, these may be read: `input` (the first message's content; of a fork without one,
    that of the last one it inherited), `context` (what came with it), `output` (the answer's
    content, None before there is one), `use` (model -> what it was used for), `questions` (call ->
    what is asked and not answered), `step`, `agent` (the digest in force), `last` (the last event),
    `failure` (the payload of `run_failed`), `started_at`, `ended_at`, `parent` (what launched the
    run, if a run did), `children` (the ids of the runs that it launched, in order).
    """

    def __init__(
        self, run: str, agents: Mapping[str, AgentSpec] | None = None, agent_id: int = 0
    ) -> None:
        self.run = run
        self.agent_id = agent_id
        self.input: Any = None
        self.context: dict[str, Any] | None = None
        self.output: Any = None
        self.use: dict[str, ModelUse] = {}
        self.questions: dict[str, AskedCall] = {}
        self.step = 0
        self.agent = ""
        self.last: Event | None = None
        self.failure: dict[str, Any] | None = None
        self.started_at: int | None = None
        self.ended_at: int | None = None
        self.parent: Parent | None = None
        self.children: list[str] = []
        self.purse: budgets.Kept = None
        self._agents = agents if agents is not None else {}
        self._open = False
        self._fork_of: e.Origin | None = None
        self._seqs: list[int] = []
        self._totals: list[int] = [0]
        self._is_user: list[bool] = []
        self._asked: dict[str, AskedCall] = {}
        self._said: Any = ""
        self._reply: tuple[int, Any] = (0, "")
        self._model_failure: e.ModelCallFailed | None = None
        self._compaction: e.CompactionIntended | None = None

    def feed(self, seq: int, event: e.Event) -> list[Event]:
        """Take in the event at position `seq`; return what it adds to the timeline, in order.

        Feed the log from the start, or from anywhere before the run: what was not fed is only
        missing from `message_count` where the model was shown it.
        """
        if self.ended_at is not None:
            return []
        if not self._open and not self._concerns(event):
            self._count(seq, event)
            return []
        told = list(BECOMES[type(event)].tell(self, seq, event))
        self.purse = budgets.spend(self.purse, event)
        self._count(seq, event)
        return [self._event(seq, number, event.at, one) for number, one in enumerate(told)]

    def message_count(self, first: int, upto: int, summary: int | None = None) -> int:
        """Return how many messages a model was shown with the log from `first` to `upto`."""
        start, end = bisect_left(self._seqs, first), bisect_right(self._seqs, upto)
        headless = start < end and not self._is_user[start]
        return self._totals[end] - self._totals[start] + (summary is not None or headless)

    def _concerns(self, event: e.Event) -> bool:
        if isinstance(event, e.MessageReceived | e.SessionForked | e.HistoryInherited):
            return event.message == self.run
        return isinstance(event, e.RunStarted | e.RunWithdrawn) and event.run == self.run

    def _count(self, seq: int, event: e.Event) -> None:
        if isinstance(event, e.MessageReceived):
            self._add(seq, 1, is_user=True)
        elif isinstance(event, e.HistoryInherited):
            is_user = isinstance(event.messages[0], UserMessage)
            self._add(seq, len(event.messages), is_user=is_user)
        elif isinstance(event, e.ModelReplied):
            self._add(seq, 1 + len(event.tool_calls), is_user=False)

    def _add(self, seq: int, size: int, *, is_user: bool) -> None:
        self._seqs.append(seq)
        self._totals.append(self._totals[-1] + size)
        self._is_user.append(is_user)

    def _event(
        self, seq: int, number: int, at: int, told: tuple[str, dict[str, Any], Source]
    ) -> Event:
        event_type, payload, source = told
        self.last = Event(
            id=seq * EVENTS_PER_FACT + number,
            sequence=self.last.sequence + 1 if self.last is not None else 1,
            event_type=event_type,
            payload={"schema_version": 1, **payload},
            source=source,
            inserted_at=timestamp(at),
        )
        return self.last

    def _definition(self) -> AgentSpec | None:
        return self._agents.get(self.agent)

    def _model(self) -> dict[str, Any]:
        spec = self._definition()
        return {"model": spec.model} if spec is not None else {}

    def _use(self, model: str | None, usage: Usage) -> None:
        name = model or self._model().get("model", "")
        calls, before = self.use.get(name, ModelUse(0, Usage()))
        self.use[name] = ModelUse(
            calls + 1,
            plus(before, usage),
        )

    def _call(self, call: str) -> AskedCall:
        return self._asked.get(call) or AskedCall(call, "", {}, self.step)

    def _about(self, call: str) -> dict[str, Any]:
        asked = self._call(call)
        return {"tool_call_id": asked.id, "name": asked.name, "step": asked.step, "call": call}

    # What each fact becomes. The rows of `BECOMES` name these.

    def _message_received(self, seq: int, event: e.MessageReceived) -> Told:
        if event.message == self.run:
            self.input = event.content
            return
        payload: dict[str, Any] = {"message": event.message, "content": event.content}
        yield (
            "message_received",
            given({**payload, "mode": event.mode}, sender=event.sender),
            "user",
        )

    def _session_forked(self, seq: int, event: e.SessionForked) -> Told:
        self._fork_of = event.origin
        yield from ()

    def _history_inherited(self, seq: int, event: e.HistoryInherited) -> Told:
        head = event.messages[0]
        if self._fork_of is not None:
            self.input = head.content if isinstance(head, UserMessage) else self.input
        elif event.message == self.run:
            self.context = self.context or {}
            add_context(self.context, head)
        yield from ()

    def _run_started(self, seq: int, event: e.RunStarted) -> Told:
        self._open, self.agent, self.started_at = True, event.agent, event.at
        self.parent = event.parent
        origin, self._fork_of = self._fork_of, None
        forked = None if origin is None else {"run": origin.run, "step": origin.step}
        yield "run_started", given({}, retry_of=event.retry_of, fork_of=forked), "system"

    def _run_withdrawn(self, seq: int, event: e.RunWithdrawn) -> Told:
        if event.run == self.run:
            yield from self._run_cancelled(seq, event)

    def _model_call_intended(self, seq: int, event: e.ModelCallIntended) -> Told:
        self.agent, self.step = event.agent or self.agent, event.step
        spec = self._definition()
        shown = given({"first": event.first, "upto": event.upto}, summary=event.summary)
        payload = {
            "step": event.step,
            "message_count": self.message_count(event.first, event.upto, event.summary),
            **self._model(),
            **({"tools": [tool.name for tool in spec.tools]} if spec is not None else {}),
            "log": shown,
        }
        yield "llm_request", payload, "system"

    def _model_replied(self, seq: int, event: e.ModelReplied) -> Told:
        requests = with_distinct_ids(event.tool_calls)
        self._asked = {
            ids.tool_call(event.call, ordinal): AskedCall(
                request.id, request.name, request.arguments, self.step
            )
            for ordinal, request in enumerate(requests)
        }
        self._use(event.model, event.usage)
        self._reply = (seq, event.content)
        if not is_blank(event.content):
            self._said = event.content
        calls = [{"id": one.id, "name": one.name, "arguments": one.arguments} for one in requests]
        payload = {
            "step": self.step,
            "content": event.content,
            "tool_calls": calls,
            "finish_reason": "tool_call" if calls else _FINISH.get(event.finish, event.finish),
            "usage": usage_of(event.usage),
            **({"model": event.model} if event.model else self._model()),
        }
        yield "llm_response", payload, "worker"

    def _model_call_failed(self, seq: int, event: e.ModelCallFailed) -> Told:
        self._model_failure = event
        yield from ()

    def _retry_scheduled(self, seq: int, event: e.RetryScheduled) -> Told:
        failed = self._model_failure
        payload = {
            "error": failed.message if failed else "",
            "error_class": failed.error_class if failed else "internal",
            "error_code": failed.code if failed else "",
            "retry_decision": "retry",
            "attempt": event.attempt - 1,
            "delay_ms": event.delay_ms,
            "due_at": timestamp(event.due_at),
            "step": self.step,
        }
        yield "retry", payload, "system"

    def _retry_fell_due(self, seq: int, event: e.RetryFellDue) -> Told:
        yield "retry_fell_due", {"step": self.step}, "system"

    def _compaction_intended(self, seq: int, event: e.CompactionIntended) -> Told:
        self.agent, self._compaction = event.agent or self.agent, event
        shown = given({"first": event.first, "upto": event.upto}, summary=event.summary)
        yield "compaction_intended", {"step": event.step, **self._model(), "log": shown}, "system"

    def _context_compacted(self, seq: int, event: e.ContextCompacted) -> Told:
        self._use(None, event.usage)
        first = self._compaction.first if self._compaction else 1
        payload = {
            "step": self.step,
            "dropped": self._messages_in(first, event.keep_from - 1),
            "kept": self._messages_in(event.keep_from, seq),
            "summary": event.content,
            "usage": usage_of(event.usage),
            **self._model(),
        }
        yield "context_compacted", payload, "worker"

    def _messages_in(self, first: int, upto: int) -> int:
        start, end = bisect_left(self._seqs, first), bisect_right(self._seqs, upto)
        return self._totals[end] - self._totals[start]

    def _compaction_failed(self, seq: int, event: e.CompactionFailed) -> Told:
        payload = {"error": event.message, "error_class": event.error_class, "step": self.step}
        yield "compaction_failed", {**payload, "error_code": event.code}, "worker"

    def _tool_call_intended(self, seq: int, event: e.ToolCallIntended) -> Told:
        self._keep(event.call, key=event.key)
        yield from self._asked_for(
            event.call,
            side_effect=event.effect != "read",
            idempotency_key=event.key,
            effect=event.effect,
            verdict="allow",
            rule=event.rule,
            **given({}, policy=event.policy or None),
        )

    def _approval_requested(self, seq: int, event: e.ApprovalRequested) -> Told:
        self._keep(event.call, key=event.key)
        payload = {
            **self._about(event.call),
            "effect": event.effect,
            "arguments": event.arguments,
            "digest": event.digest,
            "rule": event.rule,
            "reason": event.reason,
            "policy": event.policy,
            "needed": event.needed,
            "roles": event.roles,
            "expires_at": timestamp(event.expires_at),
        }
        if event.escalate_at is not None:
            payload["escalate_at"] = timestamp(event.escalate_at)
            payload["escalate_to"] = event.escalate_to
        yield "approval_requested", payload, "system"

    def _approval_given(self, seq: int, event: e.ApprovalGiven) -> Told:
        more = given({"digest": event.digest, "by": event.by}, role=event.role or None)
        yield "approval_given", {**self._about(event.call), **more}, "user"

    def _approval_reassigned(self, seq: int, event: e.ApprovalReassigned) -> Told:
        more = {"roles": event.roles, "by": event.by, "reason": event.reason}
        source: Source = "system" if event.by.startswith("rule:") else "user"
        yield "approval_reassigned", {**self._about(event.call), **more}, source

    def _arguments_edited(self, seq: int, event: e.ArgumentsEdited) -> Told:
        self._keep(event.call, arguments=event.arguments)
        more = {"arguments": event.arguments, "digest": event.digest, "by": event.by}
        yield "arguments_edited", {**self._about(event.call), **more}, "user"

    def _tool_call_resolved(self, seq: int, event: e.ToolCallResolved) -> Told:
        more = given({"happened": event.happened, "by": event.by}, content=event.content)
        yield "tool_call_resolved", {**self._about(event.call), **more}, source_of(event.by)

    def _child_launched(self, seq: int, event: e.ChildLaunched) -> Told:
        self.children.append(event.child)
        self._keep(event.call, key=event.child)
        yield from self._asked_for(
            event.call,
            side_effect=True,
            idempotency_key=event.child,
            verdict="allow",
            rule=event.rule,
            **given({}, policy=event.policy or None),
        )
        payload = {
            **self._about(event.call),
            "child_agent_name": event.agent_name,
            "child_run_id": event.child,
            "depth": event.parent.depth,
        }
        yield "subagent_launched", given(payload, context=event.context), "system"

    def _child_restarted(self, seq: int, event: e.ChildRestarted) -> Told:
        self.children.append(event.child)
        more = {"child_run_id": event.child, "reason": event.reason}
        yield "subagent_restarted", {**self._about(event.call), **more}, "system"

    def _letters_delivered(self, seq: int, event: e.LettersDelivered) -> Told:
        yield from ()

    def _tool_call_denied(self, seq: int, event: e.ToolCallDenied) -> Told:
        if event.call not in self._asked:
            self._asked[event.call] = AskedCall(event.call, event.name, {}, event.step)
        spec = self._definition()
        denied = {
            "requesting_agent_id": self.agent_id,
            "requesting_agent_name": spec.name if spec is not None else "",
            "mode": "allowlist",
            "tool_name": event.name,
            "reason": event.rule,
            "step": event.step,
            "call": event.call,
            **given({}, by=event.by or None, policy=event.policy or None),
        }
        yield from self._asked_for(
            event.call, side_effect=False, idempotency_key=None, verdict="deny", rule=event.rule
        )
        yield "tool_call_denied", denied, "system"
        data = {"tool_name": event.name}
        yield from self._result(event, is_error=True, kind="tool_denied", data=data)

    def _tool_call_begun(self, seq: int, event: e.ToolCallBegun) -> Told:
        more = {"attempt": event.attempt, "worker": event.worker}
        yield "tool_call_begun", {**self._about(event.call), **more}, "worker"

    def _tool_call_succeeded(self, seq: int, event: e.ToolCallSucceeded) -> Told:
        if event.by == "memory":
            about, key = self._about(event.call), self._call(event.call).key
            told = {**about, "idempotency_key": key, "resolution": "reused_worker_result"}
            yield "tool_duplicate", told, "worker"
        yield from self._result(event, is_error=False)

    def _tool_call_failed(self, seq: int, event: e.ToolCallFailed) -> Told:
        kind = event.kind if event.kind != "result" else None
        yield from self._result(event, is_error=True, kind=kind)

    def _tool_call_lost(self, seq: int, event: e.ToolCallLost) -> Told:
        more = {"attempt": event.attempt, "reason": event.reason}
        yield "tool_call_lost", {**self._about(event.call), **more}, "system"

    def _tool_call_unknown(self, seq: int, event: e.ToolCallUnknown) -> Told:
        more = {"attempt": event.attempt, "reason": event.reason}
        yield "tool_call_unknown", {**self._about(event.call), **more}, "system"

    def _tool_call_reopened(self, seq: int, event: e.ToolCallReopened) -> Told:
        payload = {**self._about(event.call), "by": event.by}
        yield "tool_call_reopened", payload, source_of(event.by)

    def _decision_requested(self, seq: int, event: e.DecisionRequested) -> Told:
        payload = {**self._about(event.call), "question": event.question}
        yield "decision_requested", payload, "system"

    def _people_reminded(self, seq: int, event: e.PeopleReminded) -> Told:
        yield "people_reminded", {**self._about(event.call), "count": event.count}, "system"

    def _tool_call_cancelled(self, seq: int, event: e.ToolCallCancelled) -> Told:
        self.questions.pop(event.call, None)
        yield from self._result(event, is_error=True, kind="cancelled")

    def _timer_started(self, seq: int, event: e.TimerStarted) -> Told:
        yield from self._asked_for(event.call, side_effect=False, idempotency_key=None)
        payload = {
            "tool_call_id": self._call(event.call).id,
            "seconds": -((event.at - event.due_at) // 1000),
            "reason": event.reason,
            "step": event.step,
            "due_at": timestamp(event.due_at),
            "call": event.call,
        }
        yield "waiting_for_timer", payload, "system"

    def _timer_fired(self, seq: int, event: e.TimerFired) -> Told:
        yield from self._result(event, is_error=False, kind="timer_completed")

    def _question_asked(self, seq: int, event: e.QuestionAsked) -> Told:
        self._keep(event.call, asked_at=event.at)
        self.questions[event.call] = self._call(event.call)
        yield from self._asked_for(event.call, side_effect=False, idempotency_key=None)
        payload = {
            "tool_call_id": self._call(event.call).id,
            "question": event.question,
            "step": event.step,
            "call": event.call,
        }
        yield "waiting_for_user", payload, "system"

    def _question_answered(self, seq: int, event: e.QuestionAnswered) -> Told:
        self.questions.pop(event.call, None)
        yield from self._result(event, is_error=False)

    def _run_completed(self, seq: int, event: e.RunCompleted) -> Told:
        position, content = self._reply
        self.output = self._said if position != event.answer or is_blank(content) else content
        self._close(event)
        yield "run_completed", {"output": self.output}, "system"

    def _run_failed(self, seq: int, event: e.RunFailed) -> Told:
        self._close(event)
        self.failure = failure(event.message, event.error_class, event.code)
        yield "run_failed", self.failure, "system"

    def _run_cancelled(self, seq: int, event: e.RunCancelled | e.RunWithdrawn) -> Told:
        self._close(event)
        self.failure = failure(event.reason, "policy", "cancelled", given({}, by=event.by))
        yield "run_failed", self.failure, "user" if event.by else "system"

    def _close(self, event: e.Event) -> None:
        self.ended_at = event.at
        self.questions.clear()

    def _keep(self, call: str, **known: Any) -> None:
        self._asked[call] = self._call(call)._replace(**known)

    def _asked_for(self, call: str, **more: Any) -> Told:
        asked = self._call(call)
        payload = {"tool_call_id": asked.id, "name": asked.name, "arguments": asked.arguments}
        yield "tool_call", {**payload, "step": asked.step, "call": call, **more}, "system"

    def _result(
        self, event: Any, *, is_error: bool, kind: str | None = None, data: Any = None
    ) -> Told:
        by = getattr(event, "by", None) or "worker"
        if by.startswith("child:"):
            data = {"run_id": by[6:], "status": "failed" if is_error else "completed"}
            kind = kind or "subagent_completed"
        payload = {
            **self._about(event.call),
            "content": event.content,
            "is_error": is_error,
            "idempotency_key": self._call(event.call).key,
        }
        if isinstance(event, e.QuestionAnswered):
            by = f"person:{event.by or 'somebody'}"
        more = given({}, kind=kind, data=data, by=by if by != "worker" else None)
        source = source_of(by) if isinstance(event, _BROUGHT) else "system"
        yield "tool_result", {**payload, **more}, source


def failure(
    message: str, error_class: str, code: str, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return how a run's failure is told, in its event and in its object."""
    return {
        "error": message,
        "error_class": error_class,
        "error_code": code,
        "retry_decision": "terminal",
        "details": dict(details or {}),
    }


def definition_of(event: e.Event) -> str | None:
    """Return the digest of the definition that this event names; load it before it is fed."""
    if isinstance(event, e.RunStarted | e.ModelCallIntended | e.CompactionIntended):
        return event.agent
    return None


_BROUGHT = (e.ToolCallSucceeded, e.ToolCallFailed, e.QuestionAnswered)


class Row(NamedTuple):
    """What a type of fact becomes: the function that tells it, and the types of event it tells."""

    tell: Any
    becomes: tuple[str, ...]


_RESULT = ("tool_result",)

BECOMES: Mapping[type[e.Event], Row] = {
    e.MessageReceived: Row(Timeline._message_received, ("message_received",)),
    e.SessionForked: Row(Timeline._session_forked, ()),
    e.HistoryInherited: Row(Timeline._history_inherited, ()),
    e.RunStarted: Row(Timeline._run_started, ("run_started",)),
    e.RunWithdrawn: Row(Timeline._run_withdrawn, ("run_failed",)),
    e.ModelCallIntended: Row(Timeline._model_call_intended, ("llm_request",)),
    e.ModelReplied: Row(Timeline._model_replied, ("llm_response",)),
    e.ModelCallFailed: Row(Timeline._model_call_failed, ()),
    e.RetryScheduled: Row(Timeline._retry_scheduled, ("retry",)),
    e.RetryFellDue: Row(Timeline._retry_fell_due, ("retry_fell_due",)),
    e.CompactionIntended: Row(Timeline._compaction_intended, ("compaction_intended",)),
    e.ContextCompacted: Row(Timeline._context_compacted, ("context_compacted",)),
    e.CompactionFailed: Row(Timeline._compaction_failed, ("compaction_failed",)),
    e.ToolCallIntended: Row(Timeline._tool_call_intended, ("tool_call",)),
    e.ToolCallDenied: Row(
        Timeline._tool_call_denied, ("tool_call", "tool_call_denied", "tool_result")
    ),
    e.ApprovalRequested: Row(Timeline._approval_requested, ("approval_requested",)),
    e.ApprovalGiven: Row(Timeline._approval_given, ("approval_given",)),
    e.ApprovalReassigned: Row(Timeline._approval_reassigned, ("approval_reassigned",)),
    e.ArgumentsEdited: Row(Timeline._arguments_edited, ("arguments_edited",)),
    e.ToolCallResolved: Row(Timeline._tool_call_resolved, ("tool_call_resolved",)),
    e.ChildLaunched: Row(Timeline._child_launched, ("tool_call", "subagent_launched")),
    e.ChildRestarted: Row(Timeline._child_restarted, ("subagent_restarted",)),
    e.LettersDelivered: Row(Timeline._letters_delivered, ()),
    e.ToolCallBegun: Row(Timeline._tool_call_begun, ("tool_call_begun",)),
    e.ToolCallSucceeded: Row(Timeline._tool_call_succeeded, ("tool_duplicate", *_RESULT)),
    e.ToolCallFailed: Row(Timeline._tool_call_failed, _RESULT),
    e.ToolCallLost: Row(Timeline._tool_call_lost, ("tool_call_lost",)),
    e.ToolCallUnknown: Row(Timeline._tool_call_unknown, ("tool_call_unknown",)),
    e.ToolCallReopened: Row(Timeline._tool_call_reopened, ("tool_call_reopened",)),
    **{kind: Row(*row) for kind, row in budgets.ROWS.items()},
    e.DecisionRequested: Row(Timeline._decision_requested, ("decision_requested",)),
    e.PeopleReminded: Row(Timeline._people_reminded, ("people_reminded",)),
    e.ToolCallCancelled: Row(Timeline._tool_call_cancelled, _RESULT),
    e.TimerStarted: Row(Timeline._timer_started, ("tool_call", "waiting_for_timer")),
    e.TimerFired: Row(Timeline._timer_fired, _RESULT),
    e.QuestionAsked: Row(Timeline._question_asked, ("tool_call", "waiting_for_user")),
    e.QuestionAnswered: Row(Timeline._question_answered, _RESULT),
    e.RunCompleted: Row(Timeline._run_completed, ("run_completed",)),
    e.RunFailed: Row(Timeline._run_failed, ("run_failed",)),
    e.RunCancelled: Row(Timeline._run_cancelled, ("run_failed",)),
}
"""Every type of our events, and what it becomes; a run's first message becomes its input."""
