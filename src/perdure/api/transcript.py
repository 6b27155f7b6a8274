"""What was said in a session: its messages as clients of Norns know them, each with its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from perdure.core import events as e
from perdure.core import ids
from perdure.core.history import with_distinct_ids

BYTES_PER_TOKEN = 4


class _Said(NamedTuple):
    """A message, or the place of one that has not come yet (None)."""

    run: str
    message: dict[str, Any] | None


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
        self._bytes += len(msgspec.json.encode(message["content"]))

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
