"""Messages as what changed since last time, where the peer keeps them (feature `message_cache`).

Both sides keep the messages last sent for each run of a connection, the last 256 runs; the run
whose messages changed longest ago is forgotten first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from perdure.core.messages import Message
from perdure.wire.tasks import MessagesDelta, Number

RUNS_MAX = 256
_DROPS_TRIED_MAX = 8

Messages = tuple[Message, ...]


class MessageCache:
    """The messages last sent, or last received, for each run of one connection."""

    def __init__(self) -> None:
        self._runs: dict[Number, Messages] = {}

    def delta(self, run: Number, messages: Messages) -> MessagesDelta | None:
        """Return how `messages` differ from those kept; None if they are better sent whole."""
        base = self._runs.get(run)
        if base is None:
            return None
        for drop in _possible_drops(base, messages):
            kept = len(base) - drop
            if kept <= len(messages) and base[drop:] == messages[:kept]:
                return MessagesDelta(base_count=len(base), drop=drop, append=messages[kept:])
        return None

    def applied(self, run: Number, delta: MessagesDelta) -> Messages | None:
        """Return the messages that a delta means, and keep them; None if its base is not here."""
        base = self._runs.get(run)
        if base is None or len(base) != delta.base_count:
            return None
        messages = (*base[max(0, delta.drop) :], *delta.append)
        self.keep(run, messages)
        return messages

    def keep(self, run: Number, messages: Messages) -> None:
        """Keep the messages of a run."""
        self._runs.pop(run, None)
        self._runs[run] = messages
        if len(self._runs) > RUNS_MAX:
            del self._runs[next(iter(self._runs))]

    def forget(self, run: Number) -> None:
        """Drop the messages of a run."""
        self._runs.pop(run, None)


def _possible_drops(base: Messages, messages: Messages) -> Iterator[int]:
    """Yield how many messages may have gone from the front: none, most likely."""
    if messages:
        found = (drop for drop, message in enumerate(base) if message == messages[0])
        yield from islice(found, _DROPS_TRIED_MAX)
