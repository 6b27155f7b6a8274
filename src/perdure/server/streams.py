"""A run's events as they come, as server-sent events.

Each event's id is its sequence in the run, so that a client that was cut off goes on after the last
one it saw, by `Last-Event-ID`, without a gap or a repeat. Text that a model is writing comes as
events of the type `text`, without an id: it may never become durable, and is not told twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from perdure.api.decoding import decode_id
from perdure.api.errors import INVALID, Rejected
from perdure.api.operations import EVENT_STREAM
from perdure.core.runs import RunRow
from perdure.server.desk import Desk, Request

KEEP_ALIVE_SECONDS = 15
TEXT_PIECES_MAX = 10_000
"""Pieces of text that wait for a slow reader. The reply has it all, so what is more is left out."""

_encode = msgspec.json.Encoder().encode


async def stream_events(desk: Desk, request: Request, http: HttpRequest) -> Response:
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


async def _frames(desk: Desk, row: RunRow, after: int) -> AsyncIterator[bytes]:
    came = asyncio.Event()
    pieces: list[str] = []

    def tell(run: str | None, piece: str) -> None:
        if run == row.id and len(pieces) < TEXT_PIECES_MAX:
            pieces.append(piece)
        came.set()

    leave = desk.runs.follow(row.session, tell)
    telling = await desk.told(row)
    news = telling.events
    try:
        while True:
            for event in news:
                if event.sequence > after:
                    yield b"id: %d\nevent: %s\ndata: %s\n\n" % (
                        event.sequence,
                        event.event_type.encode(),
                        _encode(event),
                    )
            if telling.over or (await desk.runs.row(row.id)).status == "merged":
                return
            if pieces:
                yield b"event: text\ndata: %s\n\n" % _encode({"text": "".join(pieces)})
                pieces.clear()
            try:
                await asyncio.wait_for(came.wait(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield b": alive\n\n"
            came.clear()
            news = await telling.more()
    finally:
        leave()
