"""The integers that clients know runs and sessions by. Inside they are texts."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from perdure.core.ids import SessionId
from perdure.ports.catalog import Numbered, TenantCatalog

REMEMBERED_MAX = 10_000


class Numbers:
    """A tenant's numbers; the last used are remembered."""

    def __init__(self, catalog: TenantCatalog) -> None:
        self._catalog = catalog
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._runs: dict[int, str] = {}
        self._gathered: list[str] = []
        self._gathering: asyncio.Task[dict[str, int]] | None = None

    async def runs(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of runs; each gets one that has none."""
        return await self._numbers("run", ids)

    async def run(self, run: str) -> int:
        """Return the number of a run."""
        return (await self._numbers("run", [run]))[0]

    async def sessions(self, sessions: Sequence[SessionId]) -> list[int]:
        """Return the numbers of sessions; each gets one that has none."""
        return await self._numbers("session", [_text(session) for session in sessions])

    async def run_named(self, number: int) -> str | None:
        """Return the id of the run with this number; None if there is none."""
        run = self._runs.get(number)
        if run is None:
            run = await self._catalog.named("run", number)
            if run is not None:
                self._runs[number] = run
                while len(self._runs) > REMEMBERED_MAX:
                    del self._runs[next(iter(self._runs))]
                self._known["run", run] = number
        return run

    async def session_named(self, number: int) -> SessionId | None:
        """Return the session with this number; None if there is none."""
        text = await self._catalog.named("session", number)
        if text is None:
            return None
        agent, _, key = text.partition("/")
        return SessionId(self._catalog.tenant, agent, key)

    def known(self, run: str) -> int | None:
        """Return the number of a run if it is remembered; None if it would have to be asked for."""
        return self._known.get(("run", run))

    async def learn(self, run: str) -> int:
        """Return the number of a run; what is asked for at the same time is asked for together."""
        if self._gathering is None:
            self._gathering = asyncio.ensure_future(self._gather())
        self._gathered.append(run)
        return (await asyncio.shield(self._gathering))[run]

    async def _gather(self) -> dict[str, int]:
        await asyncio.sleep(0)
        runs, self._gathered, self._gathering = self._gathered, [], None
        return dict(zip(runs, await self.runs(runs), strict=True))

    async def _numbers(self, of: Numbered, ids: Sequence[str]) -> list[int]:
        missing = [id_ for id_ in ids if (of, id_) not in self._known]
        if missing:
            for id_, number in zip(missing, await self._catalog.numbers(of, missing), strict=True):
                self._known[of, id_] = number
        found = []
        for id_ in ids:
            self._known.move_to_end((of, id_))
            found.append(self._known[of, id_])
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return found


def _text(session: SessionId) -> str:
    return f"{session.agent}/{session.key}"
