"""The history a model is shown, projected from the log.

It is well formed by construction: a message or a reply opens a group, the answers to a reply's
tool calls fill the slots of its group in call order, whenever they arrive, and a history is only
ever cut between groups. Messages enter the log at the point where the model sees them, so the order
of the log is the order of the history. The same events always give the same messages: what a model
was shown can be rebuilt from its `model_call_intended` event.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any

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


class _Group:
    __slots__ = ("answers", "head", "requests", "seq")

    def __init__(self, seq: int, head: Message, requests: tuple[ToolRequest, ...] = ()) -> None:
        self.seq = seq
        self.head = head
        self.requests = requests
        self.answers: list[ToolMessage | None] = [None] * len(requests)


class History:
    """The projection, kept up event by event, of the log from position `first` on."""

    __slots__ = ("_groups", "_seqs", "_slots", "_summaries", "first")

    def __init__(self, first: int = 1) -> None:
        self.first = first
        self._groups: list[_Group] = []
        self._seqs: list[int] = []
        self._slots: dict[str, tuple[_Group, int]] = {}
        self._summaries: dict[int, Any] = {}

    def fold(self, seq: int, event: e.Event) -> None:
        """Take in the event at position `seq`."""
        handler = _FOLDS.get(type(event))
        if handler:
            handler(self, seq, event)

    def request(self, reply: int, ordinal: int) -> ToolRequest:
        """Return the tool call at place `ordinal` of the reply at position `reply`."""
        group = self._groups[bisect.bisect_left(self._seqs, reply)]
        return group.requests[ordinal]

    def summarised(self, summary: int | None) -> bool:
        """Say whether the summary at this position (or none) is at hand."""
        return summary is None or summary in self._summaries

    def messages(self, first: int, upto: int, summary: int | None = None) -> tuple[Message, ...]:
        """Return the messages of the log from `first` to `upto`, after the summary at `summary`.

        Raises `IllegalTransition` if a call in the range has no answer.
        """
        found: list[Message] = []
        if summary is not None:
            found.append(UserMessage(_summary_text(self._summaries[summary])))
        start = bisect.bisect_left(self._seqs, first)
        for group in self._groups[start : bisect.bisect_right(self._seqs, upto)]:
            if not found and not isinstance(group.head, UserMessage):
                found.append(UserMessage(OMISSION))
            found.append(group.head)
            for request, answer in zip(group.requests, group.answers, strict=True):
                if answer is None:
                    raise IllegalTransition(
                        f"the tool call {request.id!r} of event {group.seq} has no answer yet; "
                        "a history is shown to a model only between steps"
                    )
                found.append(answer)
        return tuple(found)

    def forget(self, before: int) -> None:
        """Drop the groups before position `before`."""
        keep = bisect.bisect_left(self._seqs, before)
        del self._groups[:keep], self._seqs[:keep]
        self.first = max(self.first, before)

    def _add(self, group: _Group) -> None:
        self._groups.append(group)
        self._seqs.append(group.seq)

    def _message_received(self, seq: int, event: e.MessageReceived) -> None:
        self._add(_Group(seq, UserMessage(event.content)))

    def _model_replied(self, seq: int, event: e.ModelReplied) -> None:
        requests = _with_distinct_ids(event.tool_calls)
        group = _Group(seq, AssistantMessage(event.content, requests, event.extra), requests)
        self._add(group)
        for ordinal in range(len(event.tool_calls)):
            self._slots[ids.tool_call(event.call, ordinal)] = (group, ordinal)

    def _context_compacted(self, seq: int, event: e.ContextCompacted) -> None:
        self._summaries = {seq: event.content}

    def _answered(self, seq: int, event: Any) -> None:
        slot = self._slots.pop(event.call, None)
        if slot is not None:
            group, ordinal = slot
            request = group.requests[ordinal]
            is_error = isinstance(event, e.ToolCallFailed | e.ToolCallDenied | e.ToolCallCancelled)
            group.answers[ordinal] = ToolMessage(request.id, request.name, event.content, is_error)


_FOLDS: dict[type[e.Event], Any] = {
    e.MessageReceived: History._message_received,
    e.ModelReplied: History._model_replied,
    e.ContextCompacted: History._context_compacted,
    **dict.fromkeys(
        (
            e.ToolCallSucceeded,
            e.ToolCallFailed,
            e.ToolCallDenied,
            e.ToolCallCancelled,
            e.TimerFired,
            e.QuestionAnswered,
        ),
        History._answered,
    ),
}


def project(events: Iterable[tuple[int, e.Event]]) -> History:
    """Return the history of a log or of a part of it."""
    history = History()
    for seq, event in events:
        history.fold(seq, event)
    return history


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


def _with_distinct_ids(requests: tuple[ToolRequest, ...]) -> tuple[ToolRequest, ...]:
    """Rename repeated ids: providers refuse a history in which two calls bear the same one."""
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
