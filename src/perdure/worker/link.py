"""One connection of a worker to its server: from the join to the end of the socket."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from perdure.core.errors import WorkerRefused
from perdure.ports.clock import Clock, Timer
from perdure.wire import frames
from perdure.wire import table as t
from perdure.wire.frames import CLOSE_TOO_LARGE, BadFrame
from perdure.wire.registration import Registration
from perdure.wire.tasks import LlmTask, ToolTask
from perdure.wire.worker import (
    Acknowledged,
    Closed,
    Joined,
    JoinRefused,
    Replied,
    WorkerFact,
    WorkerSide,
)
from perdure.worker.holding import Holding

BEAT_MS = 30_000
JOIN_MS_MAX = 15_000
MAY_CHANGE = frozenset({"already_claimed"})
"""Reasons for keeping a worker out that hold only as long as another has its place."""

_CLOSE_DONE, _CLOSE_BROKEN = 1000, 1011
_log = logging.getLogger("perdure.worker")


class Link:
    """A socket that is open, with a worker's end of the protocol on it.

    `ports` are those that its gard is still to be told of, with their URLs.
    """

    def __init__(
        self,
        socket: ClientConnection,
        registration: Registration,
        holding: Holding,
        clock: Clock,
        ports: dict[int, str],
    ) -> None:
        self._socket = socket
        self._side = WorkerSide(registration)
        self._holding = holding
        self._clock = clock
        self._ports = ports
        self._offered: dict[str, int] = {}
        self.joined_ms: int | None = None
        self._urgent: list[str] = []
        self._news = asyncio.Event()
        self._timer: Timer | None = None
        self._leaving = False

    async def talk(self) -> None:
        """Join, and do what the server asks until the connection ends.

        Raises `WorkerRefused` when there is no use in coming again.
        """
        speaking = None
        try:
            await self._socket.send(self._side.join())
            self._timer = self._clock.call_later(JOIN_MS_MAX, self.leave)
            speaking = asyncio.create_task(self._speak())
            while True:
                self._hear(await self._socket.recv())
        except BadFrame as bad:
            _log.warning("the server sent what is no frame: %s", bad)
            await self._socket.close(bad.close_code)
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == CLOSE_TOO_LARGE:
                self._holding.refused_frame()
            if not self._leaving:
                _log.warning("the connection was closed: %s", closed)
        finally:
            self._untime()
            if speaking is not None:
                speaking.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await speaking

    def wake(self) -> None:
        """Say what there is to say, soon: all that comes up in one turn of the loop together."""
        self._news.set()

    def drain(self) -> None:
        """Ask for nothing new, and leave once everything is done and acknowledged."""
        if self.joined_ms is not None and self._side.state == "joined":
            self._urgent.append(self._side.drain())
        self.wake()

    def leave(self) -> None:
        """Leave now, whatever is unfinished."""
        self._leaving = True
        self.wake()

    # -------------------------------------------------------------------------------- speaking

    async def _speak(self) -> None:
        try:
            await self._say_all()
        except ConnectionClosed:
            raise
        except Exception:
            if self._socket.close_code is None:
                # A mistake of ours: whoever listens must not go on without a voice.
                await self._socket.close(_CLOSE_BROKEN)
                raise
            # A transport that is gone already may raise anything when it is written to.

    async def _say_all(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self.joined_ms is None and not self._leaving:
                continue
            urgent, self._urgent = self._urgent, []
            for frame in urgent:
                await self._socket.send(frame)
            if self.joined_ms is not None:
                for frame in self._holding.to_say(self._side):
                    await self._socket.send(frame)
            if self._leaving or (self._side.state == "draining" and self._holding.is_empty()):
                await self._say_goodbye()
                return

    async def _say_goodbye(self) -> None:
        self._leaving = True
        if self.joined_ms is not None:
            await self._socket.send(self._side.leave())
        await self._socket.close(_CLOSE_DONE)

    def _untime(self) -> None:
        """Wait no longer for what the timer was set for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._urgent.append(self._side.heartbeat())
        self._urgent += self._holding.beat(self._side)
        self._timer = self._clock.call_later(BEAT_MS, self._beat)
        self.wake()

    # --------------------------------------------------------------------------------- hearing

    def _hear(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise frames.binary(len(message))
        for thing in self._side.feed(message):
            if isinstance(thing, str):
                self._urgent.append(thing)
                self.wake()
            elif not self._leaving:
                self._act(thing)

    def _act(self, fact: WorkerFact) -> None:
        match fact:
            case LlmTask() | ToolTask():
                self._holding.take(fact)
            case t.Proceed():
                self._holding.proceed(fact.task_id)
            case t.Cancel():
                self._holding.cancel(fact.task_id)
            case Acknowledged():
                self._holding.acknowledged(fact.task_ids)
            case Joined():
                self._has_joined(fact)
            case JoinRefused() if fact.reason in MAY_CHANGE:
                _log.warning("another worker has this one's place (%s)", fact.reason)
                self.leave()
            case JoinRefused():
                why = fact.reason if fact.code is None else f"{fact.reason} ({fact.code})"
                raise WorkerRefused(f"the server refused the join: {why}", fact.reason)
            case t.GardDestroyed():
                raise WorkerRefused("the worker's gard was destroyed", "gard_destroyed")
            case t.KeyRevoked():
                raise WorkerRefused("the worker's key was revoked", "key_revoked")
            case Closed():
                _log.warning("the server closed the worker's channel")
                self.leave()
            case Replied():
                self._ports.pop(self._offered.get(fact.ref, 0), None)
                if not fact.ok:
                    _log.warning("the server refused what the worker said: %s", fact.response)

    def _has_joined(self, joined: Joined) -> None:
        if "native" not in joined.features:
            raise WorkerRefused(
                "the server does not speak to workers of perdure: it knows no feature `native`",
                "not_native",
            )
        self.joined_ms = self._clock.monotonic_ms()
        self._untime()
        self._timer = self._clock.call_later(BEAT_MS, self._beat)
        self._holding.connected()
        for port, url in self._ports.items():
            protocol = url.partition("://")[0]
            ref, frame = self._side.register_port(port, protocol=protocol, url=url)
            self._offered[ref] = port
            self._urgent.append(frame)
        _log.info("the worker has joined")
        if self._holding.draining:
            self.drain()
        self.wake()
