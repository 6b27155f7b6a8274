"""Serving the application over a port until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn

from perdure.core.errors import InvalidInput
from perdure.server.app import application
from perdure.server.patience import PatientProtocol, PatientSocket
from perdure.server.service import Service
from perdure.server.turns import tuned
from perdure.wire.frames import SERVER_FRAME_BYTES_MAX

STOPPING = (signal.SIGINT, signal.SIGTERM)
BACKLOG_CONNECTIONS = 2_048
UNSENT_BYTES_MAX = 64 * 1024
"""What the system keeps for a peer besides what is on its way."""

GRACE_SECONDS = 20
"""How long requests may go on when the server stops; sockets are closed with 1012 at once."""


async def serve(
    service: Service,
    host: str,
    port: int,
    on_ready: Callable[[str], None] = lambda url: None,
    on_leaving: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGINT, SIGTERM, or until somebody drains the node, and drain it then.

    `on_ready` is told the URL once it can be used.
    `on_leaving` is awaited first when it stops, while workers can still bring their results.

    Port 0 takes a free one. Raises `InvalidInput` for an address that cannot be had, and what the
    service failed of: after an error of the disk the session store has to be opened again.
    """
    listener = listen(host, port)
    address = listener.getsockname()
    shown = f"[{address[0]}]" if listener.family == socket.AF_INET6 else address[0]
    config = uvicorn.Config(
        application(service),
        log_config=None,
        access_log=False,
        log_level=logging.WARNING,  # at INFO it writes the token of every socket
        lifespan="on",
        http=PatientProtocol,
        ws=PatientSocket,
        ws_max_size=SERVER_FRAME_BYTES_MAX,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=75,
        server_header=False,
    )

    async def leave() -> None:
        if on_leaving is not None:
            await on_leaving()
        # Before the sockets are closed: a drain waits for calls that workers have begun.
        await service.stop()

    server = _Announcing(config, lambda: on_ready(f"http://{shown}:{address[1]}"), leave)

    async def exit_after(event: asyncio.Event) -> None:
        await event.wait()
        server.should_exit = True

    ends = (service.failed, service.servers.asked_to_leave)
    waiting = [asyncio.ensure_future(exit_after(event)) for event in ends]
    try:
        with tuned():
            await server.serve(sockets=[listener])
    finally:
        for one in waiting:
            one.cancel()
    if service.failure is not None:
        raise service.failure


class _Announcing(uvicorn.Server):
    """Says when it has started, and when it is about to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        on_leaving: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._on_leaving = on_leaving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, and leave it at that: whoever serves goes on to clean up."""
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in STOPPING:
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let who has to know go first, then stop."""
        await self._on_leaving()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises `InvalidInput` for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small frames at once (TCP_NODELAY) only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # The system would take megabytes for a peer that reads nothing.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        listener.bind((host, port))
        listener.listen(BACKLOG_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InvalidInput(
            f"port {port} of {host} cannot be had: {error.strerror or error}; choose another "
            "one with --port"
        ) from None
    return listener
