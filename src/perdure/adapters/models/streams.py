"""A reply that was cut never looks like a whole one: the end of a stream is checked on the wire.

Neither the SDKs nor pydantic-ai insist on the event that ends a stream. When a proxy or a dying
server ends the HTTP body early but in good order, Anthropic's SDK and OpenAI's both take what came
for all there is, and pydantic-ai fills in a `stop`. So the bytes are watched before they see them.

Needs the extra `models`; imported by `connection` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2

from perdure.core.limits import REPLY_BYTES_MAX
from perdure.ports.models import ModelError

LAST_EVENT = {
    "/messages": (b"event", b"message_stop"),
    "/chat/completions": (b"data", b"[DONE]"),
}
"""End of a request's path -> field and value of the event that ends a stream of its answers."""

EVENT_BYTES_MAX = 2 * REPLY_BYTES_MAX
ERROR_BODY_BYTES_MAX = 256 * 1024
DRAIN_SECONDS = 0.2
"""How long the end of the HTTP body is awaited after the last event, to keep the connection."""

_LINE_START = 64


class Scanner:
    """Watches the bytes of an event stream go by, and says whether its last event has been seen."""

    def __init__(self, last: tuple[bytes, bytes]) -> None:
        self.complete = False
        self._last = last
        self._line = b""
        self._pending = False
        self._event_bytes = 0
        self._after_cr = False

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes; raises `ModelError` if one event is larger than any reply."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        for piece in chunk.splitlines(keepends=True):
            self._event_bytes += len(piece)
            if self._event_bytes > EVENT_BYTES_MAX:
                raise too_large()
            if len(self._line) < _LINE_START:
                self._line += piece[:_LINE_START]
            if piece.endswith((b"\n", b"\r")):
                self._end_line()

    def _end_line(self) -> None:
        line, self._line = self._line.rstrip(b"\r\n"), b""
        if not line:
            self.complete = self.complete or self._pending
            self._event_bytes = 0
            return
        field, _, value = line.partition(b":")
        if (field, value.removeprefix(b" ")) == self._last:
            self._pending = True


class WatchedStream(httpx2.AsyncByteStream):
    """The body of a streamed reply; ends with an error unless the last event came."""

    def __init__(self, inner: httpx2.AsyncByteStream, last: tuple[bytes, bytes]) -> None:
        self._inner = inner
        self._scanner = Scanner(last)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes; raises `ModelError` when they end too early or get too many."""
        inner = aiter(self._inner)
        while True:
            complete = self._scanner.complete
            try:
                async with asyncio.timeout(DRAIN_SECONDS if complete else None):
                    chunk = await anext(inner)
            except StopAsyncIteration:
                break
            except (httpx2.TransportError, TimeoutError) as error:
                if complete:
                    return
                if isinstance(error, httpx2.TransportError) and not isinstance(
                    error, httpx2.TimeoutException
                ):
                    raise incomplete("the connection broke in the middle of the reply") from None
                raise
            self._scanner.feed(chunk)
            yield chunk
        if not self._scanner.complete:
            raise incomplete("the stream ended before its last event")

    async def aclose(self) -> None:
        """Close the body."""
        await self._inner.aclose()


class ClippedStream(httpx2.AsyncByteStream):
    """The body of an answer that is no reply; what is too long for an error's text is not read."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes up to the limit."""
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            yield chunk
            if size > ERROR_BODY_BYTES_MAX:
                return

    async def aclose(self) -> None:
        """Close the body."""
        await self._inner.aclose()


async def watch(response: httpx2.Response) -> None:
    """Put a check on the body of a response (an httpx2 hook)."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    if response.status_code != 200:
        response.stream = ClippedStream(response.stream)
        return
    for path, last in LAST_EVENT.items():
        if response.request.url.path.endswith(path):
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.lower() != "identity":
                raise ModelError(
                    f"the provider compressed its reply ({encoding}) though it was asked not to",
                    error_class="validation",
                    code="unexpected_encoding",
                )
            response.stream = WatchedStream(response.stream, last)


def incomplete(why: str) -> ModelError:
    """Return the error for a reply of which a part is missing."""
    return ModelError(
        f"the reply is incomplete: {why}", error_class="transient", code="incomplete_reply"
    )


def too_large() -> ModelError:
    """Return the error for a reply over the limit."""
    return ModelError(
        f"the reply is larger than {REPLY_BYTES_MAX} bytes, so the rest was not read",
        error_class="validation",
        code="reply_too_large",
    )
