"""What a node writes to the sessions of a shard: one batch after the other.

Whatever waits when a batch has been folded goes into the next one: no timer, so that an idle shard
writes at once, and a busy one writes hundreds of steps with one message. A node's batches have a
subject of their own, and each is guarded by the number of the one before: so it may be sent again
without being stored twice. Whether a change holds is known when its batch is folded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from perdure.adapters.nats.log import ON_SUBJECT, Log, Outcome, as_header
from perdure.adapters.stores.nats.messages import (
    CHANGES_MAX,
    Change,
    Changes,
    encode_change,
    pack,
)
from perdure.core.errors import Unavailable

CHANGES_BYTES_MAX = 40 * 1024
BODIES_BYTES_MAX = 512 * 1024

Told = Callable[[bool | Unavailable], None]
"""Called with whether a change holds, or with why that is not known."""


class _Item(NamedTuple):
    """A change that waits, or is on its way; `said` is how its message says it."""

    place: str
    change: Change
    said: bytes
    body: bytes
    told: Told


class Batches:
    """The batches of a node in one shard."""

    def __init__(self, log: Log, subject: str) -> None:
        self.subject = subject
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Item] = deque()
        self._sent: list[_Item] = []
        self._busy = False
        self._last = 0
        self._held: list[bool] = []
        self._header = ""

    def add(self, place: str, change: Change, body: bytes, told: Told) -> None:
        """Put a change into the next batch."""
        said = encode_change(place, change)
        self._waiting.append(_Item(place, change, said, body, told))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._send)

    def changes(self, header: str) -> Changes | None:
        """Return what the last batch changes, if that is its header: it need not be decoded."""
        if header != self._header:
            return None
        return tuple((item.place, item.change) for item in self._sent)

    def folded(self, seq: int, held: list[bool]) -> None:
        """Note which changes of the last batch hold."""
        self._last, self._held = seq, held

    def _send(self) -> None:
        sent, changes_bytes, bodies_bytes = self._sent, 0, 0
        while self._waiting and len(sent) < CHANGES_MAX:
            changes_bytes += len(self._waiting[0].said)
            bodies_bytes += len(self._waiting[0].body)
            if sent and (changes_bytes > CHANGES_BYTES_MAX or bodies_bytes > BODIES_BYTES_MAX):
                break
            sent.append(self._waiting.popleft())
        self._write()

    def _write(self) -> None:
        header, packed = pack(
            [item.said for item in self._sent], [item.body for item in self._sent]
        )
        self._header = as_header(header)
        self._log.add(self.subject, header, packed, ON_SUBJECT, self._last, self._told)

    def _told(self, outcome: Outcome) -> None:
        if isinstance(outcome, int):
            self._log.when(outcome, lambda: self._finish(outcome))
        elif isinstance(outcome, Unavailable):
            self._tell([outcome] * len(self._sent))
        else:
            # A batch of which it was told that nobody knew had been stored: this one was not.
            self._write()

    def _finish(self, seq: int) -> None:
        if self._last == seq:
            self._tell(self._held)
        else:
            why = f"{self._log.stream} has {seq}, but did not show it in time"
            self._tell([Unavailable(why)] * len(self._sent))

    def _tell(self, outcomes: Sequence[bool | Unavailable]) -> None:
        sent, self._sent, self._header = self._sent, [], ""
        for item, outcome in zip(sent, outcomes, strict=True):
            item.told(outcome)
        if self._waiting:
            self._loop.call_soon(self._send)
        else:
            self._busy = False
