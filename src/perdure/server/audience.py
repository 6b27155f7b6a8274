"""Who follows an agent over a socket is told what its runs do, from when he came."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from perdure.api.pushes import push
from perdure.api.shapes import timestamp
from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.server.desk import Desk
from perdure.server.telling import Telling

RUNS_LOOKED_AT = 8
"""So many of a session's last runs may have news at once."""

RUNS_REMEMBERED_MAX = 1_000

_log = logging.getLogger("perdure.server")


class Audience:
    """One follower of one agent. `tell` is given the name of an event and its payload.

    Events are read from the log, so that nothing is told that is not durable, and nothing twice.
    """

    def __init__(self, desk: Desk, agent: int, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self._desk = desk
        self._agent = agent
        self._tell = tell
        self._since = timestamp(desk.clock.now_ms())
        self._tellings: OrderedDict[str, Telling] = OrderedDict()
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
            telling = self._tellings.get(row.id)
            if telling is None:
                if row.status in ("queued", "merged"):
                    continue
                telling = self._tellings[row.id] = Telling(self._desk, row)
                while len(self._tellings) > RUNS_REMEMBERED_MAX:
                    self._tellings.popitem(last=False)
            run = await self._desk.numbers.run(row.id)
            for event in await telling.more():
                pushed = push(event, self._agent, run)
                if pushed is not None and event.inserted_at >= self._since:
                    self._tell(pushed.event, pushed.payload)
