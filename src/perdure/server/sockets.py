"""The two sockets: workers on one, clients that follow agents on the other.

The protocol itself is in `perdure.wire`; here are the connections: who may open one, and when an
idle one is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from starlette.websockets import WebSocket

from perdure.api.errors import Rejected
from perdure.core.errors import PerdureError
from perdure.ports.entries import Gard, ToolRecord
from perdure.server.audience import Audiences
from perdure.server.gards import NotClaimed
from perdure.server.keys import Principal
from perdure.server.members import Member
from perdure.server.outgoing import CLIENT_CHARS_MAX, WORKER_CHARS_MAX, Outgoing
from perdure.server.sending import send
from perdure.server.servers import WorkerJoined
from perdure.server.service import Service
from perdure.server.turns import Turn
from perdure.wire import table as t
from perdure.wire.frames import CLOSE_TRY_AGAIN, BadFrame, binary
from perdure.wire.server import AgentJoins, Left, MessageAsked, PortAsked, ServerSide, WorkerJoins

IDLE_SECONDS_MAX = 90
_log = logging.getLogger("perdure.server")

Serves = Literal["worker", "agent"]
Endpoint = Callable[[WebSocket], Awaitable[None]]


def worker_socket(service: Service) -> Endpoint:
    """Return the endpoint of workers."""

    async def endpoint(socket: WebSocket) -> None:
        principal = await _admit(service, socket, "worker")
        if principal is not None:
            await _Worker(service, socket, principal).serve()

    return endpoint


def agent_socket(service: Service) -> Endpoint:
    """Return the endpoint of clients that follow agents."""

    audiences = Audiences()

    async def endpoint(socket: WebSocket) -> None:
        principal = await _admit(service, socket, "agent")
        if principal is not None:
            await _Client(service, socket, principal, audiences).serve()

    return endpoint


async def _admit(service: Service, socket: WebSocket, serves: Serves) -> Principal | None:
    """Open the connection for who may; refuse the upgrade (403) to anybody else."""
    token = socket.query_params.get("token", "")
    try:
        principal = await service.keys.authenticate(token, service.clock.now_ms())
    except PerdureError:
        principal = None
    if (
        principal is None
        or not principal.may("work" if serves == "worker" else "read")
        or not service.sockets[serves].open(principal.tenant)
    ):
        await socket.close()
        return None
    await socket.accept()
    return principal


class _Peer:
    """One connection: frames in, frames out, facts to whoever acts on them."""

    serves: Serves
    chars_max: int
    """What may wait for this peer."""

    def __init__(self, service: Service, socket: WebSocket, principal: Principal) -> None:
        self.service = service
        self.principal = principal
        self.wire = ServerSide(self.serves)
        self.out = Outgoing(socket, self.chars_max)
        self._socket = socket

    async def serve(self) -> None:
        """Talk until one side has had enough."""
        unwatch = self.service.keys.watch(self.principal.key_id, self.revoked)
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS_MAX):
                    message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                if text is None:
                    raise binary(len(message["bytes"]))
                turn = Turn()
                for told in self.wire.feed(text):
                    if isinstance(told, str):
                        self.out.send(told)
                    else:
                        await self.act(told)
                    await turn.pause()
        except BadFrame as bad:
            _log.info("a %s said something that is no frame: %s", self.serves, bad)
            self.out.close(bad.close_code)
        except TimeoutError:
            self.out.close(CLOSE_TRY_AGAIN)
        finally:
            unwatch()
            self.service.sockets[self.serves].close(self.principal.tenant)
            self.gone()
            self.out.close(CLOSE_TRY_AGAIN)
            with contextlib.suppress(asyncio.CancelledError):
                await self.out.writer

    def say(self, frames: list[str]) -> None:
        """Send frames."""
        for frame in frames:
            self.out.send(frame)

    async def act(self, fact: Any) -> None:
        """Act on what the peer said."""
        raise NotImplementedError

    def revoked(self) -> None:
        """The key of this connection is good no more."""
        self.out.close(CLOSE_TRY_AGAIN)

    def gone(self) -> None:
        """The connection is over."""
        raise NotImplementedError


class _Worker(_Peer):
    """A worker's connection."""

    serves = "worker"
    chars_max = WORKER_CHARS_MAX

    def __init__(self, service: Service, socket: WebSocket, principal: Principal) -> None:
        super().__init__(service, socket, principal)
        self._desk = service.desk(principal.tenant)
        self._member: Member | None = None
        self._gard: Gard | None = None
        self._freeing: asyncio.Task[None] | None = None

    async def act(self, fact: Any) -> None:
        """Act on what the worker said."""
        if isinstance(fact, WorkerJoins):
            await self._join(fact)
        elif isinstance(fact, PortAsked):
            await self._offer(fact)
        elif isinstance(fact, Left):
            self._let_go(self.service.pool.leave)
        elif self._member is not None:
            self.service.pool.hear(self._member, fact)

    def revoked(self) -> None:
        """Tell the worker that its key is good no more: it ends."""
        if self._member is not None:
            self.service.pool.dismiss(self._member, t.KeyRevoked())
        self.out.close(CLOSE_TRY_AGAIN)

    def gone(self) -> None:
        """Hand on what the worker had, unless it comes back for it."""
        self._let_go(self.service.pool.lose)

    async def _join(self, joins: WorkerJoins) -> None:
        registration = joins.registration
        why = self.principal.why_not_join(_number(registration.gard), registration.capabilities)
        if why is not None:
            self.say(self.wire.refuse_join(joins, why, "forbidden"))
            return
        if registration.gard is not None:
            try:
                self._gard = await self.service.claims.claim(
                    self._desk.catalog,
                    registration.gard,
                    registration.claim_token,
                    registration.worker_id,
                    f"{self.service.node.owner}/{self.service.clock.fresh_id()}",
                    self._gard_lost,
                )
            except NotClaimed as refused:
                self.say(self.wire.refuse_join(joins, refused.reason, "gard_claim_failed"))
                return
        gard = None if self._gard is None else self._gard.id
        offers = [
            ToolRecord(
                name=tool.name,
                description=tool.description,
                input_schema=tool.input_schema,
                effect=tool.effect_class(),
                gard=gard,
            )
            for tool in registration.tools
        ]
        await self._desk.agents.learn(self.principal.tenant, offers)
        frames = self.wire.accept_join(joins)
        if frames:
            self.say(frames)
            self._member = self.service.pool.join(
                self.principal.tenant, registration, self.wire, self.out, self.principal.key_id
            )
            joined = WorkerJoined(self.principal.tenant, registration.worker_id)
            self.service.node.bus.send(None, joined)

    async def _offer(self, asked: PortAsked) -> None:
        if self._gard is None:
            self.say(self.wire.refuse(asked.ticket, "no gard"))
            return
        try:
            port = await self._desk.offer_port(self._gard.id, asked.port)
        except Rejected as rejected:
            self.say(self.wire.refuse(asked.ticket, rejected.error))
            return
        said = {"id": port.id, "internal_port": port.internal_port, "url": port.url}
        self.say(self.wire.reply(asked.ticket, said))

    def _gard_lost(self, is_destroyed: bool) -> None:
        """Let the worker go whose gard is no more, or has gone to somebody else."""
        self._gard = None
        if is_destroyed and self._member is not None:
            self.service.pool.dismiss(self._member, t.GardDestroyed())
        self.out.close(CLOSE_TRY_AGAIN)

    def _let_go(self, farewell: Callable[[Member], None]) -> None:
        member, self._member = self._member, None
        gard, self._gard = self._gard, None
        if member is not None:
            farewell(member)
        if gard is not None:
            self._freeing = asyncio.ensure_future(
                self.service.claims.free(self._desk.catalog, gard)
            )


