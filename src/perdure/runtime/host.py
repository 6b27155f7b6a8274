"""The host runs sessions: it decides, commits, dispatches, and lets them go.

Decisions run ahead of the disk: a command is decided on the newest state while earlier commits are
under way, and the store keeps their order. Nothing outside learns of a decision before it is
durable. When a commit fails, everything decided after it fails too, and the session is loaded anew:
facts that never happened leave no trace. So it is when the store did not answer, and nobody knows
what it holds: the session is claimed again, and what is on record counts.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from perdure.core.codec import GENERATION, Record, seal
from perdure.core.commands import (
    Accepted,
    AnyCommand,
    Doubt,
    FireTimer,
    Report,
    SendMessage,
    decode_command,
)
from perdure.core.errors import (
    Broken,
    Conflict,
    Fenced,
    InvalidInput,
    PerdureError,
    StoreError,
    Unavailable,
)
from perdure.core.ids import SessionId
from perdure.core.limits import SNAPSHOT_EVERY_EVENTS
from perdure.core.runs import RunRow, rows_of
from perdure.core.session import Context, Decision, Refusal, decide, due, wake_at
from perdure.core.state import State, encode_snapshot
from perdure.ports import faults
from perdure.ports.clock import Clock, Timer
from perdure.ports.session_store import NotClaimed, SessionStore, StepCommit
from perdure.ports.telemetry import Telemetry
from perdure.runtime.actor import Actor
from perdure.runtime.agents import Agents
from perdure.runtime.bringing import bring, is_loss, outcomes, pause
from perdure.runtime.dispatcher import Dispatcher, Keep, executable
from perdure.runtime.followers import Followers
from perdure.runtime.kept import Blobs, Kept
from perdure.runtime.loader import Found, Loader
from perdure.runtime.post import Post
from perdure.runtime.probation import Probation
from perdure.runtime.settings import NodeSettings
from perdure.runtime.timekeeper import Timekeeper
from perdure.runtime.verdicts import Lookout, Verdicts

DUE_AT_ONCE = 0
AGAIN_MS, AGAIN_MS_MAX = 200, 3_000
"""After how long a session is loaded again that the store did not answer for, at first and at most.
"""
OnElsewhere = Callable[[SessionId, str | None], None]
"""Called with a session that another node runs, and that node if it is known."""

_encode_refusal = msgspec.json.Encoder().encode


class Host:
    """The sessions that this node runs."""

    def __init__(
        self,
        store: SessionStore,
        loader: Loader,
        dispatcher: Dispatcher,
        post: Post,
        agents: Agents,
        clock: Clock,
        telemetry: Telemetry,
        followers: Followers,
        probation: Probation,
        settings: NodeSettings,
    ) -> None:
        self._store = store
        self._loader = loader
        self._dispatcher = dispatcher
        self._post = post
        self._agents = agents
        self._clock = clock
        self._telemetry = telemetry
        self._followers = followers
        self._probation = probation
        self._settings = settings
        self._timekeeper = Timekeeper(clock, self._fire_due)
        self._actors: dict[SessionId, Actor] = {}
        self._mailboxes: dict[SessionId, list[AnyCommand]] = {}
        self._lingering: OrderedDict[Actor, None] = OrderedDict()
        self._sweep_timer: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._activations = asyncio.Semaphore(settings.activations_max)
        self._kept = Kept()
        self.verdicts = Verdicts()
        self.lookout = Lookout(store, followers, self.verdicts)
        self._look_again: set[SessionId] = set()
        self._pauses: dict[SessionId, int] = {}
        self._unsaved: dict[SessionId, list[Report]] = {}
        self._progress = asyncio.Event()
        self._generation = 0
        self.draining = self._is_late = False
        self.on_store_failure: Callable[[StoreError], None] = lambda error: None
        self.on_parked: Callable[[int], None] = lambda at: None
        self.on_committed: Callable[[SessionId], None] = lambda session: None
        self.on_run_elsewhere: OnElsewhere = lambda session, node: self.verdicts.leave(session)
        dispatcher.attach(self._report, self._dispatch_failed, self._bring_soon)
        post.attach(self._report, self.deliver, self._dispatch_failed)

    def deliver(self, session: SessionId, command: AnyCommand) -> None:
        """Give a command to a session, loading it if need be."""
        actor = self._actors.get(session)
        if actor is not None:
            self._handle(actor, command)
        else:
            self.activate(session, command)

    def activate(self, session: SessionId, command: AnyCommand | None = None) -> None:
        """Claim and load a session in the background, if it is not active here already."""
        if session in self._actors:
            return
        if self.draining:
            self.verdicts.leave(session)
            return
        loading = session in self._mailboxes
        mailbox = self._mailboxes.setdefault(session, [])
        if command is not None:
            mailbox.append(command)
        if not loading:
            self._spawn(self._activate(session))

    def look(self, session: SessionId) -> None:
        """Take in what was accepted for a session at other nodes."""
        actor = self._actors.get(session)
        if actor is not None:
            self._spawn(self._look(actor))
        elif session in self._mailboxes:
            self._look_again.add(session)
        else:
            self.activate(session)

    def active(self) -> int:
        """Return how many sessions are loaded or being loaded."""
        return len(self._actors) + len(self._mailboxes)

    def is_active(self, session: SessionId) -> bool:
        """Say whether a session is loaded or being loaded."""
        return session in self._actors or session in self._mailboxes

    def epoch_of(self, session: SessionId) -> int:
        """Return the epoch of the claim under which a session is run here; 0 if it is not."""
        actor = self._actors.get(session)
        return 0 if actor is None else actor.token.epoch

    def settle_all(self) -> None:
        """Take up again what was not started while the lease was in doubt."""
        for actor in tuple(self._actors.values()):
            if not actor.gone and actor.submitted == 0:
                self._settle(actor)

    def busy(self) -> bool:
        """Say whether a session is being loaded, written, or waits for a worker."""
        if self._mailboxes or self._pauses:
            return True
        return any(actor not in self._lingering for actor in self._actors.values())

    async def drain(self) -> None:
        """Cut every session at its next commit and release it; wait for begun `once` calls.

        What workers did and could not be written is put into inboxes, as long as there is time.
        """
        self.draining = self._dispatcher.draining = self._post.draining = True
        for session in tuple(self._unsaved):
            self._keep(session, self._unsaved.pop(session))
        late = self._clock.call_later(self._settings.drain_ms, self._cut_short)
        while self._actors or self._mailboxes:
            self._progress.clear()
            for actor in tuple(self._actors.values()):
                self._dispatcher.cancel_unbegun(actor)
                if actor.submitted == 0 and not actor.inflight:
                    self._release(actor)
            if self._actors or self._mailboxes:
                await self._progress.wait()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        late.cancel()
        self.verdicts.leave()

    def _cut_short(self) -> None:
        self._is_late = True
        for actor in tuple(self._actors.values()):
            self._release(actor)

    def lose_all(self, error: StoreError) -> None:
        """Drop every session; a store that still answers is told so.

        When a lease ran out its claims are void. But one that reached the store after the renewal
        is not, and nobody else could take that session while this node lives.
        """
        self._generation += 1
        is_over = not isinstance(error, Fenced)
        for actor in tuple(self._actors.values()):
            self._forget(actor, "none" if is_over else "all")
            if not is_over:
                self._spawn(self._let_go_and_return(actor))
        if is_over:
            self.verdicts.fail(error)

    async def _activate(self, session: SessionId) -> None:
        generation, loaded = self._generation, None
        failed: StoreError | None = None
        try:
            async with self._activations:
                loaded = await self._loader.load(session)
        except (Fenced, Conflict) as error:
            self._telemetry.emit("session.fenced", session=str(session), version=str(error))
        except StoreError as error:
            failed = error
        except Exception as error:  # noqa: BLE001  nobody else would see it
            failed = Broken(f"{session} could not be claimed: {error!r}")
        finally:
            mailbox = self._mailboxes.pop(session)
            look_again = session in self._look_again
            self._look_again.discard(session)
            self._progress.set()
        unsaved = self._unsaved.pop(session, [])
        if failed is not None:
            self._keep(session, [*unsaved, *outcomes(mailbox)])
            self._try_again(session, failed)
            return
        was_lost = self._pauses.pop(session, None) is not None
        if not isinstance(loaded, Found):
            for report in (*unsaved, *outcomes(mailbox)):
                self._bring_soon(session, report)
            if isinstance(loaded, NotClaimed) and loaded.why in ("held", "newer"):
                self.on_run_elsewhere(session, loaded.owner)
            else:
                self.verdicts.leave(session)
        elif generation == self._generation:
            self._begin(loaded, [*unsaved, *loaded.inbox, *mailbox])
            if look_again:
                self.look(session)
            if was_lost:
                self._spawn(self._catch_up(session))
        else:
            self._keep(session, [*unsaved, *outcomes(mailbox)])
            self._probation.leave(session)
            self._spawn(self._let_go_and_return(loaded.actor))

    def _begin(self, found: Found, commands: Sequence[AnyCommand]) -> None:
        """Run a session that was loaded, with what waits for it."""
        actor, inbox, suspect = found
        self._actors[actor.session] = actor
        if suspect is not None:
            for message in inbox:
                if isinstance(message, SendMessage) and message.accepted_at < suspect:
                    actor.offered.add(message.id)
                    actor.waiting[message.id] = message
            self._handle(actor, Doubt(since=suspect))
        for command in commands:
            if not actor.gone:
                self._handle(actor, command)
        if not actor.gone and actor.submitted == 0:
            self._settle(actor)

    async def _look(self, actor: Actor) -> None:
        try:
            loaded = await self._store.load(actor.session)
        except Unavailable:
            return  # the next scan names the session again
        for entry in loaded.inbox if loaded is not None else ():
            if not actor.gone and entry.id not in actor.offered:
                try:
                    command = decode_command(entry.command, entry.accepted_at)
                except InvalidInput as error:
                    self._set_aside(actor, str(error))
                    return
                self._handle(actor, command)

    def _bring_soon(self, session: SessionId, report: Report) -> None:
        if not is_loss(report):
            self._spawn(self._bring(session, report))

    async def _bring(self, session: SessionId, report: Report) -> None:
        """Put a report into a session's inbox, and see that it is read."""
        at = self._store, self._clock, self._telemetry
        try:
            if await bring(*at, session, report, lambda: not self._is_late):
                self.look(session)
        except PerdureError as error:
            said = str(error)
            self._telemetry.emit("store.unavailable", session=str(session), error=said)

    def _keep(self, session: SessionId, reports: Sequence[Report]) -> None:
        """Keep reports for when a session is loaded again; if it will not be, bring them."""
        if self.draining:
            for report in reports:
                self._bring_soon(session, report)
        elif reports:
            self._unsaved.setdefault(session, []).extend(reports)

    async def _catch_up(self, session: SessionId) -> None:
        """Tell who waits here what may have been written without an answer."""
        while not self.draining:
            try:
                await self.lookout.look(session)
            except Broken:
                return
            except Unavailable:
                await pause(self._clock, AGAIN_MS)
            else:
                return

    def _try_again(self, session: SessionId, error: StoreError) -> None:
        """Load a session again, since it is not known what the store holds of it."""
        if isinstance(error, Broken):
            self._store_failed(error)
            return
        self._telemetry.emit("store.unavailable", session=str(session), error=str(error))
        pause_ms = self._pauses.get(session, AGAIN_MS)
        self._pauses[session] = min(2 * pause_ms, AGAIN_MS_MAX)
        self._clock.call_later(pause_ms, lambda: self.activate(session))

    def _dispatch_failed(self, actor: Actor, error: PerdureError) -> None:
        if isinstance(error, StoreError):
            self._lose(actor, error)
        else:
            self._set_aside(actor, str(error))

    def _report(self, actor: Actor, report: AnyCommand) -> Refusal | None:
        return None if actor.gone else self._handle(actor, report)

    def _fire_due(self, actor: Actor) -> None:
        for call in due(actor.state, self._clock.now_ms()):
            if not actor.gone:
                self._handle(actor, FireTimer(call=call))
        self._timekeeper.arm(actor, wake_at(actor.state))

    def _handle(self, actor: Actor, command: AnyCommand) -> Refusal | None:
        """Decide a command and submit what follows; return why it was refused, if it was."""
        if isinstance(command, Accepted):
            if command.id in actor.offered:
                return None
            actor.offered.add(command.id)
        self._lingering.pop(actor, None)
        tenant, agent, _ = actor.session
        actor.agent = self._agents.of(tenant, agent) or actor.agent
        context = Context(
            session=actor.session,
            agent=actor.agent,
            now=self._clock.now_ms(),
            chance=self._clock.chance(),
            waiting=tuple(actor.waiting.values()),
            gate=self._agents.gate(tenant),
            peers=self._agents.peers(tenant),
            prices=self._settings.prices,
        )
        try:
            decision = decide(actor.state, command, context)
            records = seal(actor.head, actor.state.version, decision.events)
            rows = rows_of(actor.session, actor.state, decision.events, decision.state)
        except Exception as error:  # noqa: BLE001  one session's trouble stays its own
            self._set_aside(actor, f"{type(command).__name__} could not be decided: {error!r}")
            return None
        if decision.refusal is not None:
            self._telemetry.emit(
                "command.refused",
                session=str(actor.session),
                command=type(command).__name__,
                code=decision.refusal.code,
            )
        if decision.postponed and isinstance(command, SendMessage):
            actor.waiting[command.id] = command
        if decision.events or decision.consumed or decision.postponed:
            self._submit(actor, command, decision, records, rows)
        elif actor.submitted == 0:
            self._settle(actor)
        return decision.refusal

    def _submit(
        self,
        actor: Actor,
        command: AnyCommand,
        decision: Decision,
        records: list[Record],
        rows: tuple[RunRow, ...],
    ) -> None:
        before, after = actor.state, decision.state
        for entry in decision.consumed:
            actor.waiting.pop(entry, None)
        snapshot = None
        if after.version - actor.snapshot_version >= SNAPSHOT_EVERY_EVENTS:
            snapshot = encode_snapshot(after)
            actor.snapshot_version = after.version
        gate = self._agents.gate(actor.session.tenant)
        step = StepCommit(
            session=actor.session,
            token=actor.token,
            expected=before.version,
            records=tuple(records),
            consumed=decision.consumed,
            postponed=len(actor.waiting),
            wake_at=self._wake_at(actor, after),
            rows=rows,
            snapshot=snapshot,
            blobs=self._kept.missing(actor.agent, gate) if records else (),
            refusals=_refused(decision),
            generation=GENERATION,
        )
        actor.state = after
        if records:
            actor.head = records[-1].hash
        if actor.history is not None:
            for record, event in zip(records, decision.events, strict=True):
                actor.history.fold(record.seq, event)
        actor.submitted += 1
        done = functools.partial(
            self._done, actor, command, decision, before.version, rows, step.blobs
        )
        self._store.commit(step, done)
        faults.reach("commit.submitted")

    def _done(
        self,
        actor: Actor,
        command: AnyCommand,
        decision: Decision,
        version: int,
        rows: tuple[RunRow, ...],
        blobs: Blobs,
        error: StoreError | None,
    ) -> None:
        actor.submitted -= 1
        if self.draining:
            self._progress.set()
        if error is not None:
            self._undo(actor, command, error)
            return
        faults.reach("commit.acknowledged")
        if decision.events:
            self._kept.add(blobs)
            self._probation.leave(actor.session)
        self._followers.committed(actor.session, rows, version, decision.events)
        self.on_committed(actor.session)
        for entry in decision.consumed:
            self.verdicts.tell(entry, decision.refusal)
        if actor.submitted == 0 and not actor.gone:
            self._settle(actor)

    def _undo(self, actor: Actor, command: AnyCommand, error: StoreError) -> None:
        """Lose the session whose commit failed, but not what a worker did: it says so only once.

        Who asked to begin asks again, if his call is still his.
        """
        session, was_gone = actor.session, actor.gone
        self._lose(actor, error)
        if isinstance(error, Broken):
            return
        reports = outcomes([command])
        if isinstance(error, Unavailable) and was_gone:
            self._spawn(self._catch_up(session))
        if self.draining or (isinstance(error, Unavailable) and not self.is_active(session)):
            self._keep(session, reports)
        else:
            for report in reports:
                self.deliver(session, report)

    def _settle(self, actor: Actor) -> None:
        """All is durable: do what is owed, or let the session linger."""
        self._dispatcher.dispatch(actor)
        self._post.dispatch(actor)
        if actor.gone or actor.submitted:
            return
        self._timekeeper.arm(actor, wake_at(actor.state))
        if not executable(actor.state):
            actor.idle_since = self._clock.monotonic_ms()
            self._lingering[actor] = None
            if self._sweep_timer is None and not self.draining:
                self._sweep_timer = self._clock.call_later(self._settings.linger_ms, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        now = self._clock.monotonic_ms()
        while self._lingering:
            actor = next(iter(self._lingering))
            left_ms = actor.idle_since + self._settings.linger_ms - now
            if left_ms > 0:
                self._sweep_timer = self._clock.call_later(left_ms, self._sweep)
                return
            self._release(actor)

    def _wake_at(self, actor: Actor, state: State) -> int | None:
        eager = actor.agent.spec.resume == "eager" or actor.waiting
        if state.outbox or (eager and executable(state)):
            return DUE_AT_ONCE
        return wake_at(state)

    def _release(self, actor: Actor) -> None:
        faults.reach("release.before")
        self._forget(actor)
        version = actor.state.version
        snapshot = None
        if version - actor.snapshot_version > SNAPSHOT_EVERY_EVENTS // 4:
            snapshot = (version, encode_snapshot(actor.state))
        at = self._wake_at(actor, actor.state)
        self._spawn(self._let_go(actor, snapshot, None))
        if at is not None:
            self.on_parked(at)

    def _set_aside(self, actor: Actor, reason: str) -> None:
        self._telemetry.emit("session.quarantined", session=str(actor.session), reason=reason)
        self._forget(actor)
        self.verdicts.leave(actor.session)
        self._spawn(self._let_go(actor, None, reason))

    async def _let_go_and_return(self, actor: Actor) -> None:
        await self._let_go(actor, None, None)
        self.activate(actor.session)

    async def _let_go(
        self, actor: Actor, snapshot: tuple[int, bytes] | None, quarantine: str | None
    ) -> None:
        try:
            await self._store.release(actor.session, actor.token, snapshot, quarantine)
        except Fenced:
            self._telemetry.emit(
                "session.fenced", session=str(actor.session), version=actor.state.version
            )
        except StoreError as error:
            # While this node lives nobody else could take the session: it is loaded again.
            self._try_again(actor.session, error)
        else:
            self._telemetry.emit(
                "session.released", session=str(actor.session), version=actor.state.version
            )
            if quarantine is not None:
                self._followers.set_aside(actor.session, quarantine)
                self.on_committed(actor.session)

    def _lose(self, actor: Actor, error: StoreError) -> None:
        if actor.gone:
            return
        fenced = isinstance(error, Fenced)
        self._forget(actor, "begun" if fenced else "all")
        if isinstance(error, Fenced | Conflict):
            name = "session.fenced" if fenced else "session.conflict"
            self._telemetry.emit(name, session=str(actor.session), version=actor.state.version)
            if fenced:
                self.on_run_elsewhere(actor.session, None)
            else:
                self.activate(actor.session)
        else:
            self._try_again(actor.session, error)

    def _store_failed(self, error: StoreError) -> None:
        self._telemetry.emit("store.failed", error=str(error))
        self.on_store_failure(error)

    def _forget(self, actor: Actor, keep: Keep = "none") -> None:
        actor.gone = True
        self._probation.leave(actor.session)
        self._progress.set()
        self._dispatcher.abandon(actor, keep)
        self._timekeeper.arm(actor, None)
        self._lingering.pop(actor, None)
        if self._actors.get(actor.session) is actor:
            del self._actors[actor.session]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refused(decision: Decision) -> tuple[tuple[str, bytes], ...]:
    """Return what is kept of a refusal, for whoever asked at another node."""
    if decision.refusal is None:
        return ()
    said = _encode_refusal(decision.refusal)
    return tuple((entry, said) for entry in decision.consumed)
