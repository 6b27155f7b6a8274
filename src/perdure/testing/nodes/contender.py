"""A process that wants sessions, and is stopped by others in the middle of whatever it does.

It claims, writes and lets go as fast as it can, renews its lease in between, and knows nothing of
the stop signals that it gets: what it does after one is what it had in mind before.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from perdure.adapters.clock import SystemClock
from perdure.bootstrap import open_store
from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.ports.session_store import Claimed, SessionStore
from perdure.testing.conformance.claimant import Claimant, submit
from perdure.testing.mutants import break_engine
from perdure.testing.nodes.recorder import TRACE_SUFFIX, Recorder

STEPS_MAX = 4
AGAIN_SECONDS = 0.02


class Contest(msgspec.Struct, frozen=True, tag=True):
    """A contender: its name, its store, the sessions it wants, where it notes what it does."""

    name: str
    store: str
    out: str
    sessions: tuple[str, ...]
    lease_ms: int
    seed: int
    mutant: str = ""


def session_of(name: str) -> SessionId:
    """Return the session with this name."""
    return SessionId("default", "contest", name)


async def contend(contest: Contest) -> int:
    """Contend until SIGTERM."""
    if contest.mutant:
        break_engine(contest.mutant)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    trace = Path(contest.out) / f"{contest.name}-{os.getpid()}{TRACE_SUFFIX}"
    opened: Any = await open_store(contest.store, SystemClock())
    contender = _Contender(contest, Recorder(opened, contest.name, trace))
    while not told.is_set():
        try:
            await contender.act()
        except PerdureError:
            contender.mine.clear()
            await asyncio.sleep(AGAIN_SECONDS)
    await opened.close()
    return 0


class _Contender:
    def __init__(self, contest: Contest, store: SessionStore) -> None:
        self._contest = contest
        self._store = store
        self._chance = random.Random(f"{contest.seed}-{contest.name}")
        self._owner = f"{contest.name}-{os.getpid()}"
        self._renewed = 0.0
        self._number = 0
        self.mine: dict[str, Claimant] = {}

    async def act(self) -> None:
        """Do one thing: renew if it is time, and else something with a session."""
        if time.monotonic() > self._renewed + self._contest.lease_ms / 3_000:
            self._renewed = time.monotonic()
            if not await self._store.renew(self._owner, self._contest.lease_ms):
                # One of them is kept, as by a node that has not heard: it has to be refused.
                for name in [*self.mine][1:]:
                    del self.mine[name]
        name = self._chance.choice(self._contest.sessions)
        me = self.mine.get(name)
        if me is None:
            await self._claim(name)
        elif self._chance.random() < 0.1:
            del self.mine[name]
            await self._store.release(me.session, me.token)
        else:
            await self._write(name, me)

    async def _claim(self, name: str) -> None:
        nonce = f"{self._owner}-{self._chance.getrandbits(60):x}"
        found = await self._store.claim(session_of(name), self._owner, nonce)
        if isinstance(found, Claimed):
            self.mine[name] = Claimant(found)

    async def _write(self, name: str, me: Claimant) -> None:
        steps = []
        for _ in range(self._chance.randint(1, STEPS_MAX)):
            self._number += 1
            body = {"epoch": me.token.epoch, "by": self._owner, "n": self._number}
            steps.append(me.step(msgspec.json.encode(body)))
        if any(await submit(self._store, *steps)):
            self.mine.pop(name, None)