class _Client(_Peer):
    """The connection of somebody who follows agents and writes to them."""

    serves = "agent"
    chars_max = CLIENT_CHARS_MAX

    def __init__(
        self, service: Service, socket: WebSocket, principal: Principal, audiences: Audiences
    ) -> None:
        super().__init__(service, socket, principal)
        self._desk = service.desk(principal.tenant)
        self._audiences = audiences
        self._following: dict[str, Callable[[], None]] = {}

    async def act(self, fact: Any) -> None:
        """Act on what the client said."""
        if isinstance(fact, AgentJoins):
            await self._join(fact)
        elif isinstance(fact, MessageAsked):
            await self._send(fact)
        elif isinstance(fact, Left):
            self._stop(fact.topic)

    def gone(self) -> None:
        """Tell nothing any more."""
        for topic in tuple(self._following):
            self._stop(topic)

    async def _join(self, joins: AgentJoins) -> None:
        topic, agent = joins.ticket.topic, _number(joins.agent_id)
        try:
            await self._desk.agent(agent or 0, archived=False)
        except Rejected:
            self.say(self.wire.refuse_join(joins, "not found"))
            return
        assert agent is not None
        frames = self.wire.accept_join(joins)
        self.say(frames)
        if frames:
            self._stop(topic)
            self._following[topic] = self._audiences.join(
                self._desk, agent, lambda event, payload: self._tell(topic, event, payload)
            )

    def _tell(self, topic: str, event: str, payload: Any) -> None:
        """Tell the client what happened; one that is let go is told nothing more."""
        if self.out.closing:
            self._stop(topic)
        else:
            self.say(self.wire.push(topic, event, payload))

    async def _send(self, asked: MessageAsked) -> None:
        message = asked.message
        if not self.principal.may("run"):
            self.say(self.wire.refuse(asked.ticket, "the key does not allow this"))
            return
        try:
            agent = await self._desk.agent(_number(asked.agent_id) or 0, archived=False)
            if message.content is None:
                raise Rejected(422, "missing required field: content")
            gard = await self._desk.gard(message.gard_id)
            run = await send(self._desk, agent, message.content, gard=gard)
            self.say(self.wire.reply(asked.ticket, {"run_id": await self._desk.numbers.run(run)}))
        except PerdureError as error:
            self.say(self.wire.refuse(asked.ticket, str(error)))

    def _stop(self, topic: str) -> None:
        leave = self._following.pop(topic, None)
        if leave is not None:
            leave()


def _number(text: str | None) -> int | None:
    """Return the id that a text stands for; None if it stands for none."""
    fits = text is not None and text.isascii() and text.isdigit() and len(text) < 19
    return int(text) if fits and text is not None else None
