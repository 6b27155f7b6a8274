"""Run: what a caller holds of a run, and how it follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from perdure.core.codec import decode_event
from perdure.core.errors import NotFound, RunCancelled, RunFailed
from perdure.core.events import Event, ModelReplied, RunStarted, type_of
from perdure.core.ids import SessionId
from perdure.core.runs import TERMINAL, RunRow
from perdure.ports.session_store import Receipt
from perdure.runtime.followers import Ended, Followers


class RunSource(Protocol):
    """What a run's handle asks of the node that gave it."""

    async def row(self, run_id: str) -> RunRow:
        """Return the row of a run. Raises `NotFound`."""
        ...

    async def answer_of(self, row: RunRow) -> Any:
        """Return the content of a completed run's answer; None for another run."""
        ...

    def read(self, session: SessionId, after: int) -> AsyncIterator[RecordedEvent]:
        """Yield the durable events of a session after a position."""
        ...

    def check(self) -> None:
        """Raise what made the node give up, if something did."""
        ...

    async def check_session(self, session: SessionId) -> None:
        """Raise `Quarantined` for a session that is set aside."""
        ...


class RecordedEvent(msgspec.Struct, frozen=True):
    """A durable event at its position in the session's log; `at` in milliseconds since 1970."""

    seq: int
    type: str
    at: int
    event: Event


class TextDelta(msgspec.Struct, frozen=True):
    """A piece of text that a model is writing. It is not durable and may never become so."""

    text: str


class Run:
    """A run, by its id. It can be asked for again in any process: `Runtime.run(id)`."""

    def __init__(
        self,
        node: RunSource,
        followers: Followers,
        session: SessionId,
        run_id: str,
        receipt: Receipt | None = None,
    ) -> None:
        self.id = run_id
        self.session = session
        self.receipt = receipt
        self._node = node
        self._followers = followers
        self._ending = followers.ending(session, run_id)
        self._fresh = receipt is not None and not receipt.duplicate

    def __repr__(self) -> str:
        return f"Run({self.id!r}, session={str(self.session)!r})"

    async def row(self) -> RunRow:
        """Return the run's row as it stands."""
        return await self._node.row(self.id)

    async def ended(self) -> Ended:
        """Wait for the end of the run, however it ends. Raises what made the node give up."""
        self._node.check()
        if not self._fresh and not self._ending.done():
            row = await self.row()
            if row.status in TERMINAL or row.status == "merged":
                content = await self._node.answer_of(row)
                return Ended(row, content)
            await self._node.check_session(self.session)
        ended = await asyncio.shield(self._ending)
        if ended.row.answer is not None and ended.content is None:
            return Ended(ended.row, await self._node.answer_of(ended.row))
        return ended

    async def result(self) -> Any:
        """Wait for the answer.

        Raises `RunFailed` or `RunCancelled` when there is none. A steering message shares the
        answer of the run that it joined.
        """
        ended = await self.ended()
        row = ended.row
        if row.status == "merged" and row.merged_into is not None:
            return await Run(self._node, self._followers, self.session, row.merged_into).result()
        if row.status == "completed":
            return ended.content
        if row.status == "cancelled":
            raise RunCancelled(f"run {row.id} was cancelled: {row.message}")
        raise RunFailed(
            f"run {row.id} failed ({row.error_class}/{row.code}): {row.message}",
            row.error_class or "internal",
            row.code or "",
        )

    async def events(self, after: int = 0) -> AsyncIterator[RecordedEvent]:
        """Yield the run's events after position `after`, in order, to its end; no gap, no repeat.

        Events of the same session that came before the run are left out.
        """
        async for item in self.stream(after, text=False):
            if isinstance(item, RecordedEvent):
                yield item

    async def stream(
        self, after: int = 0, text: bool = True
    ) -> AsyncIterator[RecordedEvent | TextDelta]:
        """Yield events like `events`, and between them the text that models are writing."""
        await self._node.check_session(self.session)
        news = _News(self.id)
        leave = self._followers.follow(self.session, news.tell)
        try:
            row = await self.row()
            cursor = after
            started = row.started_seq if (row.started_seq or after + 1) <= after else None
            over = row.status in TERMINAL or row.status == "merged"
            while True:
                async for item in self._node.read(self.session, cursor):
                    cursor = item.seq
                    if isinstance(item.event, RunStarted) and started is None:
                        started = item.seq if item.event.run == self.id else None
                    if started is None and not self._mine(item.event):
                        continue
                    yield item
                    if item.type in _ENDINGS and getattr(item.event, "run", None) == self.id:
                        return
                if over:
                    return
                if started is None:
                    over = (await self.row()).status in {"merged", "cancelled"}
                    if over:
                        continue
                self._node.check()
                if self._ending.done() and (error := self._ending.exception()):
                    raise error
                for piece in await news.pieces():
                    if text:
                        yield TextDelta(piece)
        finally:
            leave()

    def _mine(self, event: Event) -> bool:
        return getattr(event, "message", None) == self.id or getattr(event, "run", None) == self.id


class _News:
    """What came since it was last asked: pieces of text, and that there are new events."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._pieces: list[str] = []
        self._came = asyncio.Event()

    def tell(self, run: str | None, piece: str) -> None:
        if run is not None:
            if run != self._run:
                return
            self._pieces.append(piece)
        self._came.set()

    async def pieces(self) -> list[str]:
        """Wait for news and return its text, which may be none."""
        await self._came.wait()
        self._came.clear()
        pieces, self._pieces = self._pieces, []
        return pieces


_ENDINGS = frozenset({"run_completed", "run_failed", "run_cancelled", "run_withdrawn"})


def recorded(seq: int, body: bytes) -> RecordedEvent:
    """Return the event in a record's bytes with its position."""
    event = decode_event(body)
    return RecordedEvent(seq, type_of(event), event.at, event)


def answer_in(event: Event, row: RunRow) -> Any:
    """Return the content of the reply that a run's row names as its answer."""
    if not isinstance(event, ModelReplied):
        raise NotFound(f"event {row.answer} of {row.session} is not the answer of run {row.id}")
    return event.content
