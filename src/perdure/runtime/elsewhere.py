"""Elsewhere: what other nodes do for those who wait here, and what this one does for those there.

Whoever waits at this node for a session that another one runs is told by that one's messages; and
because messages get lost, this node also looks for itself: soon at first, then less and less often.
In the other direction it remembers, for a while, which nodes wait for sessions that it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from perdure.core.errors import PerdureError, Unavailable
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.clock import Clock, Timer
from perdure.ports.session_store import RunQuery, SessionStore
from perdure.runtime.bus import Bus, Follow, Knock, News, Pieces
from perdure.runtime.followers import Followers
from perdure.runtime.verdicts import Lookout, Verdicts

LOOK_MS = 500
"""How long after it began to wait this node looks for itself; then twice as long, and so on."""
LOOK_MS_MAX = 8_000
FOLLOW_MS = 50
"""How long a session may take to be run here before other nodes are asked for news of it."""
FOLLOWED_MS = 15_000
"""How long a node is told news after it asked for them."""
ASKED_EVERY_MS = 5_000
NAMES_PER_MESSAGE_MAX = 500
ALL_MS = 2_000
"""How often it is looked whether sessions that are waited for are run here still."""
AGENTS_MS = 2_000
"""How often it is looked what became of the newest runs of an agent that is watched."""
ROWS_LOOKED_AT = 50
NEWS_MS = 2
"""How long news wait for others, so that a busy node sends few messages."""


class _Wait:
    """A session that somebody waits for here: when this node looks again, and how long after."""

    __slots__ = ("again", "asked_ms", "at_ms", "looking", "pause_ms")

    def __init__(self, now_ms: int) -> None:
        self.pause_ms = LOOK_MS
        self.at_ms = now_ms + LOOK_MS
        self.asked_ms = now_ms
        self.looking = self.again = False


class Elsewhere:
    """The waiting of this node for others, and of others for it."""

    def __init__(
        self,
        owner: str,
        store: SessionStore,
        bus: Bus,
        followers: Followers,
        clock: Clock,
        is_active: Callable[[SessionId], bool],
        verdicts: Verdicts,
        lookout: Lookout,
    ) -> None:
        self._owner = owner
        self._store = store
        self._bus = bus
        self._followers = followers
        self._clock = clock
        self._is_active = is_active
        self._verdicts = verdicts
        self._lookout = lookout
        self._waits: dict[SessionId, _Wait] = {}
        self._agents_at_ms = self._all_at_ms = 0
        self._rows: dict[tuple[str, str], dict[str, RunRow]] = {}
        self._listeners: dict[SessionId | tuple[str, str], dict[str, int]] = {}
        self._news: dict[str, set[SessionId]] = {}
        self._news_timer: Timer | None = None
        self._timer: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.on_knock: Callable[[SessionId], None] = lambda session: None
        bus.on(Knock, self._knocked)
        bus.on(Follow, self._asked)
        bus.on(News, self._told)
        bus.on(Pieces, self._pieces)

    def start(self) -> None:
        """Look for itself from now on."""
        self._followers.on_wanted = self._wanted
        self._arm()

    async def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        for timer in (self._timer, self._news_timer):
            if timer is not None:
                timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ----------------------------------------------------------------- what is waited for here

    def run_by(self, session: SessionId, node: str | None) -> None:
        """Note that another node runs a session, for which somebody may wait here."""
        wait = self._wait_for(session)
        wait.pause_ms, wait.at_ms = LOOK_MS, self._clock.monotonic_ms() + LOOK_MS
        if node is not None:
            self._bus.send(node, Knock(session, self._owner))

    def _wanted(self, session: SessionId) -> None:
        """Somebody begins to wait for a session; one that is run here tells of itself."""
        if session not in self._waits and not self._is_active(session):
            wait = self._wait_for(session)
            wait.asked_ms = wait.asked_ms - ASKED_EVERY_MS + FOLLOW_MS
            self._arm(FOLLOW_MS)

    def _wait_for(self, session: SessionId) -> _Wait:
        wait = self._waits.get(session)
        if wait is None:
            wait = self._waits[session] = _Wait(self._clock.monotonic_ms())
        return wait

    def _arm(self, delay_ms: int = LOOK_MS // 2) -> None:
        if self._stopped or (self._timer is not None and delay_ms >= LOOK_MS // 2):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(delay_ms, self._round)

    def _round(self) -> None:
        """Forget what nobody waits for, ask for news of the rest, and look where it is time."""
        self._timer = None
        now_ms = self._clock.monotonic_ms()
        wanted = self._all_wanted(now_ms) if self._waits or now_ms >= self._all_at_ms else set()
        ask: list[SessionId] = []
        for session, wait in tuple(self._waits.items()):
            if self._is_active(session) or session not in wanted:
                del self._waits[session]
            else:
                if now_ms >= wait.asked_ms + ASKED_EVERY_MS:
                    wait.asked_ms = now_ms
                    ask.append(session)
                if now_ms >= wait.at_ms:
                    wait.pause_ms = min(2 * wait.pause_ms, LOOK_MS_MAX)
                    wait.at_ms = now_ms + wait.pause_ms
                    self._look(session)
        agents = tuple(self._followers.watched())
        for start in range(0, len(ask), NAMES_PER_MESSAGE_MAX):
            names = tuple(ask[start : start + NAMES_PER_MESSAGE_MAX])
            self._bus.send(None, Follow(self._owner, names))
        if agents and now_ms >= self._agents_at_ms:
            self._agents_at_ms = now_ms + AGENTS_MS
            self._spawn(self._look_at_agents(agents))
        self._forget_listeners(now_ms)
        self._arm()

    def _all_wanted(self, now_ms: int) -> set[SessionId]:
        """Return what is waited for; now and then also note what nobody runs here any more."""
        wanted = self._followers.wanted() | self._verdicts.sessions()
        if now_ms >= self._all_at_ms:
            self._all_at_ms = now_ms + ALL_MS
            for session in wanted:
                if not self._is_active(session):
                    self._wait_for(session)
        return wanted

    def _look(self, session: SessionId) -> None:
        wait = self._wait_for(session)
        if wait.looking:
            wait.again = True
        else:
            wait.looking = True
            self._spawn(self._look_at(session, wait))

    async def _look_at(self, session: SessionId, wait: _Wait) -> None:
        """Read what became of a session, and tell those who wait for it."""
        try:
            wait.again = True
            while wait.again:
                wait.again = False
                await self._lookout.look(session)
        except PerdureError:
            wait.at_ms = min(wait.at_ms, self._clock.monotonic_ms() + LOOK_MS)
        finally:
            wait.looking = False

    async def _look_at_agents(self, agents: Sequence[tuple[str, str]]) -> None:
        """Compare the newest runs of the agents that are watched with what they were."""
        self._bus.send(None, Follow(self._owner, (), tuple(agents)))
        for agent in agents:
            query = RunQuery(tenant=agent[0], agent=agent[1], limit=ROWS_LOOKED_AT)
            try:
                rows = {row.id: row for row in await self._store.list(query)}
            except Unavailable:
                return
            before = self._rows.get(agent, rows)
            self._rows[agent] = rows
            for run, row in rows.items():
                if before.get(run) != row and not self._is_active(row.session):
                    self._followers.watched_news(row.session)
        for gone in self._rows.keys() - set(agents):
            del self._rows[gone]

    # ------------------------------------------------------------------ who waits at other nodes

    def committed(self, session: SessionId) -> None:
        """Tell the nodes that wait for a session that it has new facts."""
        if not self._listeners:
            return
        for name in (session, session[:2]):
            for node in self._listeners.get(name, ()):
                self._news.setdefault(node, set()).add(session)
        if self._news and self._news_timer is None and not self._stopped:
            self._news_timer = self._clock.call_later(NEWS_MS, self._send_news)

    def text(self, session: SessionId, run: str, piece: str) -> None:
        """Pass on text to the nodes that wait for its session."""
        for node in self._listeners.get(session, ()):
            self._bus.send(node, Pieces(session, run, piece, relayed=True))

    def _send_news(self) -> None:
        self._news_timer = None
        for node, sessions in self._news.items():
            told = tuple(sessions)
            for start in range(0, len(told), NAMES_PER_MESSAGE_MAX):
                self._bus.send(node, News(told[start : start + NAMES_PER_MESSAGE_MAX]))
        self._news = {}

    def _listens(self, name: SessionId | tuple[str, str], node: str) -> None:
        until_ms = self._clock.monotonic_ms() + FOLLOWED_MS
        self._listeners.setdefault(name, {})[node] = until_ms

    def _forget_listeners(self, now_ms: int) -> None:
        for name, nodes in tuple(self._listeners.items()):
            for node in [node for node, until_ms in nodes.items() if until_ms <= now_ms]:
                del nodes[node]
            if not nodes:
                del self._listeners[name]

    # ------------------------------------------------------------------------ what others say

    def _knocked(self, knock: Knock) -> None:
        self._listens(knock.session, knock.node)
        self.on_knock(knock.session)

    def _asked(self, follow: Follow) -> None:
        for session in follow.sessions:
            if self._is_active(session):
                self._listens(session, follow.node)
        for agent in follow.agents:
            self._listens(agent, follow.node)

    def _told(self, news: News) -> None:
        for session in news.sessions:
            if session in self._waits:
                self._look(session)
            self._followers.watched_news(session)

    def _pieces(self, pieces: Pieces) -> None:
        self._followers.text(pieces.session, pieces.run, pieces.text)
        if not pieces.relayed and self._is_active(pieces.session):
            self.text(pieces.session, pieces.run, pieces.text)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
