"""How long a connection may take to say what it wants, and to take what it asked for.

The application sees a request once its headers are whole. Whoever sends them a byte at a time, or
none at all, would hold a connection for ever. So would whoever does not read: what he was answered
waits in this process's memory, and a connection that is closed stays until the last of it is out.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from perdure.server.corked import Corked

HEADER_SECONDS_MAX = 20

TAKE_SECONDS: Final = 30
TAKE_BYTES_MIN: Final = 32 * 1024
"""A reader takes as many bytes in as many seconds, or all there are; who does not is let go."""

WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
"""What may wait for all slow readers together; beyond that, the one that waits longest goes."""


class SlowReaders:
    """The connections whose peers have not taken all that was written."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Transport, _Wait] = {}
        self.bytes = 0

    def add(self, transport: asyncio.Transport) -> None:
        """Begin to wait until everything is taken."""
        self.remove(transport)
        size = transport.get_write_buffer_size()
        later = asyncio.get_running_loop().call_later(TAKE_SECONDS, self._look, transport)
        self._waiting[transport] = _Wait(size, later)
        self.bytes += size
        while self.bytes > WAITING_BYTES_MAX and len(self._waiting) > 1:
            self._let_go(next(iter(self._waiting)))

    def remove(self, transport: asyncio.Transport) -> None:
        """Wait no more; harmless if nobody waits."""
        wait = self._waiting.pop(transport, None)
        if wait is not None:
            wait.later.cancel()
            self.bytes -= wait.size

    def _look(self, transport: asyncio.Transport) -> None:
        left = transport.get_write_buffer_size()
        if self._waiting[transport].size - left < TAKE_BYTES_MIN:
            self._let_go(transport)
        else:
            self.add(transport)

    def _let_go(self, transport: asyncio.Transport) -> None:
        self.remove(transport)
        transport.abort()


class _Wait(NamedTuple):
    """How much waits for a reader, and the timer that looks whether it becomes less."""

    size: int
    later: asyncio.TimerHandle


SLOW_READERS: Final = SlowReaders()
"""Those of this process: it is the memory of a process that has to last."""


class PatientSocket(WebSocketsSansIOProtocol):
    """A WebSocket with an end to the patience for its reader."""

    def connection_made(self, transport: Any) -> None:
        """Have it said whenever the peer does not take everything."""
        super().connection_made(cast("asyncio.Transport", Corked(transport)))
        transport.set_write_buffer_limits(0)

    def pause_writing(self) -> None:
        """Wait for the peer."""
        super().pause_writing()
        SLOW_READERS.add(self.transport)

    def resume_writing(self) -> None:
        """Wait no more: everything is taken."""
        SLOW_READERS.remove(self.transport)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more: nobody is there."""
        SLOW_READERS.remove(self.transport)
        super().connection_lost(exc)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with an end to the patience for headers, and for the reader of an answer.

    That for a body is the application's.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        super().data_received(data)
        if self.transport.get_protocol() is not self or not self._is_within_headers():
            self._stop_waiting()
        elif self._late is None:
            self._wait()

    def pause_writing(self) -> None:
        """Wait for the peer."""
        super().pause_writing()
        SLOW_READERS.add(self.transport)

    def resume_writing(self) -> None:
        """Wait no more: everything is taken."""
        SLOW_READERS.remove(self.transport)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        SLOW_READERS.remove(self.transport)
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_within_headers(self) -> bool:
        return self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEADER_SECONDS_MAX, self._close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        self.transport.close()
