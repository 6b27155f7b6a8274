"""A run's events: as they come, as server-sent events; and those so far, as one list.

Each event's id is its sequence in the run, so that a client that was cut off goes on after the last
one it saw, by `Last-Event-ID`, without a gap or a repeat. Text that a model is writing comes as
events of the type `text`, without an id: it may never become durable, and is not told twice.

Both are written as their reader takes them: however long a run and slow its reader, what waits for
him is little.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse

from perdure.api.decoding import decode_id
from perdure.api.errors import INVALID, Rejected
from perdure.api.operations import EVENT_STREAM
from perdure.api.shapes import Event
from perdure.core.runs import RunRow
from perdure.server.desk import Desk, Request
from perdure.server.telling import Telling

KEEP_ALIVE_SECONDS = 15
TEXT_CHARS_MAX = 64 * 1024
"""Text that waits for a slow reader. The reply has it all, so what is more is left out."""

PIECE_BYTES_MIN = 64 * 1024

_encode = msgspec.json.Encoder().encode


async def stream_events(desk: Desk, request: Request, http: HttpRequest) -> StreamingResponse:
    """Return the stream of a run's events after `Last-Event-ID` or `after`, to the run's end."""
    row = await desk.row(decode_id(request.path["id"]))
    after = request.query.after
    last = http.headers.get("last-event-id")
    if last:
        if not (last.isascii() and last.isdigit() and len(last) < 19):
            raise Rejected(422, {"Last-Event-ID": [f"{INVALID}: expected the id of an event"]})
        after = int(last)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_frames(desk, row, after), media_type=EVENT_STREAM, headers=headers)


class _Waiting:
    """What waits to be told to one reader, in order: text, that something was committed, text.

    Text between two commits that nobody has taken yet is left out: its reply is among the events.
    """

    def __init__(self, run: str) -> None:
        self.came = asyncio.Event()
        self.committed = True
        self._run = run
        self._before = ""
        self._pieces: list[str] = []
        self._chars = 0

    def tell(self, run: str | None, piece: str) -> None:
        """Note a piece of text of a run, or that there are new events."""
        if run is None:
            text = self.text()
            if not self.committed:
                self._before += text
            self.committed = True
        elif run == self._run and self._chars + len(piece) <= TEXT_CHARS_MAX:
            self._pieces.append(piece)
            self._chars += len(piece)
        self.came.set()

    def has_news(self) -> bool:
        """Say whether there is something to tell."""
        return self.committed or bool(self._pieces)

    def before(self) -> str:
        """Return the text that came before what was committed."""
        text, self._before = self._before, ""
        return text

    def text(self) -> str:
        """Return the text that came since this was asked last, or something was committed."""
        text = "".join(self._pieces)
        self._pieces, self._chars = [], 0
        return text


async def _frames(desk: Desk, row: RunRow, after: int) -> AsyncIterator[bytes]:
    waiting, telling = _Waiting(row.id), Telling(desk, row)
    leave = desk.runs.follow(row.session, waiting.tell)
    try:
        with desk.leaving.waking(waiting.came):
            while True:
                if text := waiting.before() if waiting.committed else waiting.text():
                    yield b"event: text\ndata: %s\n\n" % _encode({"text": text})
                if waiting.committed:
                    waiting.committed = False
                    async for event in telling.read():
                        if event.sequence > after:
                            yield _frame(event)
                    if telling.over or (await desk.runs.row(row.id)).status == "merged":
                        return
                if desk.leaving.begun:
                    return
                if waiting.has_news():
                    continue
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiting.came.wait(), KEEP_ALIVE_SECONDS)
                waiting.came.clear()
                if not (waiting.has_news() or desk.leaving.begun):
                    yield b": alive\n\n"
    finally:
        leave()


def _frame(event: Event) -> bytes:
    told = (event.sequence, event.event_type.encode(), _encode(event))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % told


async def listed(events: AsyncIterator[Event], after: int) -> AsyncIterator[bytes]:
    """Yield the JSON of a page of the events after a sequence, in pieces."""
    piece, comma = bytearray(b'{"data":['), b""
    async for event in events:
        if event.sequence > after:
            piece += comma + _encode(event)
            comma = b","
        if len(piece) >= PIECE_BYTES_MIN:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece) + b"]}"


async def begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return the pieces of an answer, of which there is a first one: what fails has failed."""
    first = await anext(pieces)

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()
