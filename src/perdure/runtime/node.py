"""A node: it accepts commands for any session, and runs the sessions that it has claimed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from perdure.core.codec import GENERATION
from perdure.core.errors import Broken, Fenced, PerdureError, StoreError
from perdure.core.ids import SessionId
from perdure.ports.clock import Clock
from perdure.ports.cluster import Cluster, NodeCard
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, Task, Worker
from perdure.runtime.agents import Agents
from perdure.runtime.bus import Bus, Released
from perdure.runtime.dispatcher import Dispatcher
from perdure.runtime.elsewhere import Elsewhere
from perdure.runtime.followers import Followers, OnRows
from perdure.runtime.heartbeat import Heartbeat
from perdure.runtime.host import Host
from perdure.runtime.loader import Loader
from perdure.runtime.post import Post
from perdure.runtime.presence import Presence
from perdure.runtime.probation import Probation
from perdure.runtime.recovery import Recovery
from perdure.runtime.settings import CLUSTERED, NodeSettings
from perdure.runtime.tenancy import Tenancy

IDLE_POLL_MS = 5
RELEASED_EVERY_MS = 100
"""How often a node that drains tells the others to look for what it let go."""


class Node(Tenancy):
    """One process's share of the work: its store, its workers, the agents it knows.

    It is itself what its own tenant may ask; `of` gives the same for another one.
    """

    on_renewed_late: Callable[[], None] | None = None
    """Called when calls may be started again, after a time when they might not."""

    def __init__(
        self,
        store: SessionStore,
        workers: Sequence[Worker],
        agents: Agents,
        clock: Clock,
        telemetry: Telemetry,
        *,
        tenant: str = "default",
        settings: NodeSettings | None = None,
        cluster: Cluster | None = None,
        card: Callable[[], NodeCard] = lambda: NodeCard(id=""),
    ) -> None:
        settings = settings or (NodeSettings() if cluster is None else CLUSTERED)
        self.owner = clock.fresh_id()
        self.cluster = cluster
        self.bus = Bus(cluster, telemetry)
        self._says = card
        self._started_at = clock.now_ms()
        self.failure: StoreError | None = None
        self._workers = workers
        followers = Followers()
        dispatcher = Dispatcher(
            workers, store, telemetry, clock, settings.read_batch_records, self._text
        )
        probation = Probation(clock, settings.probation_ms)
        loader = Loader(
            store,
            agents,
            clock,
            telemetry,
            self.owner,
            settings.read_batch_records,
            followers.set_aside,
            probation,
            settings.strikes_max,
        )
        self._post = Post(store, clock, telemetry)
        shared = (clock, telemetry, followers, probation, settings)
        host = Host(store, loader, dispatcher, self._post, agents, *shared)
        super().__init__(
            tenant, store, agents, host, followers, clock, settings, self._raise_failure
        )
        dispatcher.gate_of, dispatcher.peers_of = agents.gate, agents.peers
        probation.activate = host.activate
        self._recovery = Recovery(
            store,
            agents,
            host.activate,
            host.active,
            probation,
            clock,
            telemetry,
            settings,
            self.owner,
            host.look,
        )
        self._heartbeat = Heartbeat(
            store, clock, self.owner, settings.lease_ms, self._lease_lost, self._renewed_late
        )
        self._telemetry = telemetry
        self._unlike = self._recovery.unlike = loader.unlike
        self._presence: Presence | None = None
        self._elsewhere: Elsewhere | None = None
        if cluster is not None:
            self._know_others(cluster)
        dispatcher.may_start = self._recovery.holds = self.may_start
        host.on_store_failure = self._store_failed
        host.on_parked = self._recovery.nudge
        self._recovery.on_store_failure = self._store_failed

    def _know_others(self, cluster: Cluster) -> None:
        """Let what happens at other nodes come here, and tell them what they wait for."""
        host, clock = self._host, self._clock
        self._presence = Presence(
            cluster, clock, self._telemetry, self._settings.lease_ms, self.card, self.bus.hear
        )
        self._elsewhere = Elsewhere(
            self.owner,
            self._store,
            self.bus,
            self._followers,
            clock,
            host.is_active,
            host.verdicts,
            host.lookout,
        )
        self._elsewhere.on_knock = host.look
        host.on_committed = self._elsewhere.committed
        host.on_run_elsewhere = self._elsewhere.run_by
        self._recovery.place = self._presence.place
        self._recovery.peers = lambda: len(self.nodes())
        if not self._agents.are_shared:
            self._unlike.peers = self._recovery.peers
        self.bus.on(Released, self._released)

    def of(self, tenant: str) -> Tenancy:
        """Return what a tenant may ask of this node."""
        return Tenancy(
            tenant,
            self._store,
            self._agents,
            self._host,
            self._followers,
            self._clock,
            self._settings,
            self.check,
        )

    def listen(self, on_rows: OnRows) -> None:
        """Call back with the rows of runs, of any tenant, that a durable commit changed."""
        self._followers.on_rows = on_rows

    def card(self) -> NodeCard:
        """Return what this node says of itself to others."""
        return replace(
            self._says(),
            id=self.owner,
            generation=GENERATION,
            started_at=self._started_at,
            draining=self._host.draining,
            sessions=self._host.active(),
        )

    def nodes(self) -> list[NodeCard]:
        """Return the nodes that were there the last time this one looked, itself included."""
        return [self.card()] if self._presence is None else self._presence.nodes

    def may_start(self) -> bool:
        """Say whether the lease is certainly alive: without it nothing new is started."""
        return self._heartbeat.holds()

    def epoch_of(self, session: SessionId) -> int:
        """Return the epoch of the claim under which a session is run here; 0 if it is not."""
        return self._host.epoch_of(session)

    async def start(self, *, recover: bool = True) -> None:
        """Take a lease, and recover what was left unfinished."""
        await self._heartbeat.start()
        if self._presence is not None and self._elsewhere is not None:
            await self._presence.start()
            self._elsewhere.start()
        if recover:
            await self._recovery.run_once()

    async def stop(self) -> None:
        """Drain: take nothing new, cut at the next commit, release every session."""
        await self._recovery.stop()
        if self.failure is None:
            draining = asyncio.ensure_future(self._host.drain())
            await self._say_that_it_drains(draining)
            await draining
        await self._post.close()
        await self._heartbeat.stop()
        if self._presence is not None and self._elsewhere is not None:
            await self._elsewhere.stop()
            await self._presence.stop()
        self._followers.fail(PerdureError("this node has stopped; start one to go on with the run"))
        for worker in self._workers:
            await worker.close()

    def _released(self, released: Released) -> None:
        if self._presence is not None:
            self._presence.drains(released.node)
        self._recovery.nudge(self._clock.now_ms())

    async def _say_that_it_drains(self, draining: asyncio.Future[None]) -> None:
        """Have others look for what this node lets go, at once and as long as it does."""
        if self._presence is None:
            return
        await asyncio.sleep(0)
        await self._presence.announce()
        released = Released(self.owner)
        while not draining.done():
            self.bus.send(None, released)
            passed = asyncio.Event()
            pause = self._clock.call_later(RELEASED_EVERY_MS, passed.set)
            draining.add_done_callback(partial(_set, passed))
            await passed.wait()
            pause.cancel()
        self.bus.send(None, released)

    async def idle(self) -> None:
        """Wait until no session has anything to do by itself (parked ones do not count)."""
        while self._host.busy() and self.failure is None:
            passed = asyncio.Event()
            self._clock.call_later(IDLE_POLL_MS, passed.set)
            await passed.wait()

    def _text(self, task: Task, piece: str) -> None:
        if isinstance(task, ModelTask) and task.request.purpose == "reply":
            self._followers.text(task.session, task.run, piece)
            if self._elsewhere is not None:
                self._elsewhere.text(task.session, task.run, piece)

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _renewed_late(self) -> None:
        self._host.settle_all()
        if self.on_renewed_late is not None:
            self.on_renewed_late()

    def _lease_lost(self, error: StoreError) -> None:
        if isinstance(error, Fenced):
            self._host.lose_all(error)
            if self.on_renewed_late is not None:
                self.on_renewed_late()
        elif isinstance(error, Broken):
            self._store_failed(error)
        else:
            self._telemetry.emit("store.unavailable", session="", error=str(error))

    def _store_failed(self, error: StoreError) -> None:
        if self.failure is None:
            self.failure = error
            self._host.lose_all(error)
            self._followers.fail(error)


def _set(event: asyncio.Event, done: asyncio.Future[None]) -> None:
    event.set()
