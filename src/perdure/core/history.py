"""The history a model is shown, projected from the log.

It is well formed by construction: a message or a reply opens a group, the answers to a reply's
tool calls fill the slots of its group in call order, whenever they arrive, and a history is only
ever cut between groups. Messages enter the log at the point where the model sees them, so the order
of the log is the order of the history. The same events always give the same messages: what a model
was shown can be rebuilt from its `model_call_intended` event.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any, cast

from msgspec.structs import replace

from perdure.core import events as e
from perdure.core import ids
from perdure.core.errors import IllegalTransition
from perdure.core.messages import AssistantMessage, Message, ToolMessage, ToolRequest, UserMessage
from perdure.core.state import Mark

SUMMARY_INTRODUCTION = "Summary of the earlier conversation:"
OMISSION = "(Earlier messages are left out.)"


def cut(marks: tuple[Mark, ...], messages: int, base: int) -> int:
    """Return the first position of a tail of at most `messages` messages, never splitting a group.

    At least the last group is kept, and nothing before `base`.
    """
    first, total = base, 0
    for mark in reversed(marks):
        total += mark.size
        if mark.seq < base:
            break
        if total > messages and first != base:
            break
        first = mark.seq
    return first


class History:
    """The projection, kept up event by event, of the log from position `first` on.

    All messages stand in one list; the slot of an answer that has not come yet holds None. Indexes
    count from the first message there ever was, also after `forget`.
    """

    __slots__ = ("_forgotten", "_messages", "_seqs", "_slots", "_starts", "_summaries", "first")

    def __init__(self, first: int = 1) -> None:
        self.first = first
        self._messages: list[Message | None] = []
        self._forgotten = 0
        self._seqs: list[int] = []
        self._starts: list[int] = []
        self._slots: dict[str, tuple[int, ToolRequest]] = {}
        self._summaries: dict[int, Any] = {}

    def fold(self, seq: int, event: e.Event) -> None:
        """Take in the event at position `seq`."""
        handler = _FOLDS.get(type(event))
        if handler is not None:
            handler(self, seq, event)

    def request(self, reply: int, ordinal: int) -> ToolRequest:
        """Return the tool call at place `ordinal` of the reply at position `reply`."""
        start = self._starts[bisect_left(self._seqs, reply)]
        head = self._messages[start - self._forgotten]
        assert isinstance(head, AssistantMessage)
        return head.tool_calls[ordinal]

    def summarised(self, summary: int | None) -> bool:
        """Say whether the summary at this position (or none) is at hand."""
        return summary is None or summary in self._summaries

    def messages(self, first: int, upto: int, summary: int | None = None) -> tuple[Message, ...]:
        """Return the messages of the log from `first` to `upto`, after the summary at `summary`.

        Raises `IllegalTransition` if a call in the range has no answer.
        """
        start, end = self._index(bisect_left(self._seqs, first)), None
        if self._seqs and upto < self._seqs[-1]:
            end = self._index(bisect_right(self._seqs, upto))
        found = self._messages[start:end]
        if self._slots and None in found:
            self._refuse(start, start + len(found))
        if summary is not None:
            found.insert(0, UserMessage(_summary_text(self._summaries[summary])))
        elif found and not isinstance(found[0], UserMessage):
            found.insert(0, UserMessage(OMISSION))
        return cast("tuple[Message, ...]", tuple(found))

    def forget(self, before: int) -> None:
        """Drop the groups before position `before`."""
        keep = bisect_left(self._seqs, before)
        messages = self._index(keep)
        del self._messages[:messages], self._seqs[:keep], self._starts[:keep]
        self._forgotten += messages
        self.first = max(self.first, before)

    def _index(self, group: int) -> int:
        """Return where the messages of a group begin."""
        if group == len(self._starts):
            return len(self._messages)
        return self._starts[group] - self._forgotten

    def _refuse(self, start: int, end: int) -> None:
        for slot, request in self._slots.values():
            if start <= slot - self._forgotten < end:
                seq = self._seqs[bisect_right(self._starts, slot) - 1]
                raise IllegalTransition(
                    f"the tool call {request.id!r} of event {seq} has no answer yet; "
                    "a history is shown to a model only between steps"
                )

    def _add(self, seq: int, head: Message) -> None:
        self._seqs.append(seq)
        self._starts.append(self._forgotten + len(self._messages))
        self._messages.append(head)

    def _message_received(self, seq: int, event: e.MessageReceived) -> None:
        self._add(seq, UserMessage(event.content))

    def _history_inherited(self, seq: int, event: e.HistoryInherited) -> None:
        self._add(seq, event.messages[0])
        self._messages.extend(event.messages[1:])

    def _model_replied(self, seq: int, event: e.ModelReplied) -> None:
        requests = with_distinct_ids(event.tool_calls)
        self._add(seq, AssistantMessage(event.content, requests, event.extra))
        for ordinal, request in enumerate(requests):
            slot = self._forgotten + len(self._messages)
            self._slots[ids.tool_call(event.call, ordinal)] = (slot, request)
            self._messages.append(None)

    def _context_compacted(self, seq: int, event: e.ContextCompacted) -> None:
        self._summaries = {seq: event.content}

    def _answered(self, seq: int, event: Any) -> None:
        found = self._slots.pop(event.call, None)
        if found is not None:
            slot, request = found
            answer = ToolMessage(request.id, request.name, event.content, type(event) in _ERRORS)
            if slot >= self._forgotten:
                self._messages[slot - self._forgotten] = answer


_ERRORS = frozenset({e.ToolCallFailed, e.ToolCallDenied, e.ToolCallCancelled})
_ANSWERS = (
    e.ToolCallSucceeded,
    e.ToolCallFailed,
    e.ToolCallDenied,
    e.ToolCallCancelled,
    e.TimerFired,
    e.QuestionAnswered,
)
_SAYING = frozenset({e.MessageReceived, e.ModelReplied, *_ANSWERS})
_FOLDS: dict[type[e.Event], Any] = {
    e.MessageReceived: History._message_received,
    e.HistoryInherited: History._history_inherited,
    e.ModelReplied: History._model_replied,
    e.ContextCompacted: History._context_compacted,
    **dict.fromkeys(_ANSWERS, History._answered),
}


def project(events: Iterable[tuple[int, e.Event]]) -> History:
    """Return the history of a log or of a part of it."""
    history = History()
    for seq, event in events:
        history.fold(seq, event)
    return history


def said_by(event: Any) -> tuple[Any, ...]:
    """Return the contents of the messages that an event adds to the history, in order."""
    if isinstance(event, e.HistoryInherited):
        return tuple(message.content for message in event.messages)
    return (event.content,) if type(event) in _SAYING else ()


def malformed(messages: Iterable[Message]) -> list[str]:
    """Return what is wrong with the pairing of calls and answers in a history; nothing, if whole.

    Every tool call must be answered exactly once, in call order, before the next message.
    """
    wrong: list[str] = []
    expected: list[str] = []
    for number, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if not expected or expected[0] != message.tool_call_id:
                wrong.append(f"message {number} answers {message.tool_call_id!r} out of place")
            else:
                expected.pop(0)
            continue
        if expected:
            wrong.append(f"message {number} comes before the answers to {expected}")
        expected = []
        if isinstance(message, AssistantMessage):
            expected = [request.id for request in message.tool_calls]
    if expected:
        wrong.append(f"the last message leaves {expected} unanswered")
    return wrong


def with_distinct_ids(requests: tuple[ToolRequest, ...]) -> tuple[ToolRequest, ...]:
    """Rename repeated ids: providers refuse a history in which two calls bear the same one."""
    if len(requests) < 2:
        return requests
    seen: set[str] = set()
    distinct = []
    for ordinal, request in enumerate(requests):
        own = request.id
        while own in seen:
            own = f"{own}-{ordinal}"
        seen.add(own)
        distinct.append(request if own == request.id else replace(request, id=own))
    return tuple(distinct)


def _summary_text(content: Any) -> Any:
    return f"{SUMMARY_INTRODUCTION}\n{content}" if isinstance(content, str) else content
