"""A node: it accepts commands for any session, and runs the sessions that it has claimed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure.core.errors import Fenced, PerdureError, StoreError
from perdure.ports.clock import Clock
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, Task, Worker
from perdure.runtime.agents import Agents
from perdure.runtime.dispatcher import Dispatcher
from perdure.runtime.followers import Followers, OnRows
from perdure.runtime.heartbeat import Heartbeat
from perdure.runtime.host import Host
from perdure.runtime.loader import Loader
from perdure.runtime.probation import Probation
from perdure.runtime.recovery import Recovery
from perdure.runtime.settings import NodeSettings
from perdure.runtime.tenancy import Tenancy

IDLE_POLL_MS = 5


class Node(Tenancy):
    """One process's share of the work: its store, its workers, the agents it knows.

    It is itself what its own tenant may ask; `of` gives the same for another one.
    """

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
    ) -> None:
        settings = settings or NodeSettings()
        self.owner = clock.fresh_id()
        self.failure: StoreError | None = None
        self._workers = workers
        followers = Followers()
        dispatcher = Dispatcher(workers, store, telemetry, settings.read_batch_records, self._text)
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
        )
        host = Host(
            store, loader, dispatcher, agents, clock, telemetry, followers, probation, settings
        )
        super().__init__(
            tenant, store, agents, host, followers, clock, settings, self._raise_failure
        )
        probation.activate = host.activate
        self._recovery = Recovery(
            store, agents, host.activate, host.active, probation, clock, telemetry, settings
        )
        self._heartbeat = Heartbeat(
            store, clock, self.owner, settings.lease_ms, self._lease_lost, host.settle_all
        )
        dispatcher.may_start = self._heartbeat.holds
        host.on_store_failure = self._store_failed
        host.on_parked = self._recovery.nudge
        self._recovery.on_store_failure = self._store_failed

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

    async def start(self, *, recover: bool = True) -> None:
        """Take a lease, and recover what was left unfinished."""
        await self._heartbeat.start()
        if recover:
            await self._recovery.run_once()

    async def stop(self) -> None:
        """Drain: take nothing new, cut at the next commit, release every session."""
        await self._recovery.stop()
        if self.failure is None:
            await self._host.drain()
        await self._heartbeat.stop()
        self._followers.fail(PerdureError("this node has stopped; start one to go on with the run"))
        for worker in self._workers:
            await worker.close()

    async def idle(self) -> None:
        """Wait until no session has anything to do by itself (parked ones do not count)."""
        while self._host.busy() and self.failure is None:
            passed = asyncio.Event()
            self._clock.call_later(IDLE_POLL_MS, passed.set)
            await passed.wait()

    def _text(self, task: Task, piece: str) -> None:
        if isinstance(task, ModelTask) and task.request.purpose == "reply":
            self._followers.text(task.session, task.run, piece)

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _lease_lost(self, error: StoreError) -> None:
        if isinstance(error, Fenced):
            self._host.lose_all(error)
        else:
            self._store_failed(error)

    def _store_failed(self, error: StoreError) -> None:
        if self.failure is None:
            self.failure = error
            self._host.lose_all(error)
            self._followers.fail(error)
