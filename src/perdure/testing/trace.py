"""A checker of logs that does not trust `evolve`: it steps a log through the tables on its own.

It reads `core/transitions.py`, and besides that only rules about the shape of a log, one sentence
each in `RULES`. It says at which event a log leaves the model, and by which rule. The simulation
runs it while a log grows; the test suite runs it over every log that a test's nodes write.

    check_log(session, records)      # raises LeftModel, with .seq and .rule
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from perdure.core import events as e
from perdure.core import ids
from perdure.core.codec import Record, decode_event, genesis, verify_chain
from perdure.core.errors import BrokenChain, PerdureError, UnreadableEvent
from perdure.core.family import Parent
from perdure.core.history import malformed
from perdure.core.ids import SessionId
from perdure.core.messages import ToolMessage
from perdure.core.transitions import CALL, SESSION
from perdure.testing.account import Account

RULES: Mapping[str, str] = {
    "chain": "positions have no gap, and every hash follows from the one before",
    "readable": "every event can be read",
    "session table": "the session's status has a row for the event",
    "call table": "the call's status has a row for the event",
    "burnt id": "the id of a call, a message or a run is used once",
    "run": "a run starts with its message, numbers count up, and what ends is what is in progress",
    "fork": "a fork begins a session, and all that is inherited is whole",
    "W1": "a tool call was asked for, by name, at its place in the last complete reply",
    "W2": "a once call begins before it can succeed, and nothing else begins",
    "W4": "what is said of an attempt is said of the present one",
    "W5": "the key of a call follows from session, run, step, place and tool alone",
    "W6": "every tool call of a reply has its one answer before a model is asked, or a run ends",
    "W7": "nothing falls due before its time",
    "approval": "a call that waits is sent as approved, by as many different people as are needed",
    "child": "a launch names its run and lineage, its id follows from the place, and it answers",
    "letters": "what is owed to another session is delivered once, and nothing else is",
    "budget": "what is reserved fits, what is raised is added once, and nothing is spent beside it",
    "ledger": "only a call of unknown outcome is resolved",
    "range": "a model is shown the log up to this event, and the summary that is in force",
    "answer": "a run's answer is its last reply, which asked for no tools",
}


class LeftModel(PerdureError):
    """A log leaves the model at position `seq`, against `rule`."""

    def __init__(self, seq: int, rule: str, message: str) -> None:
        super().__init__(f"event {seq} breaks {rule!r} ({RULES[rule]}): {message}")
        self.seq = seq
        self.rule = rule


class OpenCall:
    """A call that is open, as the log tells it."""

    __slots__ = (
        "approved_by", "attempt", "child", "digest", "due_at", "effect", "event", "kind", "name",
        "needed", "status",
    )  # fmt: skip

    def __init__(self, kind: str, status: str, event: Any) -> None:
        self.kind = kind
        self.status = status
        self.event = event
        self.name: str = getattr(event, "name", "")
        self.effect: str = getattr(event, "effect", "")
        self.due_at: int = getattr(event, "due_at", 0)
        self.attempt = 1
        self.digest: str = getattr(event, "digest", "")
        self.needed: int = getattr(event, "needed", 0)
        self.approved_by: list[str] = []
        self.child: str = getattr(event, "child", "")


class Trace:
    """A log on its way through the tables: `step` takes the next event, or raises `LeftModel`.

    `status`, `calls` (those that are open) and `run` (its id, or None between runs) may be read.
    """

    __slots__ = (
        "account",
        "answers",
        "base",
        "calls",
        "deadline_at",
        "doubts",
        "ended",
        "forked",
        "known",
        "last",
        "message",
        "model_call",
        "number",
        "owed",
        "parent",
        "reply",
        "reply_seq",
        "retrying",
        "run",
        "run_step",
        "seq",
        "session",
        "status",
        "summary",
    )

    def __init__(self, session: SessionId) -> None:
        self.session = session
        self.seq = 0
        self.status = "idle"
        self.calls: dict[str, OpenCall] = {}
        self.run: str | None = None
        self.number = 0
        self.run_step = 0
        self.deadline_at: int | None = None
        self.ended: dict[str, str] = {}
        self.doubts: set[str] = set()
        self.owed: set[str] = set()
        self.parent: Parent | None = None
        self.known: set[str] = set()
        self.message: str | None = None
        self.forked: str | None = None
        self.model_call = ""
        self.reply: e.ModelReplied | None = None
        self.reply_seq = 0
        self.answers: dict[int, bool] = {}
        self.retrying = False
        self.base = 1
        self.summary: int | None = None
        self.last: e.Event | None = None
        self.account: Account | None = None

    def step(self, event: e.Event) -> None:
        """Take the next event. Raises `LeftModel`; the trace is of no use after that."""
        self.seq += 1
        kind = e.TYPE_NAMES[type(event)]
        status = SESSION[self.status].get(kind)
        if status is None:
            self._wrong("session table", f"{kind} while the session is {self.status}")
        call_id = getattr(event, "call", None)
        if call_id is not None:
            self._move(call_id, kind, event)
        rule = _RULES_OF.get(type(event))
        if rule is not None:
            rule(self, event)
        if isinstance(event, e.RunStarted):
            self.account = None if event.budget is None else Account(event.budget)
        elif self.account is not None and (wrong := self.account.take(event)):
            self._wrong("budget", wrong)
        assert status is not None
        self.status = status
        self.last = event

    def _wrong(self, rule: str, message: str) -> None:
        raise LeftModel(self.seq, rule, message)

    def _need(self, rule: str, *conditions: tuple[bool, str]) -> None:
        for met, message in conditions:
            if not met:
                self._wrong(rule, message)

    def _burn(self, name: str) -> None:
        if name in self.known:
            self._wrong("burnt id", f"{name!r} was used before")
        self.known.add(name)

    def _move(self, call_id: str, kind: str, event: Any) -> None:
        """Step one call through its table, and keep it while it is open."""
        call = self.calls.get(call_id)
        before = call.status if call is not None else "absent"
        after = CALL[before].get(kind)
        if after is None:
            self._wrong("call table", f"{kind} for call {call_id!r}, which is {before}")
        if call is None and kind == "tool_call_resolved":
            self._need("ledger", (call_id in self.doubts, f"{call_id!r} is not in doubt"))
            self.doubts.discard(call_id)
            return
        if call is None:
            self._burn(call_id)
            if after != "done":
                self.calls[call_id] = OpenCall(_OPENS[kind], str(after), event)
            return
        attempt = getattr(event, "attempt", call.attempt)
        if attempt != call.attempt:
            self._wrong("W4", f"attempt {attempt} of {call_id!r}, which is at {call.attempt}")
        if kind == "tool_call_begun" and call.effect != "once":
            self._wrong("W2", f"{call_id!r} is {call.effect}: it just runs")
        if kind == "tool_call_succeeded" and call.effect == "once" and before == "intended":
            self._wrong("W2", f"{call_id!r} succeeded and had not begun")
        if kind == "tool_call_unknown" and before == "intended" and call.effect != "idempotent":
            self._wrong("call table", f"{call_id!r} is in doubt and had not begun")
        if kind in ("timer_fired", "retry_fell_due") and event.at < call.due_at:
            self._wrong("W7", f"{call_id!r} is due at {call.due_at}, and it is {event.at}")
        if call.kind == "child" and kind in ("tool_call_succeeded", "tool_call_failed"):
            self._need("child", (event.by == f"child:{call.child}", f"{event.by} answers"))
        if call.kind == "child" and kind == "tool_call_cancelled":
            self.owed.add(f"cancel:{call.child}")
        if kind in ("tool_call_lost", "tool_call_reopened"):
            call.attempt += 1
        if kind in ("tool_call_intended", "child_launched"):
            self._approved(call, event, "child" if kind == "child_launched" else "tool")
        elif kind == "approval_requested":
            self.calls[call_id] = OpenCall("tool", str(after), event)
        if after == "done":
            del self.calls[call_id]
            self._answer(call_id, kind)
            told = kind == "tool_call_cancelled" or getattr(event, "kind", "") == "unknown"
            if told and before in ("begun", "unknown", "undecided"):
                self.doubts.add(call_id)
        else:
            call.status = str(after)

    def _approved(self, call: OpenCall, event: Any, kind: str) -> None:
        """A call that waited is sent as it was approved, and by as many as were needed."""
        if call.status == "pending":
            self._need(
                "approval",
                (
                    len(call.approved_by) >= call.needed,
                    f"{len(call.approved_by)} approved {event.call}",
                ),
                (
                    getattr(event, "digest", "") in ("", call.digest),
                    f"approved were the arguments {call.digest}",
                ),
            )
        status = "launched" if kind == "child" else "intended"
        self.calls[event.call] = OpenCall(kind, status, event)
        self.calls[event.call].needed = 0

    def _approval_given(self, event: e.ApprovalGiven) -> None:
        call = self.calls[event.call]
        self._need(
            "approval",
            (event.digest == call.digest, f"approved {event.digest}, and {call.digest} waits"),
            (event.by not in call.approved_by, f"{event.by} had approved it already"),
        )
        call.approved_by.append(event.by)

    def _arguments_edited(self, event: e.ArgumentsEdited) -> None:
        call = self.calls[event.call]
        digest = ids.arguments_digest(event.arguments)
        self._need("approval", (event.digest == digest, f"the arguments have {digest}"))
        call.digest, call.approved_by = event.digest, []

    def _answer(self, call_id: str, kind: str) -> None:
        if kind.startswith(("tool_call_", "timer_", "question_")) and kind != "tool_call_denied":
            self.answers[int(call_id.rpartition(".t")[2])] = True

    def _nothing_open(self, what: str) -> None:
        """W6: no call is open, and no request of the last reply is without its answer."""
        if self.calls:
            self._wrong("W6", f"{what}, and these calls are open: {', '.join(self.calls)}")
        missing = [ordinal for ordinal, answered in self.answers.items() if not answered]
        if missing:
            self._wrong("W6", f"{what}, and requests {missing} of the last reply have no answer")

    def _message_received(self, event: e.MessageReceived) -> None:
        self._burn(f"message {event.message}")
        self.message = event.message
        self.reply = None
        self._nothing_open("a message enters the history")

    def _session_forked(self, event: e.SessionForked) -> None:
        self._need("fork", (self.seq == 1, "a session is forked as it begins, and this has begun"))
        self.forked = event.message

    def _history_inherited(self, event: e.HistoryInherited) -> None:
        self._nothing_open("a history is inherited")
        wrong = malformed(event.messages)
        alone = sum(not isinstance(one, ToolMessage) for one in event.messages) == 1
        self._need(
            "fork",
            (alone and not wrong, f"it is not one message with its answers: {wrong}"),
            (self.forked in (None, event.message), "it came with another message than the fork"),
        )

    def _run_started(self, event: e.RunStarted) -> None:
        asked = self.last.message if isinstance(self.last, e.MessageReceived) else self.forked
        self.forked = None
        self._need(
            "run",
            (event.number == self.number + 1, f"number {event.number} after {self.number}"),
            (event.retry_of is not None or asked == event.run, "its message is not before it"),
            (
                event.retry_of is None or self.ended.get(event.retry_of) in ("failed", "cancelled"),
                f"it retries {event.retry_of!r}, which neither failed nor was cancelled",
            ),
        )
        self._burn(f"run {event.run}")
        self.run, self.number, self.run_step = event.run, event.number, 0
        self.parent = event.parent
        self.deadline_at, self.reply, self.retrying = event.deadline_at, None, False

    def _run_withdrawn(self, event: e.RunWithdrawn) -> None:
        self._burn(f"run {event.run}")
        self._burn(f"message {event.run}")
        self.ended[event.run] = "cancelled"
        if event.parent is not None:
            self.owed.add(f"end:{event.run}")

    def _child_launched(self, event: e.ChildLaunched) -> None:
        """A child knows the run, and all the sessions that wait for it."""
        self._planned(event)
        above = self.parent.lineage if self.parent else ()
        root = self.parent.root if self.parent else self.run
        lineage = (*above, self.session[1:])
        own = ids.effect_key(self.session, self.run or "", event.step, event.ordinal, event.name)
        self._need(
            "child",
            (event.child == own, f"it is run {event.child!r}, not {own!r}"),
            (event.parent.run == self.run, f"its parent is {event.parent.run!r}"),
            (event.parent.call == event.call, f"it answers {event.parent.call!r}"),
            (event.parent.root == root, f"its root is {event.parent.root!r}"),
            (event.parent.lineage == lineage, f"its lineage is {event.parent.lineage}"),
        )
        self.owed.add(f"start:{event.child}")

    def _child_restarted(self, event: e.ChildRestarted) -> None:
        self.calls[event.call].child = event.child
        self.owed.add(f"start:{event.child}")

    def _letters_delivered(self, event: e.LettersDelivered) -> None:
        unknown = [one for one in event.letters if one not in self.owed]
        self._need("letters", (not unknown, f"{unknown} are not owed"))
        self.owed.difference_update(event.letters)

    def _model_call_intended(self, event: e.ModelCallIntended) -> None:
        del self.calls[event.call]
        self._nothing_open("a model is asked")
        self.calls[event.call] = OpenCall("model", "intended", event)
        step = self.run_step if self.retrying else self.run_step + 1
        self._need("run", (event.step == step, f"step {event.step}, and {step} is next"))
        self._range(event)
        self._need("range", (event.upto == self.seq - 1, f"it is shown {event.upto}"))
        self.run_step, self.model_call, self.reply, self.answers = step, event.call, None, {}

    def _compaction_intended(self, event: e.CompactionIntended) -> None:
        del self.calls[event.call]
        self._nothing_open("the history is folded")
        self.calls[event.call] = OpenCall("compaction", "intended", event)
        self._range(event)
        good = event.first <= event.upto == event.keep_from - 1 < self.seq - 1
        self._need("range", (good, f"{event.first} to {event.upto}, keeping {event.keep_from}"))

    def _range(self, event: e.ModelCallIntended | e.CompactionIntended) -> None:
        self._need(
            "range",
            (event.first >= self.base, f"it begins at {event.first}, before {self.base}"),
            (event.summary == self.summary, f"summary {event.summary}, not {self.summary}"),
        )

    def _context_compacted(self, event: e.ContextCompacted) -> None:
        good = self.base < event.keep_from < self.seq
        self._need("range", (good, f"it keeps what is from {event.keep_from} on"))
        self.base, self.summary = event.keep_from, self.seq

    def _model_replied(self, event: e.ModelReplied) -> None:
        self.retrying = False
        self.reply, self.reply_seq = event, self.seq
        self.answers = dict.fromkeys(range(len(event.tool_calls)), False)

    def _retry_scheduled(self, event: e.RetryScheduled) -> None:
        after = isinstance(self.last, e.ModelCallFailed)
        self._need("run", (after, "no model call failed just before"))
        self.retrying = True

    def _planned(self, event: Any) -> None:
        """W1 and W5: a call of a reply is planned at its place, under its own key."""
        requests = self.reply.tool_calls if self.reply is not None else ()
        place = event.ordinal
        self._need(
            "W1",
            (event.step == self.run_step, f"step {event.step} in step {self.run_step}"),
            (0 <= place < len(requests), f"the last reply has no request {place}"),
            (event.call == ids.tool_call(self.model_call, place), f"it is called {event.call!r}"),
            (not self.answers.get(place, False), f"request {place} has an answer already"),
        )
        name = _BUILTINS.get(type(event)) or event.name
        asked = requests[place]
        self._need("W1", (asked.name == name, f"{name!r} was not asked for: {asked.name!r} was"))
        if isinstance(event, e.ToolCallIntended | e.ApprovalRequested | e.BudgetExceeded):
            readable = asked.undecodable is None
            self._need("W1", (readable, "its arguments cannot be read, and it is to run"))
            key = ids.effect_key(self.session, self.run or "", event.step, place, event.name)
            self._need("W5", (event.key == key, f"key {event.key!r}, not {key!r}"))
        elif isinstance(event, e.ToolCallDenied):
            self.answers[place] = True

    def _budget_exceeded(self, event: e.BudgetExceeded) -> None:
        if event.ordinal is not None:
            self._planned(event)
            return
        del self.calls[event.call]
        self._nothing_open("a model is to be asked")
        self.calls[event.call] = OpenCall("budget", "exceeded", event)

    def _run_completed(self, event: e.RunCompleted) -> None:
        reply = self.reply
        self._need(
            "answer",
            (reply is not None and event.answer == self.reply_seq, f"event {event.answer}"),
            (reply is not None and not reply.tool_calls, "the last reply asked for tools"),
        )
        self._end(event.run, "completed")

    def _run_failed(self, event: e.RunFailed) -> None:
        if event.code == "wall_time_exceeded":
            due = self.deadline_at is not None and event.at >= self.deadline_at
            self._need("W7", (due, f"the deadline is {self.deadline_at}, and it is {event.at}"))
        self._end(event.run, "failed")

    def _run_cancelled(self, event: e.RunCancelled) -> None:
        self._end(event.run, "cancelled")

    def _end(self, run: str, how: str) -> None:
        self._need("run", (run == self.run, f"{run!r} ends, and {self.run!r} is in progress"))
        for call_id, call in tuple(self.calls.items()):
            if call.kind in ("model", "compaction", "backoff", "budget"):
                del self.calls[call_id]
        self._nothing_open("the run ends")
        self.ended[run] = how
        if self.parent is not None:
            self.owed.add(f"end:{run}")
        self.run, self.answers, self.parent = None, {}, None


_OPENS: Mapping[str, str] = {
    "model_call_intended": "model",
    "compaction_intended": "compaction",
    "tool_call_intended": "tool",
    "approval_requested": "tool",
    "budget_exceeded": "tool",
    "timer_started": "timer",
    "retry_scheduled": "backoff",
    "question_asked": "question",
    "child_launched": "child",
}
_BUILTINS: Mapping[type[e.Event], str] = {
    e.TimerStarted: "wait",
    e.QuestionAsked: "ask_human",
    e.ChildLaunched: "launch_agent",
}
_RULES_OF: Mapping[type[e.Event], Callable[[Trace, Any], None]] = {
    e.MessageReceived: Trace._message_received,
    e.SessionForked: Trace._session_forked,
    e.HistoryInherited: Trace._history_inherited,
    e.RunStarted: Trace._run_started,
    e.RunWithdrawn: Trace._run_withdrawn,
    e.ModelCallIntended: Trace._model_call_intended,
    e.CompactionIntended: Trace._compaction_intended,
    e.ContextCompacted: Trace._context_compacted,
    e.ModelReplied: Trace._model_replied,
    e.RetryScheduled: Trace._retry_scheduled,
    e.ToolCallIntended: Trace._planned,
    e.ToolCallDenied: Trace._planned,
    e.ApprovalRequested: Trace._planned,
    e.BudgetExceeded: Trace._budget_exceeded,
    e.ApprovalGiven: Trace._approval_given,
    e.ArgumentsEdited: Trace._arguments_edited,
    e.ChildLaunched: Trace._child_launched,
    e.ChildRestarted: Trace._child_restarted,
    e.LettersDelivered: Trace._letters_delivered,
    e.TimerStarted: Trace._planned,
    e.QuestionAsked: Trace._planned,
    e.RunCompleted: Trace._run_completed,
    e.RunFailed: Trace._run_failed,
    e.RunCancelled: Trace._run_cancelled,
}


def check_log(session: SessionId, records: Iterable[Record]) -> Trace:
    """Step a whole log, its hashes included, and return where it ends. Raises `LeftModel`."""
    trace, head = Trace(session), genesis(session)
    for record in records:
        seq = trace.seq + 1
        try:
            head = verify_chain(head, trace.seq, (record,))
            event = decode_event(record.body)
        except BrokenChain as error:
            raise LeftModel(seq, "chain", str(error)) from None
        except UnreadableEvent as error:
            raise LeftModel(seq, "readable", str(error)) from None
        trace.step(event)
    return trace
