"""What a desk needs for webhooks that go out: where they may go, and which runs are to be told.

Before a run begins it is written down as untold, if its tenant has endpoints. Whatever happens
then, `perdure.server.herald` finds it again, at the latest after the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from perdure.core.runs import RunRow
from perdure.ports.catalog import Catalog, NameTaken
from perdure.ports.entries import Endpoint, UntoldRun
from perdure.server.changes import Changes
from perdure.server.egress import Egress
from perdure.server.outbox import Outbox

TOGETHER_MAX: Final = 500


class Webhooks:
    """The way out, what is owed over it, and the tenants that have endpoints."""

    def __init__(self, catalog: Catalog, egress: Egress, outbox: Outbox, changes: Changes) -> None:
        self.egress = egress
        self.outbox = outbox
        self._catalog = catalog
        self._changes = changes
        self._listening: set[str] = set()

    async def load(self, tenant: str) -> None:
        """Look whether a tenant has endpoints: at the start, and when one was deleted."""
        if not await self._has_endpoint(tenant):
            self._listening.discard(tenant)
        # One that was made meanwhile may have been missed before, and is seen now.
        if await self._has_endpoint(tenant):
            self._listening.add(tenant)

    async def _has_endpoint(self, tenant: str) -> bool:
        return bool(await self._catalog.list(tenant, Endpoint, limit=1))

    def listens(self, tenant: str) -> bool:
        """Say whether a tenant's runs are to be told, as far as it is known here."""
        return tenant in self._listening

    async def surely_listens(self, tenant: str) -> bool:
        """Say whether a tenant's runs are to be told, whatever other servers have done meanwhile.

        `perdure.server.handlers.endpoints` waits with the answer to who makes the first endpoint
        until all servers know of it; one that may have missed that has to look.
        """
        if tenant not in self._listening and not self._changes.is_current():
            await self.load(tenant)
        return tenant in self._listening

    def listen(self, tenant: str) -> None:
        """Have a tenant's runs told: it is about to have an endpoint."""
        self._listening.add(tenant)

    async def expect(self, tenant: str, *runs: str) -> None:
        """Write down runs as untold, if the tenant has endpoints; safe to do again."""
        if await self.surely_listens(tenant):
            await asyncio.gather(*(self._keep(tenant, run) for run in runs))

    async def expect_all(self, tenant: str, rows: Sequence[RunRow]) -> None:
        """Write down many runs that are in progress, as `expect` does."""
        for start in range(0, len(rows), TOGETHER_MAX):
            await self.expect(tenant, *(row.id for row in rows[start : start + TOGETHER_MAX]))

    async def _keep(self, tenant: str, run: str) -> None:
        with suppress(NameTaken):
            await self._catalog.create(tenant, UntoldRun(name=run))
