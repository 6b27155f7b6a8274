"""What was said in a session: its messages as clients of Norns know them, each with its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from perdure.core import events as e
from perdure.core import ids
from perdure.core.commands import SendMessage
from perdure.core.history import with_distinct_ids
from perdure.core.messages import INHERITED_CONTEXT, Message, ToolMessage, UserMessage
from perdure.core.state import size_of

BYTES_PER_TOKEN = 4


class Outline(NamedTuple):
    """What an object of a session tells of what was said, without the messages."""

    first_message: Any = None
    summary: Any = None
    message_count: int = 0
    token_estimate: int = 0


class _Said(NamedTuple):
    """A message, or the place of one that has not come yet (None)."""

    run: str
    message: dict[str, Any] | None


def message_object(message: Message) -> dict[str, Any]:
    """Return a message as clients of Norns know it."""
    if isinstance(message, UserMessage):
        kind = {"kind": message.kind} if message.kind is not None else {}
        return {"role": "user", "content": message.content, **kind}
    if isinstance(message, ToolMessage):
        call = {"tool_call_id": message.tool_call_id, "name": message.name}
        wrong = {"is_error": True} if message.is_error else {}
        return {"role": "tool", **call, "content": message.content, **wrong}
    calls = [
        {"id": one.id, "name": one.name, "arguments": one.arguments} for one in message.tool_calls
    ]
    asked = {"tool_calls": calls} if calls else {}
    return {"role": "assistant", "content": message.content, **asked}


def input_of(command: SendMessage) -> Any:
    """Return a message's content; of a fork without one, that of the last one it inherits."""
    if command.fork_of is None or command.content is not None:
        return command.content
    heads = [group[0] for group in command.inherited]
    return next((one.content for one in heads[::-1] if isinstance(one, UserMessage)), None)


def context_object(command: SendMessage) -> dict[str, Any] | None:
    """Return the context that a message brings, as clients gave it; None if it brings none."""
    if command.fork_of is not None or not command.inherited:
        return None
    context: dict[str, Any] = {}
    for group in command.inherited:
        add_context(context, group[0])
    return context


def add_context(context: dict[str, Any], message: Message) -> None:
    """Add a message of a context to what clients gave."""
    if isinstance(message, UserMessage) and message.kind == INHERITED_CONTEXT:
        context["data"] = message.content
    else:
        context.setdefault("messages", []).append(message_object(message))


class Transcript:
    """The messages of a session, kept up event by event from the start of its log.

    It holds everything that was said, also what a summary stands for by now. These may be read:
    `first_message` (a content, or None), `summary`, `message_count`, and `token_estimate`, a
    quarter of the bytes of all contents.
    """

    def __init__(self) -> None:
        self.first_message: Any = None
        self.summary: Any = None
        self.message_count = 0
        self._bytes = 0
        self._run = ""
        self._said: list[_Said] = []
        self._slots: dict[str, tuple[int, str, str]] = {}

    @property
    def token_estimate(self) -> int:
        """About how many tokens the contents are."""
        return self._bytes // BYTES_PER_TOKEN

    def feed(self, seq: int, event: e.Event) -> None:
        """Take in the event at position `seq`."""
        if isinstance(event, e.MessageReceived):
            if not self.message_count:
                self.first_message = event.content
            run = self._run if event.mode == "steer" and self._run else event.message
            self._say(run, {"role": "user", "content": event.content})
        elif isinstance(event, e.HistoryInherited):
            self._inherit(event)
        elif isinstance(event, e.RunStarted):
            self._run = event.run
        elif isinstance(event, e.RunCompleted | e.RunFailed | e.RunCancelled):
            self._run = ""
        elif isinstance(event, e.ModelReplied):
            self._reply(event)
        elif isinstance(event, e.ContextCompacted):
            self.summary = event.content
        elif isinstance(event, _ANSWERS):
            self._answer(event)

    def messages(self, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return the messages, each with its run's number; an open call has no answer."""
        return [
            {**one.message, "run_id": numbers.get(one.run)}
            for one in self._said
            if one.message is not None
        ]

    def _say(self, run: str, message: dict[str, Any]) -> None:
        self._said.append(_Said(run, message))
        self._counted(message)

    def _counted(self, message: dict[str, Any]) -> None:
        self.message_count += 1
        self._bytes += size_of(message["content"])

    def _inherit(self, event: e.HistoryInherited) -> None:
        """Take in what was said elsewhere: it is of the run that brought it."""
        for one in event.messages:
            if not self.message_count:
                self.first_message = one.content
            self._say(event.message, message_object(one))

    def _reply(self, event: e.ModelReplied) -> None:
        requests = with_distinct_ids(event.tool_calls)
        calls = [{"id": one.id, "name": one.name, "arguments": one.arguments} for one in requests]
        asked = {"tool_calls": calls} if calls else {}
        self._say(self._run, {"role": "assistant", "content": event.content, **asked})
        for ordinal, one in enumerate(requests):
            slot = (len(self._said), one.id, one.name)
            self._slots[ids.tool_call(event.call, ordinal)] = slot
            self._said.append(_Said(self._run, None))

    def _answer(self, event: Any) -> None:
        slot = self._slots.pop(event.call, None)
        if slot is None:
            return
        place, call, name = slot
        message = {"role": "tool", "tool_call_id": call, "name": name, "content": event.content}
        if isinstance(event, _ERRORS):
            message["is_error"] = True
        self._said[place] = self._said[place]._replace(message=message)
        self._counted(message)


_ERRORS = (e.ToolCallFailed, e.ToolCallDenied, e.ToolCallCancelled)
_ANSWERS = (*_ERRORS, e.ToolCallSucceeded, e.TimerFired, e.QuestionAnswered)
