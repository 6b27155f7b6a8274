"""Which part of a log is a run's history after one of its steps, for a fork to go on from it.

It begins with what the run's first model call was shown, and ends where the next step begins. A
turn that was left without all of its answers is not part of it: the model asks anew. But a turn of
which something was done, or may have been, stays, and what is missing is answered as given up:
otherwise the fork's model would ask for that again.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from perdure.core import events as e
from perdure.core.decision import cancelled_text
from perdure.core.history import History
from perdure.core.messages import Message, ToolMessage
from perdure.core.state import Call

NOT_ANSWERED = "Not answered: the conversation goes on from here in another session."


class Prefix(msgspec.Struct, frozen=True):
    """The log from `first` to `upto`, after the summary at `summary`, and open calls answered."""

    first: int
    upto: int
    summary: int | None
    answers: tuple[e.ToolCallCancelled, ...] = ()


class Cut:
    """Finds the prefix: `feed` it the log from the run's start until that returns False.

    `last_step` is the last step that the run has begun, as far as it was fed.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.last_step = 0
        self._first: int | None = None
        self._summary: int | None = None
        self._seq = 0
        self._reply = 0
        self._open: dict[str, Call] = {}
        self._given_up = False
        self._acted = False

    def feed(self, seq: int, event: e.Event) -> bool:
        """Take in the event at position `seq`; False if the step was over before it."""
        if isinstance(event, e.RunCompleted | e.RunFailed | e.RunCancelled):
            return False
        if isinstance(event, e.ModelCallIntended | e.CompactionIntended):
            if self._first is None:
                self._first, self._summary = event.first, event.summary
            if event.step > self.step:
                return False
            self.last_step = event.step
        elif isinstance(event, e.ContextCompacted) and self._first is not None:
            self._first, self._summary = max(self._first, event.keep_from), seq
        elif isinstance(event, e.ModelReplied):
            self._reply, self._open = seq, {}
            self._given_up = self._acted = False
        else:
            self._follow(event)
        self._seq = seq
        return True

    def prefix(self) -> Prefix:
        """Return the prefix, once everything was fed."""
        first = self._first if self._first is not None else 1
        if not self._open and not self._given_up:
            return Prefix(first, self._seq, self._summary)
        if not self._acted and not any(map(_may_have_acted, self._open.values())):
            return Prefix(first, self._reply - 1, self._summary)
        answers = (
            e.ToolCallCancelled(at=0, call=call.id, content=cancelled_text(call, NOT_ANSWERED))
            for call in self._open.values()
        )
        return Prefix(first, self._seq, self._summary, tuple(answers))

    def _follow(self, event: e.Event) -> None:
        """Take in what became of a call of the last turn."""
        if isinstance(event, e.ToolCallIntended):
            call = Call(event.call, "tool", "intended", event.step, effect=event.effect)
            self._open[event.call] = call
        elif isinstance(event, e.ApprovalRequested):
            self._open[event.call] = Call(event.call, "tool", "pending", event.step)
        elif isinstance(event, e.BudgetExceeded) and event.ordinal is not None:
            self._open[event.call] = Call(event.call, "tool", "exceeded", event.step)
        elif isinstance(event, e.ToolCallDenied):
            self._open.pop(event.call, None)
        elif isinstance(event, e.TimerStarted):
            self._open[event.call] = Call(event.call, "timer", "timing", event.step)
        elif isinstance(event, e.QuestionAsked):
            self._open[event.call] = Call(event.call, "question", "asking", event.step)
        elif isinstance(event, e.ToolCallBegun):
            self._open[event.call] = replace(self._open[event.call], status="begun")
        elif isinstance(event, e.ToolCallReopened):
            self._open[event.call] = replace(self._open[event.call], status="intended")
        elif isinstance(event, _ANSWERS) and event.call in self._open:
            self._acted |= _may_have_acted(self._open.pop(event.call))
            self._given_up |= isinstance(event, e.ToolCallCancelled)


_ANSWERS = (
    e.ToolCallSucceeded,
    e.ToolCallFailed,
    e.ToolCallCancelled,
    e.TimerFired,
    e.QuestionAnswered,
)


def _may_have_acted(call: Call) -> bool:
    """Say whether something may have been done for a call: a `once` call has to begin first."""
    return call.status == "begun" or (call.kind == "tool" and call.effect == "idempotent")


def inherited(
    prefix: Prefix, events: Iterable[tuple[int, e.Event]]
) -> tuple[tuple[Message, ...], ...]:
    """Return the history of a prefix, group by group: a message, or a reply and its answers.

    `events` are those of the prefix, and that of its summary if it stands before.
    """
    history = History()
    for seq, event in events:
        history.fold(seq, event)
    for answer in prefix.answers:
        history.fold(prefix.upto, answer)
    groups: list[list[Message]] = []
    for message in history.messages(prefix.first, prefix.upto, prefix.summary):
        if isinstance(message, ToolMessage):
            groups[-1].append(message)
        else:
            groups.append([message])
    return tuple(map(tuple, groups))
