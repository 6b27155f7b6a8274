"""A node: it accepts commands for any session, and runs the sessions that it has claimed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from perdure.core import commands as c
from perdure.core.agent import Definition
from perdure.core.codec import Record
from perdure.core.errors import (
    Fenced,
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    PerdureError,
    Refused,
    StoreError,
)
from perdure.core.events import Mode
from perdure.core.ids import SessionId, digest
from perdure.core.limits import JSON_DEPTH_MAX, MESSAGE_BYTES_MAX, too_deep
from perdure.core.runs import RunRow, queued_row
from perdure.core.session import Refusal
from perdure.ports import faults
from perdure.ports.clock import Clock
from perdure.ports.session_store import InboxEntry, Receipt, RunQuery, SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, Task, Worker
from perdure.runtime.dispatcher import Dispatcher
from perdure.runtime.followers import Followers, quarantined
from perdure.runtime.handles import RecordedEvent, Run, answer_in, recorded
from perdure.runtime.heartbeat import Heartbeat
from perdure.runtime.host import Host
from perdure.runtime.loader import Loader
from perdure.runtime.probation import Probation
from perdure.runtime.recovery import Recovery
from perdure.runtime.settings import NodeSettings

KEY_CHARS_MAX = 512
IDLE_POLL_MS = 5


class Node:
    """One process's share of the work: its store, its workers, the agents it knows."""

    def __init__(
        self,
        store: SessionStore,
        workers: Sequence[Worker],
        agents: Mapping[str, Definition],
        clock: Clock,
        telemetry: Telemetry,
        *,
        tenant: str = "default",
        settings: NodeSettings | None = None,
    ) -> None:
        settings = settings or NodeSettings()
        self.tenant = tenant
        self.owner = clock.fresh_id()
        self._store = store
        self._agents = agents
        self._workers = workers
        self._clock = clock
        self._settings = settings
        self._followers = Followers()
        dispatcher = Dispatcher(workers, store, telemetry, settings.read_batch_records, self._text)
        probation = Probation(clock, settings.probation_ms)
        loader = Loader(
            store,
            agents,
            clock,
            telemetry,
            self.owner,
            settings.read_batch_records,
            self._followers.set_aside,
            probation,
        )
        self._host = Host(
            store,
            loader,
            dispatcher,
            agents,
            clock,
            telemetry,
            self._followers,
            probation,
            settings,
        )
        probation.activate = self._host.activate
        self._recovery = Recovery(
            store,
            agents,
            self._host.activate,
            self._host.active,
            probation,
            clock,
            telemetry,
            settings,
        )
        self._heartbeat = Heartbeat(
            store, clock, self.owner, settings.lease_ms, self._lease_lost, self._host.settle_all
        )
        dispatcher.may_start = self._heartbeat.holds
        self._host.on_store_failure = self._store_failed
        self._host.on_parked = self._recovery.nudge
        self._recovery.on_store_failure = self._store_failed
        self.failure: StoreError | None = None

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

    async def send(
        self,
        agent: str,
        content: Any,
        *,
        session: str | None = None,
        mode: Mode = "queue",
        idempotency_key: str | None = None,
        sender: str | None = None,
        meta: dict[str, Any] | None = None,
    ) -> Run:
        """Accept a message; when this returns, it is as durable as the store can make it.

        Without `session` the message gets a session of its own. The same `idempotency_key` gives
        the same run. Raises `NotFound` for an unknown agent, `LimitExceeded` for a message that is
        too large or an inbox that is full, `KeyReused` for a key that came with another message.
        """
        if agent not in self._agents:
            known = ", ".join(sorted(self._agents)) or "none"
            raise NotFound(f"there is no agent {agent!r} here; the agents are: {known}")
        if idempotency_key == "":
            raise InvalidInput("an idempotency key is not empty; leave it out to have none")
        if mode not in ("queue", "steer", "interrupt"):
            raise InvalidInput(f"mode {mode!r} is none of queue, steer, interrupt")
        run_id = self._clock.fresh_id()
        key = run_id if session is None else session
        if idempotency_key is not None:
            scope = "\x1f".join((self._store.identity, agent, session or "", idempotency_key))
            run_id = digest(scope.encode(errors="surrogatepass"))
            key = run_id if session is None else session
        _check_key(key)
        command = c.SendMessage(id=run_id, content=content, mode=mode, sender=sender, meta=meta)
        try:
            return await self._start(SessionId(self.tenant, agent, key), command)
        except KeyReused:
            raise KeyReused(
                f"the idempotency key {idempotency_key!r} was used with another message already; "
                "a new message needs a new key"
            ) from None

    async def retry(self, run_id: str) -> Run:
        """Go on with a failed or cancelled run where it stopped, as a new run of its session.

        What it had completed is in the history and is not done again.
        """
        row = await self.row(run_id)
        if row.status not in ("failed", "cancelled"):
            raise Refused(
                f"run {run_id} is {row.status}: only a failed or cancelled run can be retried",
                row.status,
            )
        if row.started_seq is None:
            raise Refused(f"run {run_id} was cancelled before it began: send its message again", "")
        again = c.SendMessage(id=self._clock.fresh_id(), retry_of=run_id)
        return await self._start(row.session, again)

    async def cancel(self, run_id: str, reason: str = "cancelled on request") -> None:
        """End a run. Raises `Refused` when it has ended already."""
        row = await self.row(run_id)
        fresh = self._clock.fresh_id()
        await self._ask(row.session, c.CancelRun(id=fresh, run=run_id, reason=reason))

    async def reply(
        self, run_id: str, content: Any, *, call: str | None = None, by: str | None = None
    ) -> None:
        """Answer the oldest open question of a run, or that of `call`.

        Raises `Refused` when there is none.
        """
        row = await self.row(run_id)
        fresh = self._clock.fresh_id()
        answer = c.AnswerQuestion(id=fresh, run=run_id, content=content, call=call, by=by)
        await self._ask(row.session, answer)

    async def resolve(
        self,
        run_id: str,
        call: str,
        resolution: Literal["happened", "did_not_happen", "tell_model"],
        *,
        attempt: int | None = None,
        content: Any = None,
        by: str = "person",
    ) -> None:
        """Say what became of a call whose outcome is unknown. Raises `Refused` if it is known.

        `attempt` is the one that was looked into, as `row.waiting_for` named it: of a later one the
        verdict says nothing, and is refused. None means the one that is asked about when this is
        read; a verdict that takes its time on the way may then settle an attempt nobody looked at.
        """
        row = await self.row(run_id)
        fresh = self._clock.fresh_id()
        await self._ask(
            row.session,
            c.ResolveCall(
                id=fresh,
                run=run_id,
                call=call,
                resolution=resolution,
                attempt=attempt if attempt is not None else _attempt_in(row, call),
                content=content,
                by=by,
            ),
        )

    async def run(self, run_id: str) -> Run:
        """Return a run by its id. Raises `NotFound`."""
        row = await self.row(run_id)
        return Run(self, self._followers, row.session, row.id)

    async def row(self, run_id: str) -> RunRow:
        """Return the row of a run. Raises `NotFound`."""
        rows = await self._store.list(RunQuery(tenant=self.tenant, run=run_id, limit=1))
        if not rows:
            raise NotFound(f"there is no run {run_id!r}")
        return rows[0]

    async def read(self, session: SessionId, after: int) -> AsyncIterator[RecordedEvent]:
        """Yield the durable events of a session after a position."""
        while True:
            page: list[Record] = await self._store.read(
                session, after, self._settings.read_batch_records
            )
            for record in page:
                after = record.seq
                yield recorded(record.seq, record.body)
            if len(page) < self._settings.read_batch_records:
                return

    async def answer_of(self, row: RunRow) -> Any:
        """Return the content of a completed run's answer; None for another run."""
        if row.answer is None:
            return None
        for record in await self._store.read(row.session, row.answer - 1, 1):
            return answer_in(recorded(record.seq, record.body).event, row)
        raise NotFound(f"event {row.answer} of {row.session} is missing")

    def check(self) -> None:
        """Raise what made this node give up, if something did."""
        if self.failure is not None:
            raise self.failure

    async def check_session(self, session: SessionId) -> None:
        """Raise `Quarantined` for a session that is set aside."""
        loaded = await self._store.load(session)
        if loaded is not None and loaded.quarantine is not None:
            self._followers.set_aside(session, loaded.quarantine)
            raise quarantined(session, loaded.quarantine)

    async def release(self, agent: str, key: str) -> None:
        """Lift the quarantine of a session and go on with it. Raises `NotFound`, `Refused`."""
        session = SessionId(self.tenant, agent, key)
        loaded = await self._store.load(session)
        if loaded is not None and loaded.quarantine is None:
            raise Refused(f"session {session} is not in quarantine", "not_quarantined")
        await self._store.release(session, None)
        self._host.activate(session)

    async def idle(self) -> None:
        """Wait until no session has anything to do by itself (parked ones do not count)."""
        while self._host.busy() and self.failure is None:
            passed = asyncio.Event()
            self._clock.call_later(IDLE_POLL_MS, passed.set)
            await passed.wait()

    async def _start(self, session: SessionId, command: c.SendMessage) -> Run:
        now = self._clock.now_ms()
        ending = self._followers.ending(session, command.id)
        receipt = await self._accept(session, command, now, queued_row(session, command, now))
        run = Run(self, self._followers, session, command.id, receipt)
        del ending
        return run

    async def _ask(self, session: SessionId, command: c.InboxCommand) -> None:
        """Accept a command and wait for what is decided. Raises `Refused`."""
        verdict = self._host.verdict(command.id)
        await self._accept(session, command, self._clock.now_ms(), None)
        try:
            refusal: Refusal | None = await verdict
        except Refused:
            await self.check_session(session)
            raise
        if refusal is not None:
            raise Refused(refusal.message, refusal.code)

    async def _accept(
        self, session: SessionId, command: c.InboxCommand, now: int, row: RunRow | None
    ) -> Receipt:
        self.check()
        if self._host.draining:
            raise PerdureError("this node is stopping and accepts nothing new")
        body = _encode(command)
        if len(body) > MESSAGE_BYTES_MAX:
            raise LimitExceeded(
                f"the message is {len(body)} bytes long; at most MESSAGE_BYTES_MAX = "
                f"{MESSAGE_BYTES_MAX} bytes are accepted"
            )
        as_recorded = c.decode_command(body, now)
        if too_deep(getattr(as_recorded, "content", None)):
            raise LimitExceeded(
                f"the message is nested deeper than JSON_DEPTH_MAX = {JSON_DEPTH_MAX} levels"
            )
        faults.reach("accept.before")
        receipt = await self._store.accept(InboxEntry(command.id, session, body, now), row)
        faults.reach("accept.after")
        if not receipt.duplicate:
            self._host.deliver(session, as_recorded)
        return receipt

    def _text(self, task: Task, piece: str) -> None:
        if isinstance(task, ModelTask) and task.request.purpose == "reply":
            self._followers.text(task.session, task.run, piece)

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


def _encode(content: Any) -> bytes:
    try:
        return msgspec.json.encode(content)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the message cannot be written as JSON: {error}") from None


def _attempt_in(row: RunRow, call: str) -> int | None:
    """Return the attempt of a call that a run's row asks a person about; None if it asks nobody."""
    asked = (wait for wait in row.waiting_for if wait["call"] == call)
    return next((wait.get("attempt") for wait in asked), None)


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise InvalidInput(f"the session key is a text, not {key!r}")
    odd = not key.isprintable() and any(
        ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in key
    )
    if not key or len(key) > KEY_CHARS_MAX or odd:
        raise InvalidInput(
            f"the session key {key[:40]!r} must have 1 to {KEY_CHARS_MAX} printable characters"
        )
