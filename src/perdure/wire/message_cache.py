"""Messages as what changed since last time, where the peer keeps them (feature `message_cache`).

Both sides keep the messages last sent for each run of a connection, the last 256 runs; the run
whose messages changed longest ago is forgotten first. Two of ours (feature `native`) keep more
runs, as long as all of it together is not too much.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice

import msgspec

from perdure.core.messages import Message
from perdure.wire.tasks import MessagesDelta, Number

RUNS_MAX = 256
NATIVE_RUNS_MAX = 4_096
NATIVE_BYTES_MAX = 64 * 1024 * 1024
"""Both sides count the same messages alike. Who forgets more than the other asks again."""
_DROPS_TRIED_MAX = 8

Messages = tuple[Message, ...]
_encode = msgspec.json.Encoder().encode


class MessageCache:
    """The messages last sent, or last received, for each run of one connection."""

    def __init__(self, runs_max: int = RUNS_MAX, bytes_max: int | None = None) -> None:
        self._runs: dict[Number, Messages] = {}
        self._runs_max = runs_max
        self._bytes_max = bytes_max
        self._sizes: dict[Number, int] = {}
        self._bytes = 0

    @classmethod
    def of(cls, features: Container[str]) -> MessageCache:
        """Return a cache for a connection with these features."""
        return cls(NATIVE_RUNS_MAX, NATIVE_BYTES_MAX) if "native" in features else cls()

    def delta(self, run: Number, messages: Messages) -> MessagesDelta | None:
        """Return how `messages` differ from those kept; None if they are better sent whole."""
        base = self._runs.get(run)
        if base is None:
            return None
        if messages[: len(base)] == base:
            return MessagesDelta(base_count=len(base), drop=0, append=messages[len(base) :])
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
        if self._bytes_max is not None:
            self._count(run, messages)
        self._runs.pop(run, None)
        self._runs[run] = messages
        while len(self._runs) > self._runs_max or self._bytes > (self._bytes_max or 0):
            self.forget(next(iter(self._runs)))

    def forget(self, run: Number) -> None:
        """Drop the messages of a run."""
        self._runs.pop(run, None)
        self._bytes -= self._sizes.pop(run, 0)

    def _count(self, run: Number, messages: Messages) -> None:
        """Count a run's messages; those that were kept before are not looked at again."""
        base = self._runs.get(run, ())
        known = len(base) if messages[: len(base)] == base else 0
        added = sum(len(_encode(message)) for message in messages[known:])
        size = added + (self._sizes.get(run, 0) if known else 0)
        self._bytes += size - self._sizes.get(run, 0)
        self._sizes[run] = size


def _possible_drops(base: Messages, messages: Messages) -> Iterator[int]:
    """Yield how many messages may have gone from the front: none, most likely."""
    if messages:
        found = (drop for drop, message in enumerate(base) if message == messages[0])
        yield from islice(found, _DROPS_TRIED_MAX)
