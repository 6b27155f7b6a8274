"""The herald reads what runs do from their logs, and has their tenants' endpoints owed it.

What endpoints are owed is never lost, although a run's log and the deliveries are in two files:

1. Before a run begins it is written down as untold (`Webhooks.expect`).
2. A commit of the run is durable. The herald is called, and reads the log after what was told.
3. Each event becomes a delivery, whose id follows from the run, the event and the endpoint.
4. How far the run was told is written down; a run that has ended is untold no more.

A crash after 1, 2 or 3 leaves the untold run. At the start each of them is read again, and what had
become a delivery is not owed twice, because its id is taken. Runs that are in progress and were not
written down (they began before their tenant had endpoints, or not through this server) are found at
the start, and when they go on. Once in an hour untold runs that ended long ago are looked for. When
a node is gone, another one looks as if it had just started.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from perdure.api.notices import notice
from perdure.core.errors import NotFound
from perdure.core.runs import RunRow
from perdure.ports.catalog import Catalog, Stale
from perdure.ports.clock import Clock
from perdure.ports.entries import UntoldRun
from perdure.ports.telemetry import Telemetry
from perdure.server.desk import UNENDED, Desk
from perdure.server.pulse import Pulse
from perdure.server.telling import Telling
from perdure.server.webhooks import Webhooks

TOGETHER_MAX: Final = 32
"""So many runs are read at a time."""

TELLINGS_MAX: Final = 1_000
"""So many runs' logs are read on where they were left; others from the run's beginning."""

UNTOLD_READ: Final = 500
LOOK_MS: Final = 30_000
SEARCH_MS: Final = 3_600_000
ABSENT_MS: Final = 60_000
"""A run that was written down and never came is forgotten after this time."""

Place = tuple[str, str]


class Herald:
    """Tells the outbox about the runs of all tenants that have endpoints."""

    def __init__(
        self,
        catalog: Catalog,
        webhooks: Webhooks,
        desk: Callable[[str], Desk],
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._catalog = catalog
        self._webhooks = webhooks
        self._desk = desk
        self._clock = clock
        self._pulse = Pulse("herald", self._look, clock, telemetry)
        self._news: dict[Place, None] = {}
        self._tellings: OrderedDict[Place, Telling] = OrderedDict()
        self._search_at: int | None = None

    def start(self) -> None:
        """Tell what is untold, now and from then on."""
        self._pulse.start()

    async def stop(self) -> None:
        """Tell nothing more; the rest is told after the next start."""
        await self._pulse.stop()

    async def run_once(self) -> None:
        """Tell what is untold at this moment, without having to be started."""
        await self._look()

    def search_soon(self) -> None:
        """Look for everything that is untold, as at the start: another node is gone that told."""
        self._search_at = None
        self._pulse.nudge(self._clock.now_ms())

    def hear(self, rows: Iterable[RunRow]) -> None:
        """Take note of runs that have news."""
        news = [(row.session.tenant, row.id) for row in rows]
        told = [place for place in news if self._webhooks.listens(place[0])]
        if told:
            self._news.update(dict.fromkeys(told))
            self._pulse.nudge(self._clock.now_ms())

    async def _look(self) -> int:
        now = self._clock.now_ms()
        if self._search_at is None:
            await self._search(everything=True)
        elif now >= self._search_at:
            await self._search(everything=False)
        if self._search_at is None or now >= self._search_at:
            self._search_at = now + SEARCH_MS
        failed: dict[Place, BaseException] = {}
        while self._news:
            places = list(self._news)[:TOGETHER_MAX]
            for place in places:
                del self._news[place]
            found = await asyncio.gather(*map(self._tell, places), return_exceptions=True)
            failed |= {place: why for place, why in zip(places, found, strict=True) if why}
        if failed:  # the others were told all the same
            self._news.update(dict.fromkeys(failed))
            raise next(iter(failed.values()))
        return self._clock.now_ms() + LOOK_MS

    async def _search(self, *, everything: bool) -> None:
        """Find what is untold; without `everything` only of runs that have ended, or are not."""
        for tenant in await self._catalog.tenants():
            slug, desk = tenant.slug, self._desk(tenant.slug)
            if everything and await self._webhooks.surely_listens(slug):
                await self._webhooks.expect_all(slug, await desk.rows(statuses=UNENDED))
            after: int | None = None
            while page := await self._catalog.list(slug, UntoldRun, after=after, limit=UNTOLD_READ):
                after = page[-1].id
                for untold in page:
                    if everything or not await self._goes_on(desk, untold.name):
                        self._news[slug, untold.name] = None

    async def _goes_on(self, desk: Desk, run: str) -> bool:
        try:
            return (await desk.runs.row(run)).status in UNENDED
        except NotFound:
            return False

    async def _tell(self, place: Place) -> None:
        """Tell of a run what was not told yet."""
        tenant, run = place
        desk, telling = self._desk(tenant), self._tellings.pop(place, None)
        untold = await self._catalog.find(tenant, UntoldRun, run)
        try:
            row = await desk.runs.row(run)
        except NotFound:
            if untold is not None and self._clock.now_ms() >= untold.inserted_at + ABSENT_MS:
                await self._catalog.delete(tenant, UntoldRun, untold.id)
            return
        if untold is None and row.status in UNENDED:
            await self._webhooks.expect(tenant, run)
            untold = await self._catalog.find(tenant, UntoldRun, run)
        if untold is None or row.status == "queued":
            return
        telling = telling or Telling(desk, row)
        told = await self._publish(desk, row, telling, untold.told)
        if telling.over or row.status == "merged":
            await self._catalog.delete(tenant, UntoldRun, untold.id)
            return
        if told > untold.told:
            with contextlib.suppress(Stale):  # another node has told of it at the same time
                await self._catalog.update(tenant, replace(untold, told=told))
        self._tellings[place] = telling
        while len(self._tellings) > TELLINGS_MAX:
            self._tellings.popitem(last=False)

    async def _publish(self, desk: Desk, row: RunRow, telling: Telling, told: int) -> int:
        """Publish what comes after the sequence `told`; return the last that was."""
        agent = int(row.session.agent)
        async for event in telling.read():
            if event.sequence <= told:
                continue
            run = await desk.numbers.run(row.id)
            (conversation,) = await desk.numbers.sessions([row.session])
            noticed = notice(event, run, agent, conversation)
            if noticed is None:
                continue
            at_ms = round(datetime.fromisoformat(event.inserted_at).timestamp() * 1000)
            event_id = f"{row.id}/{event.sequence}"
            await self._webhooks.outbox.publish(
                desk.tenant, event_id, noticed.type, noticed.data, at_ms, agent
            )
            told = event.sequence
        return told
