"""A reply that was cut never looks like a whole one: the end of a stream is checked on the wire.

Neither the SDKs nor pydantic-ai insist on the event that ends a stream. When a proxy or a dying
server ends the HTTP body early but in good order, Anthropic's SDK and OpenAI's both take what came
for all there is, and pydantic-ai fills in a `stop`. So the bytes are watched before they see them.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from perdure.core.limits import REPLY_BYTES_MAX
from perdure.ports.models import ModelError

if TYPE_CHECKING:
    import httpx2

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


async def watched(inner: AsyncIterator[bytes], scanner: Scanner) -> AsyncIterator[bytes]:
    """Yield the body of a streamed reply.

    Raises `ModelError` when it ends before its last event, or one of its events is too large.
    """
    import httpx2

    while True:
        complete = scanner.complete
        try:
            async with asyncio.timeout(DRAIN_SECONDS if complete else None):
                chunk = await anext(inner)
        except StopAsyncIteration:
            break
        except (httpx2.TransportError, TimeoutError) as error:
            if complete:
                return
            if isinstance(error, httpx2.TimeoutException | TimeoutError):
                raise
            raise incomplete("the connection broke in the middle of the reply") from None
        scanner.feed(chunk)
        yield chunk
    if not scanner.complete:
        raise incomplete("the stream ended before its last event")


async def clipped(inner: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the body of an answer that is no reply, as far as an error's text may need it."""
    size = 0
    async for chunk in inner:
        size += len(chunk)
        yield chunk
        if size > ERROR_BODY_BYTES_MAX:
            return


@functools.cache
def _body_class() -> Any:
    import httpx2

    class Body(httpx2.AsyncByteStream):
        """A body whose bytes go through a check; the check may be entered again, to drain it."""

        def __init__(
            self,
            inner: httpx2.AsyncByteStream,
            check: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]],
        ) -> None:
            self._inner = inner
            self._check = check

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self._check(aiter(self._inner))

        async def aclose(self) -> None:
            await self._inner.aclose()

    return Body


async def watch(response: httpx2.Response) -> None:
    """Put a check on the body of a response (an httpx2 hook)."""
    if response.status_code != 200:
        response.stream = _body_class()(response.stream, clipped)
        return
    path = response.request.url.path
    last = next((last for end, last in LAST_EVENT.items() if path.endswith(end)), None)
    if last is None:
        return
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ModelError(
            f"the provider compressed its reply ({encoding}) though it was asked not to",
            error_class="validation",
            code="unexpected_encoding",
        )
    check = functools.partial(watched, scanner=Scanner(last))
    response.stream = _body_class()(response.stream, check)


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
