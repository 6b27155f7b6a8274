"""Verdicts: who waits here for what is decided of the commands that he gave."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

import msgspec

from perdure.core.errors import Refused, StoreError
from perdure.core.ids import SessionId
from perdure.core.runs import TERMINAL
from perdure.core.session import Refusal
from perdure.ports.session_store import RunQuery, SessionReader
from perdure.runtime.followers import Ended, Followers

_decode_refusal = msgspec.json.Decoder(Refusal).decode


class Verdict(asyncio.Future["Refusal | None"]):
    """What is said of a command of a session; it lasts as long as somebody holds it."""

    session: SessionId


class Verdicts:
    """The futures of commands: None once they are done, or why they were refused."""

    def __init__(self) -> None:
        self._all: WeakValueDictionary[str, Verdict] = WeakValueDictionary()

    def of(self, session: SessionId, command: str) -> Verdict:
        """Return a new future of what is said of a command."""
        verdict = Verdict(loop=asyncio.get_running_loop())
        verdict.session = session
        self._all[command] = verdict
        return verdict

    def waiting(self, session: SessionId) -> list[str]:
        """Return the commands of a session of which nothing has been said yet."""
        waiting = list(self._all.items())
        return [name for name, one in waiting if one.session == session and not one.done()]

    def sessions(self) -> set[SessionId]:
        """Return the sessions of those commands."""
        return {one.session for one in list(self._all.values()) if not one.done()}

    def tell(self, command: str, refusal: Refusal | None) -> None:
        """Say what became of a command, if somebody waits for it."""
        verdict = self._all.get(command)
        if verdict is not None and not verdict.done():
            verdict.set_result(refusal)

    def leave(self, session: SessionId | None = None) -> None:
        """Tell who waits for a session, or everybody, that there is no verdict here for now."""
        text = "the command is kept, but its session is not run by this process"
        for verdict in list(self._all.values()):
            if session in (None, verdict.session):
                _raise(verdict, Refused(text, "not_run_here"))

    def fail(self, error: StoreError) -> None:
        """Tell everybody that this node cannot go on."""
        for verdict in list(self._all.values()):
            _raise(verdict, error)


class Lookout:
    """Finds out in the store what those who wait here were not told."""

    def __init__(self, store: SessionReader, followers: Followers, verdicts: Verdicts) -> None:
        self._store = store
        self._followers = followers
        self._verdicts = verdicts

    async def look(self, session: SessionId) -> None:
        """Read what became of a session, and tell those who wait for it. Raises `Unavailable`."""
        for command in self._verdicts.waiting(session):
            settled = await self._store.settled(session, command)
            if settled is not None:
                refusal = _decode_refusal(settled.refusal) if settled.refusal else None
                self._verdicts.tell(command, refusal)
        for run in self._followers.runs_of(session):
            rows = await self._store.list(RunQuery(tenant=session.tenant, run=run, limit=1))
            if rows and (rows[0].status in TERMINAL or rows[0].status == "merged"):
                self._followers.ended(Ended(rows[0]))
            elif not rows:
                self._followers.unseen(run)
        if self._verdicts.waiting(session) or self._followers.runs_of(session):
            loaded = await self._store.load(session)
            if loaded is not None and loaded.quarantine is not None:
                self._followers.set_aside(session, loaded.quarantine)
                self._verdicts.leave(session)
        self._followers.news(session)


def _raise(verdict: Verdict, error: Exception) -> None:
    if not verdict.done():
        verdict.set_exception(error)
        verdict.exception()
