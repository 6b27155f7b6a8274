"""Who waits for what happens in a session: for the end of a run, for new events, for text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from perdure.core.errors import NotFound, PerdureError, Quarantined
from perdure.core.events import Event, ModelReplied
from perdure.core.ids import SessionId
from perdure.core.runs import TERMINAL, RunRow

UNSEEN_MAX = 2
"""How many looks find no row of an accepted run before it is said to be lost."""
PRUNED_MIN = 1_000
"""How many sessions somebody waits for before those are looked for of whom nobody does any more."""


class Ended(msgspec.Struct, frozen=True):
    """How a run ended: its row, and the content of its answer if it has one."""

    row: RunRow
    content: Any = None


OnCommit = Callable[[SessionId], None]
OnRows = Callable[[Sequence[RunRow]], None]
OnNews = Callable[[str | None, str], None]
"""Called with a run and a piece of text while a model writes, and with None at other news."""


class Ending(asyncio.Future[Ended]):
    """The end of a run of a session; it lasts as long as somebody holds it.

    Once `is_accepted`, the store has to have a row of the run; `unseen` counts the looks that found
    none.
    """

    session: SessionId
    is_accepted = False
    unseen = 0


class Followers:
    """The waiting, told only of what is durable (text is the exception, and says so)."""

    def __init__(self) -> None:
        self._endings: WeakValueDictionary[str, Ending] = WeakValueDictionary()
        self._runs: dict[SessionId, set[str]] = {}
        self._pruned_at = PRUNED_MIN
        self._news: dict[SessionId, set[OnNews]] = {}
        self._watchers: dict[tuple[str, str], set[OnCommit]] = {}
        self.on_wanted: Callable[[SessionId], None] = lambda session: None
        """Called with a session that somebody begins to wait for."""
        self.on_rows: OnRows = lambda rows: None
        """Called with the rows of runs that a durable commit changed: begun, parked, ended."""

    def ending(self, session: SessionId, run: str, *, is_asked_for: bool = True) -> Ending:
        """Return the future of a run's end.

        Of one that is not asked for yet, whoever takes its message will tell who runs it.
        """
        future = self._endings.get(run)
        if future is None or (future.done() and future.exception() is not None):
            future = Ending(loop=asyncio.get_running_loop())
            future.session = session
            self._endings[run] = future
            self._runs.setdefault(session, set()).add(run)
            if len(self._runs) >= self._pruned_at:
                self._prune()
            if is_asked_for:
                self.on_wanted(session)
        future.is_accepted = future.is_accepted or is_asked_for
        return future

    def follow(self, session: SessionId, on_news: OnNews) -> Callable[[], None]:
        """Call back at news of a session until the returned function is called."""
        self._news.setdefault(session, set()).add(on_news)
        self.on_wanted(session)

        def leave() -> None:
            waiting = self._news.get(session)
            if waiting is not None:
                waiting.discard(on_news)
                if not waiting:
                    del self._news[session]

        return leave

    def watch(self, tenant: str, agent: str, on_commit: OnCommit) -> Callable[[], None]:
        """Call back at news of any session of an agent until the returned function is called."""
        self._watchers.setdefault((tenant, agent), set()).add(on_commit)

        def leave() -> None:
            waiting = self._watchers.get((tenant, agent))
            if waiting is not None:
                waiting.discard(on_commit)
                if not waiting:
                    del self._watchers[tenant, agent]

        return leave

    def wanted(self) -> set[SessionId]:
        """Return the sessions that somebody waits for."""
        self._prune()
        return {*self._runs, *self._news}

    def runs_of(self, session: SessionId) -> list[str]:
        """Return the runs of a session whose end somebody waits for."""
        return [run for run in self._runs.get(session, ()) if self._is_awaited(run)]

    def _is_awaited(self, run: str) -> bool:
        ending = self._endings.get(run)
        return ending is not None and not ending.done()

    def _prune(self) -> None:
        """Forget the runs whose end nobody waits for any more."""
        for session in tuple(self._runs):
            runs = set(self.runs_of(session))
            if runs:
                self._runs[session] = runs
            else:
                del self._runs[session]
        self._pruned_at = max(PRUNED_MIN, 2 * len(self._runs))

    def watched(self) -> list[tuple[str, str]]:
        """Return the agents whose sessions somebody watches, each with its tenant before it."""
        return list(self._watchers)

    def ended(self, ended: Ended) -> None:
        """Tell of a run that ended; its answer can be read by whoever wants it."""
        future = self._endings.get(ended.row.id)
        if future is not None and not future.done():
            future.set_result(ended)

    def unseen(self, run: str) -> None:
        """Note that the store has no row of a run; the second time, who waits for it is told."""
        ending = self._endings.get(run)
        if ending is None or not ending.is_accepted:
            return
        ending.unseen += 1
        if ending.unseen >= UNSEEN_MAX:
            text = "it lost what it had acknowledged. See what took effect, and send it again"
            _raise(ending, NotFound(f"run {run!r} is in the store no more: {text}"))

    def news(self, session: SessionId) -> None:
        """Tell that a session has new durable facts, which can be read."""
        for on_news in tuple(self._news.get(session, ())):
            on_news(None, "")

    def watched_news(self, session: SessionId) -> None:
        """Tell those who watch a session's agent the same."""
        for on_commit in tuple(self._watchers.get(session[:2], ())):
            on_commit(session)

    def committed(
        self, session: SessionId, rows: Sequence[RunRow], version: int, events: Sequence[Event]
    ) -> None:
        """Tell of a durable commit: `events` follow position `version`."""
        for row in rows:
            if row.status in TERMINAL or row.status == "merged":
                future = self._endings.get(row.id)
                if future is not None and not future.done():
                    future.set_result(Ended(row, _content(row, version, events)))
        if rows:
            self.on_rows(rows)
        if self._news:
            self.news(session)
        if self._watchers:
            self.watched_news(session)

    def text(self, session: SessionId, run: str, piece: str) -> None:
        """Tell of a piece of text that a model is writing; nothing of it is durable yet."""
        for on_news in tuple(self._news.get(session, ())):
            on_news(run, piece)

    def set_aside(self, session: SessionId, reason: str) -> None:
        """Tell those who wait for runs of a session that it is in quarantine."""
        error = quarantined(session, reason)
        for ending in list(self._endings.values()):
            if ending.session == session:
                _raise(ending, error)
        for on_news in tuple(self._news.get(session, ())):
            on_news(None, "")

    def fail(self, error: PerdureError) -> None:
        """Tell everybody that this node cannot go on."""
        for ending in list(self._endings.values()):
            _raise(ending, error)
        for waiting in tuple(self._news.values()):
            for on_news in tuple(waiting):
                on_news(None, "")


def quarantined(session: SessionId, reason: str) -> Quarantined:
    """Return the error that says why a session is set aside and how it is released."""
    return Quarantined(
        f"session {session} is in quarantine: {reason}. Nothing of it is lost; when the cause is "
        f"gone, release it: perdure sessions release {session.agent} {session.key}"
    )


def _raise(ending: Ending, error: PerdureError) -> None:
    if not ending.done():
        ending.set_exception(error)
        ending.exception()


def _content(row: RunRow, version: int, events: Sequence[Event]) -> Any:
    if row.answer is None or row.answer <= version:
        return None
    event = events[row.answer - version - 1]
    return event.content if isinstance(event, ModelReplied) else None
