"""Following a run: its events in order, each once, whatever becomes of the connection."""

from __future__ import annotations

import httpx2
import msgspec

from perdure.api.shapes import Event
from perdure.client.errors import Unreachable

ENDINGS = frozenset({"run_completed", "run_failed"})
SILENCE_SECONDS_MAX = 60
"""A server says every 15 seconds that it is there; one that says nothing for longer is gone."""

_events = msgspec.json.Decoder(Event)


class TextDelta(msgspec.Struct, frozen=True):
    """A piece of text that a model is writing. It is not durable and may never become so."""

    text: str


_texts = msgspec.json.Decoder(TextDelta)


class Following:
    """What one follower has seen of a run. `after` is the sequence of the last event."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.over = False
        self.failures = 0
        self.came = False

    def headers(self) -> dict[str, str]:
        """Return what asks a server to go on after what was seen."""
        return {"Accept": "text/event-stream", "Last-Event-ID": str(self.after)}

    def take(self, told: httpx2.ServerSentEvent) -> Event | TextDelta | None:
        """Return what the server told; None if it was seen before, or says nothing to us.

        Raises `Unreachable` where an event is missing: it is to be asked for again.
        """
        try:
            if told.event == "text":
                return _texts.decode(told.data)
            event = _events.decode(told.data)
        except msgspec.MsgspecError:
            return None
        if event.sequence <= self.after:
            return None
        if event.sequence != self.after + 1:
            raise Unreachable(f"event {self.after + 1} is missing before {event.sequence}")
        self.after = event.sequence
        self.failures = 0
        self.came = True
        self.over = event.event_type in ENDINGS
        return event

    def ended(self, run_is_over: bool) -> None:
        """Note that a stream came to its end: of a run that is over, nothing more will come.

        A server that leaves ends its streams as well, and the run may have ended after that: only
        a stream that had nothing to tell of a run that is over is the last one.
        """
        self.over = run_is_over and not self.came
        self.came = False
