"""Who follows an agent over a socket is told what its runs do, from when he came."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from perdure.api.pushes import Push, push
from perdure.api.shapes import timestamp
from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.server.desk import Desk
from perdure.server.telling import Telling

RUNS_LOOKED_AT = 8
"""So many of a session's last runs may have news at once."""

RUNS_REMEMBERED_MAX = 1_000

_log = logging.getLogger("perdure.server")
_encode = msgspec.json.Encoder().encode

Tell = Callable[[str, msgspec.Raw], None]
"""Called with the name of an event, and its payload as JSON."""


class Audiences:
    """The followers of each agent. News are read and encoded once, however many follow."""

    def __init__(self) -> None:
        self._audiences: dict[tuple[str, int], _Audience] = {}

    def join(self, desk: Desk, agent: int, tell: Tell) -> Callable[[], None]:
        """Tell a follower what an agent's runs do until the returned function is called."""
        key = desk.tenant, agent
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = _Audience(desk, agent)
        follower = _Follower(timestamp(desk.clock.now_ms()), tell)
        audience.followers[id(follower)] = follower

        def leave() -> None:
            if audience.followers.pop(id(follower), None) and not audience.followers:
                del self._audiences[key]
                audience.close()

        return leave


class _Follower(NamedTuple):
    """One follower, and since when he is one."""

    since: str
    tell: Tell


class _Audience:
    """The followers of one agent.

    Events are read from the log, so that nothing is told that is not durable, and nothing twice.
    """

    def __init__(self, desk: Desk, agent: int) -> None:
        self.followers: dict[int, _Follower] = {}
        self._desk = desk
        self._agent = agent
        self._tellings: OrderedDict[str, Telling | None] = OrderedDict()
        self._pending: dict[SessionId, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._leave = desk.runs.watch(str(agent), self._news)

    def close(self) -> None:
        """Tell nothing any more."""
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def _news(self, session: SessionId) -> None:
        self._pending[session] = None
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while self._pending:
            session = next(iter(self._pending))
            del self._pending[session]
            try:
                await self._read_session(session)
            except PerdureError as error:
                _log.warning("the followers of agent %s miss news: %s", self._agent, error)

    async def _read_session(self, session: SessionId) -> None:
        rows = await self._desk.runs.rows(
            agent=session.agent, key=session.key, limit=RUNS_LOOKED_AT
        )
        for row in reversed(rows):
            if row.id not in self._tellings:
                if row.status in ("queued", "merged"):
                    continue
                self._remember(row)
            telling = self._tellings[row.id]
            if telling is None:
                continue
            run = await self._desk.numbers.run(row.id)
            async for event in telling.read():
                pushed = push(event, self._agent, run)
                if pushed is not None:
                    self._tell(pushed, event.inserted_at)
            if telling.over and row.id in self._tellings:
                self._tellings[row.id] = None

    def _remember(self, row: RunRow) -> None:
        """Begin to tell of a run; of one that is over it is known that all was told."""
        self._tellings[row.id] = Telling(self._desk, row)
        while len(self._tellings) > RUNS_REMEMBERED_MAX:
            self._tellings.popitem(last=False)

    def _tell(self, pushed: Push, at: str) -> None:
        payload = msgspec.Raw(_encode(pushed.payload))
        for follower in tuple(self.followers.values()):
            if at >= follower.since:
                follower.tell(pushed.event, payload)
