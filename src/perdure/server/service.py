"""A server: one node, its catalog, its keys, and the workers that are connected to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from perdure.api.errors import Rejected
from perdure.core.agent import ToolSpec
from perdure.core.errors import PerdureError
from perdure.ports.catalog import Catalog, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, Task
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings
from perdure.server.catalogued import Catalogued
from perdure.server.desk import Desk
from perdure.server.egress import Egress
from perdure.server.gards import free_all
from perdure.server.herald import Herald
from perdure.server.keys import Keyring
from perdure.server.leaving import Leaving
from perdure.server.limits import RequestLimit, RunLimit, SocketLimit, TenantLimits
from perdure.server.outbox import Outbox
from perdure.server.pool import Pool
from perdure.server.pulse import Pulse
from perdure.server.scheduler import Scheduler
from perdure.server.sealing import Seal
from perdure.server.sending import send
from perdure.server.setup import SetupLink
from perdure.server.webhooks import Webhooks

WATCHED_EVERY_MS = 1_000


class Service:
    """What the application serves."""

    def __init__(
        self,
        store: SessionStore,
        catalog: Catalog,
        keys: Keyring,
        seal: Seal,
        clock: Clock,
        telemetry: Telemetry,
        fresh: Callable[[int], bytes],
        *,
        settings: NodeSettings | None = None,
        limits: TenantLimits | None = None,
        egress: Egress | None = None,
    ) -> None:
        limits = limits or TenantLimits()
        self.store = store
        self.catalog = catalog
        self.keys = keys
        self.seal = seal
        self.clock = clock
        self.fresh = fresh
        """Returns so many random bytes."""
        self.leaving = Leaving()
        self.setup: SetupLink | None = None
        """The offer to make the first admin key, if nobody has one."""
        self.failure: PerdureError | None = None
        """Why it could not start, or cannot go on."""
        self.failed = asyncio.Event()
        """Set when it cannot go on: a new process has to open the store again."""
        self.limits: Callable[[str], TenantLimits] = lambda tenant: limits
        self.agents = Catalogued(catalog)
        self.pool = Pool(
            clock,
            telemetry,
            gard_of=_gard_of,
            is_native=lambda task: self.agents.is_native(task.session.tenant, task.session.agent),
            numbers=self._numbers,
            offers=self._offers,
        )
        self.node = Node(store, [self.pool], self.agents, clock, telemetry, settings=settings)
        self.requests = RequestLimit(self.limits)
        self.room = RunLimit(lambda tenant: self.limits(tenant).parked_runs_max)
        self.sockets = {
            "worker": SocketLimit(lambda tenant: self.limits(tenant).worker_sockets_max),
            "agent": SocketLimit(lambda tenant: self.limits(tenant).client_sockets_max),
        }
        egress = egress or Egress()
        self._outbox = Outbox(catalog, egress.post, seal.unseal, clock, telemetry)
        self.webhooks = Webhooks(catalog, egress, self._outbox)
        self._herald = Herald(catalog, self.webhooks, self.desk, clock, telemetry)
        self.node.listen(self._herald.hear)
        self._desks: dict[str, Desk] = {}
        self._scheduler = Scheduler(catalog, self._fire, clock, telemetry)
        self._watcher = Pulse("keys", self._watch, clock, telemetry)

    async def start(self) -> None:
        """Read the catalog, and go on with what was left unfinished."""
        try:
            await free_all(self.catalog)
            await self._outbox.free()
            await self.agents.load()
            for tenant in await self.catalog.tenants():
                await self.webhooks.load(tenant.slug)
                desk = self.desk(tenant.slug)
                going_on = await desk.rows(statuses=("queued", "running"))
                await desk.numbers.runs([row.id for row in going_on])
            await self.node.start()
        except PerdureError as error:
            self.failure = error
            raise
        self._scheduler.start()
        self._watcher.start()
        self._herald.start()
        self._outbox.start()

    async def stop(self) -> None:
        """Drain: cut every session at its next commit, and let the workers go. Safe twice."""
        if self.leaving.begun:
            return
        self.leaving.begin()
        await self._scheduler.stop()
        await self._watcher.stop()
        await self._herald.stop()
        await self._outbox.stop()
        self.pool.drain()
        await self.node.stop()

    def desk(self, tenant: str) -> Desk:
        """Return a tenant's desk."""
        desk = self._desks.get(tenant)
        if desk is None:
            catalog = TenantCatalog(self.catalog, tenant)
            desk = Desk(
                tenant,
                self.node,
                catalog,
                self.agents,
                self.pool,
                self.keys,
                self.clock,
                self.seal,
                self.fresh,
                self.leaving,
                self.room,
                self.webhooks,
            )
            self._desks[tenant] = desk
        return desk

    def admit(self, tenant: str) -> None:
        """Count a request of a tenant. Raises `Rejected` (429) if there were too many."""
        wait_ms = self.requests.wait_ms(tenant, self.clock.monotonic_ms())
        if wait_ms:
            seconds = -(-wait_ms // 1000)
            said = f"too many requests: try again in {seconds} s"
            raise Rejected(429, said, retry_after_s=seconds)

    async def _fire(
        self,
        tenant: str,
        agent_id: int,
        content: object,
        session_key: str | None,
        idempotency_key: str,
    ) -> str:
        """Send the message of a trigger."""
        desk = self.desk(tenant)
        agent = await desk.agent(agent_id, archived=False)
        return await send(
            desk,
            agent,
            content,
            key=session_key,
            idempotency_key=idempotency_key,
            trigger="schedule",
        )

    async def _watch(self) -> int:
        now = self.clock.now_ms()
        if self.node.failure is not None:
            self.failure = self.node.failure
            self.failed.set()
        await self.keys.tick(now)
        return now + WATCHED_EVERY_MS

    def _offers(self, task: ModelTask) -> Sequence[ToolSpec]:
        """Return the tools that a task's run is offered by now."""
        gard = task.meta.get("gard") if task.meta else None
        return self.agents.offered(task.session.tenant, task.session.agent, gard)

    def _numbers(self, task: Task) -> tuple[int | str, int | str]:
        """Return the numbers of a task's agent and run; of a run nobody asked for yet, its id."""
        known = self.desk(task.session.tenant).numbers.known("run", task.run)
        return int(task.session.agent), task.run if known is None else known


def _gard_of(task: Task) -> str | None:
    """Return the gard that a task's run is bound to: it came with the run's message."""
    gard = task.meta.get("gard") if task.meta else None
    return None if gard is None else str(gard)
