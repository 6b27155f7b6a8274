"""A server: one node, its catalog, its keys, and the workers that are connected to it."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
from collections.abc import Awaitable, Callable, Sequence

from perdure.api.errors import Rejected
from perdure.core.agent import ToolSpec
from perdure.core.errors import PerdureError
from perdure.ports.catalog import Catalog, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.cluster import Cluster, NodeCard
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, Task
from perdure.runtime.node import Node
from perdure.runtime.settings import NodeSettings, served
from perdure.server.catalogued import Catalogued
from perdure.server.changes import Changes, Hint
from perdure.server.desk import Desk
from perdure.server.egress import Egress
from perdure.server.exchange import Exchange
from perdure.server.gards import Claims
from perdure.server.held import Known
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
from perdure.server.servers import Servers, WorkerJoined
from perdure.server.setup import SetupLink
from perdure.server.webhooks import Webhooks
from perdure.wire.frames import CLOSE_TRY_AGAIN

VERSION = importlib.metadata.version("perdure")
WATCHED_EVERY_MS = 1_000
READ_TOGETHER = 16
"""So many tenants are read at a time when a server starts."""
KEY_TURNS = 30
"""Where other servers say which keys they revoke, each is looked at once in so many seconds."""


class Service:
    """What the application serves.

    With a `cluster` it shares its store and catalog with others, who know it by `name` and `url`.
    `operator` is the tenant whose admins look after the servers themselves.
    """

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
        cluster: Cluster | None = None,
        name: str = "",
        url: str | None = None,
        operator: str = "default",
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
        self.name, self.url, self.operator = name, url, operator
        self.changes = Changes(catalog, clock, telemetry, shared=cluster is not None)
        self.claims = Claims(catalog, clock, shared=cluster is not None)
        self.agents = Catalogued(catalog, self.changes, telemetry)
        self.pool = self._pool(telemetry)
        self.node = Node(
            store,
            [self.pool],
            self.agents,
            clock,
            telemetry,
            settings=settings or served(alone=cluster is None),
            cluster=cluster,
            card=self._card,
        )
        self.pool.may_start, self.node.on_renewed_late = self.node.may_start, self.pool.serve_all
        self.exchange = None if cluster is None else self._exchange(telemetry)
        self.servers = Servers(self.node, self.changes, clock)
        self.requests = RequestLimit(self.limits)
        self.room = RunLimit(lambda tenant: self.limits(tenant).parked_runs_max)
        self.sockets = {
            "worker": SocketLimit(lambda tenant: self.limits(tenant).worker_sockets_max),
            "agent": SocketLimit(lambda tenant: self.limits(tenant).client_sockets_max),
        }
        egress = egress or Egress()
        self._outbox = Outbox(catalog, egress.post, seal.unseal, clock, telemetry)
        self.webhooks = Webhooks(catalog, egress, self._outbox, self.changes)
        self._herald = Herald(catalog, self.webhooks, self.desk, clock, telemetry)
        self.node.listen(self._herald.hear)
        self._desks: dict[str, Desk] = {}
        self._scheduler = Scheduler(catalog, self._fire, clock, telemetry)
        self._watcher = Pulse("watcher", self._watch, clock, telemetry)
        self._peers: frozenset[str] = frozenset()
        self._attach(self.changes)

    def _pool(self, telemetry: Telemetry) -> Pool:
        """Return the pool of the workers that will connect to this server."""
        return Pool(
            self.clock,
            telemetry,
            gard_of=_gard_of,
            is_native=lambda task: self.agents.is_native(task.session.tenant, task.session.agent),
            numbers=self._numbers,
            offers=self._offers,
        )

    def _exchange(self, telemetry: Telemetry) -> Exchange:
        """Return what lends calls to other servers' pools, and borrows from them."""
        at, pool = self.node, self.pool
        return Exchange(
            at.owner, pool, at.bus, self.store, at.nodes, at.epoch_of, self.clock, telemetry
        )

    def _card(self) -> NodeCard:
        """Return what this server says of itself; the rest is its node's to say."""
        return NodeCard("", self.name, self.url, VERSION, workers=len(self.pool.members()))

    def _attach(self, changes: Changes) -> None:
        """Tell other servers of what is changed here, and do what is to be done about theirs."""
        changes.hint = lambda: self.node.bus.send(None, Hint())
        self.node.bus.on(Hint, lambda hint: changes.look_soon())
        self.node.bus.on(WorkerJoined, self._joined_elsewhere)
        self.keys.on_changed = functools.partial(changes.tell, "key")
        changes.reread = self._reread
        changes.acts = {
            "agents": self.agents.refresh,
            "endpoints": self.webhooks.load,
            "gards": self.claims.look,
            "key": lambda key_id: self.keys.look_at(key_id, self.clock.now_ms()),
            "drain": self.servers.leave,
        }

    def _joined_elsewhere(self, joined: WorkerJoined) -> None:
        """Let go of what is left of a worker here, as if its connection had ended just now."""
        for member in self.pool.members(joined.tenant):
            if member.id == joined.worker_id:
                self.pool.lose(member)
                member.connection.close(CLOSE_TRY_AGAIN)

    async def start(self) -> None:
        """Read the catalog, and go on with what was left unfinished."""
        try:
            await self.changes.open()
            await self.claims.free_all()
            if not self.changes.shared:
                await self._outbox.free()
            tenants = [tenant.slug for tenant in await self.catalog.tenants()]
            for at in range(0, len(tenants), READ_TOGETHER):
                await asyncio.gather(*map(self._reread, tenants[at : at + READ_TOGETHER]))
            await self.node.start()
            if self.exchange is not None:
                self.exchange.start()
        except PerdureError as error:
            self.failure = error
            raise
        self.changes.start()
        self._scheduler.start()
        self._watcher.start()
        self._herald.start()
        self._outbox.start()

    async def stop(self) -> None:
        """Drain: cut every session at its next commit, and let the workers go. Safe twice."""
        if self.leaving.begun:
            return
        self.leaving.begin()
        await self.changes.stop()
        await self._scheduler.stop()
        await self._watcher.stop()
        await self._herald.stop()
        await self._outbox.stop()
        self.pool.drain()
        if self.exchange is not None:
            await self.exchange.stop()
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
                self.changes,
                self.servers,
                self.store.durability,
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
        await self.keys.tick(now, KEY_TURNS if self.changes.shared else 1)
        await self.claims.keep()
        self._count([card.id for card in self.node.nodes()])
        return now + WATCHED_EVERY_MS

    def _count(self, nodes: Sequence[str]) -> None:
        """See who is there. For those that are gone, one of those that are left tells the rest."""
        self.room.nodes = max(1, len(nodes))
        if self._peers - set(nodes) and nodes[:1] == [self.node.owner]:
            self._herald.search_soon()
        self._peers = frozenset(nodes)

    async def _reread(self, tenant: str) -> None:
        """Read again what is kept in memory of a tenant."""
        await self.agents.refresh(tenant)
        await self.webhooks.load(tenant)

    def _offers(self, task: ModelTask) -> Sequence[ToolSpec]:
        """Return the tools that a task's run is offered by now."""
        gard = task.meta.get("gard") if task.meta else None
        return self.agents.offered(task.session.tenant, task.session.agent, gard)

    def _numbers(self, task: Task) -> Known | Awaitable[Known]:
        """Return the numbers of a task's agent and run, or find them: another node gave them."""
        numbers, agent = self.desk(task.session.tenant).numbers, int(task.session.agent)
        known = numbers.known(task.run)
        if known is not None:
            return agent, known

        async def find() -> Known:
            return agent, await numbers.learn(task.run)

        return find()


def _gard_of(task: Task) -> str | None:
    """Return the gard that a task's run is bound to: it came with the run's message."""
    gard = task.meta.get("gard") if task.meta else None
    return None if gard is None else str(gard)
