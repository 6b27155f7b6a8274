"""The pool: executes calls on workers behind sockets.

To the runtime it is one worker that has everything. A task that no connected worker fits waits
here; the session owes it, so nothing is lost with this process. Each task has at most one owner,
and only its owner's result counts; while it has none, the result of any worker that might have been
given it does, which is how what was computed while a node was down still arrives.

A worker whose connection ended may still be at its tasks, and comes back. It is given a while: a
short one for what can be done again, a long one for a `once` call, of which nobody could say
otherwise whether it took effect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from perdure.core.commands import Report, ReportToolBegin
from perdure.core.errors import StoreError
from perdure.ports.clock import Clock
from perdure.ports.deadlines import Deadlines
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, OnReport, OnText, Task, ToolTask
from perdure.server import held as h
from perdure.server.held import Held, Known, Numbers, Offers
from perdure.server.members import Connection, Member, Need, Roster, need_of
from perdure.server.queues import Queues
from perdure.wire import table as t
from perdure.wire.frames import CLOSE_TRY_AGAIN, TooLarge
from perdure.wire.registration import Registration
from perdure.wire.results import CacheMiss, Result
from perdure.wire.server import ServerSide

MODEL_TIMEOUT_MS = 300_000
RETURN_MS = 3_000
"""How long a worker whose connection ended is waited for with what can be done again."""
RETURN_ONCE_MS = 30_000
"""The same with `once` calls that have begun: longer than a worker ever waits between attempts."""
LOADING_MS = 600_000
"""How long after its start a pool takes what it does not know for a session's yet to be loaded."""

WorkerSays = Result | t.Drain | t.Text | t.Progress | t.Begin | t.Credit | t.Holds
"""The facts of a worker's channel that are the pool's to act on."""


class Pool:
    """The workers that are connected to this node, as one `perdure.ports.workers.Worker`.

    `gard_of` returns the gard that a task is bound to, `is_native` whether its agent is one that
    only workers which serve it by name may have, `numbers` the ids of its agent and run, `offers`
    the tools that a model call is offered. `on_progress` is told what a task says while it runs.
    """

    def __init__(
        self,
        clock: Clock,
        telemetry: Telemetry,
        *,
        gard_of: Callable[[Task], str | None] = lambda task: None,
        is_native: Callable[[Task], bool] = lambda task: False,
        numbers: Numbers = h.by_name,
        offers: Offers = lambda task: task.request.tools,
        model_timeout_ms: int = MODEL_TIMEOUT_MS,
        return_ms: int = RETURN_MS,
        return_once_ms: int = RETURN_ONCE_MS,
        on_progress: Callable[[Task, Any], None] = lambda task, progress: None,
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._gard_of = gard_of
        self._is_native = is_native
        self._numbers = numbers
        self._offers = offers
        self._model_timeout_ms = model_timeout_ms
        self._return_ms = return_ms
        self._return_once_ms = return_once_ms
        self._on_progress = on_progress
        self._deadlines = Deadlines(clock)
        self._roster = Roster()
        self.queues = Queues(self._roster.fitting, self._roster.wanted)
        self._loaded_ms = clock.monotonic_ms() + LOADING_MS
        self._finding: set[asyncio.Task[None]] = set()
        self._started = 0
        self._drains = False
        self.may_start: Callable[[], bool] = lambda: True
        """Says whether a task may be given to a worker now; the sessions may be lost."""
        self.on_unplaced: Callable[[], None] = lambda: None
        """Called when a task has no worker here."""
        self.on_unknown: Callable[[Sequence[str]], None] | None = None
        """Called with tasks that a worker came back with and that nobody here knows, if other
        nodes may know them."""
        self._hears: dict[type, Callable[[Member, Any], None]] = {
            Result: self._result,
            t.Begin: self._begin,
            t.Text: self._text,
            t.Progress: self._progress,
            t.Credit: self._credit,
            t.Holds: self._holds_now,
            t.Drain: self._drain,
        }

    # ------------------------------------------------------------------------ for the runtime

    def serves(self, task: Task) -> bool:
        """Say yes: whatever it needs, a worker that has it may come."""
        return True

    def start(self, task: Task, on_report: OnReport, on_text: OnText) -> None:
        """Give a task to a worker, or let it wait; its reports come later, never during this call.

        A task of the same call that is held already is dropped first: whoever starts it again has
        forgotten it.
        """
        held = self._hold(task, on_report, on_text)
        if not self._has_returned(held):
            self._name_and_place(held)

    def resume(
        self, task: ToolTask, on_report: OnReport, on_text: OnText, by: str | None = None
    ) -> bool:
        """Expect the outcome of a `once` call that began under a server that is no more."""
        if not self._goes_on(task, on_report, on_text, by or "", borrowed=False):
            held = self._hold(task, on_report, on_text)
            held.begin, held.by = "granted", by or None
            held.is_at_home = False
            if not self._has_returned(held):
                self._expect(held, None)
        return True

    def proceed(self, task: ToolTask, by: str | None = None) -> None:
        """Let a `once` task run: its beginning is durable, and `by` is who may run it."""
        held = self.queues.held.get(h.task_id(task))
        if held is None or held.task is not task:
            return
        if held.begin == "unasked":
            held.is_at_home = False  # somebody at another node asked, and waits for the word
        held.begin, held.by = "granted", by or None
        owner = held.owner
        if owner is not None and (held.by is None or owner.runs(held.by)):
            self._release(held, owner)
        elif owner is not None and held.is_at_home and not held.released:
            # Who was allowed to begin lost it before he was told so: another one asks in his place.
            held.begin, instead_of, held.by = "asked", held.by, None
            self._soon(self._ask, held, owner.id, instead_of)
        elif held.by is not None:
            self._stop_owner(held)
            self.queues.backlog.drop(held)
            self._expect(held, held.by)

    def cancel(self, task: Task) -> None:
        """Stop a task: its worker is told if it wants to know; nothing is reported any more."""
        held = self.queues.held.get(h.task_id(task))
        if held is not None and held.task is task:
            if held.owner is None:
                self.queues.returning.stop(held.id)
            self._stop(held)

    def orphan(self, task: Task) -> bool:
        """Go on with a task whose session was lost, unless it only waits for a worker."""
        held = self.queues.held.get(h.task_id(task))
        if held is None or held.task is not task or not self.queues.is_unbegun(held):
            return True
        self._forget(held)
        return False

    def serve_all(self) -> None:
        """Give out what waits, since it may be given again."""
        for member in self._roster.all():
            self._serve(member)

    def drain(self) -> None:
        """Stop nothing any more where it is known by the next server: its worker brings it there.

        What a model is asked is paid for already.
        """
        self._drains = True

    async def close(self) -> None:
        """Let every worker go; they come back to whoever takes the place of this node."""
        for held in tuple(self.queues.held.values()):
            self._forget(held)
        for member in self._roster.all():
            self._roster.remove(member)
            member.gone = True
            member.connection.close(CLOSE_TRY_AGAIN)

    # -------------------------------------------------------------------------- for the server

    def join(
        self,
        tenant: str,
        registration: Registration,
        wire: ServerSide,
        connection: Connection,
        key: str | None = None,
    ) -> Member:
        """Take in a worker whose join was accepted and answered; it may get tasks at once.

        A worker of the same id is let go: this is the one, or has its place.
        """
        member = Member(tenant, registration, wire, connection, self._clock.now_ms(), key)
        replaced = self._roster.add(member)
        self._serve(member)
        if replaced is not None:
            self._lose(replaced, replaced=True)
            replaced.connection.close(CLOSE_TRY_AGAIN)
        return member

    def hear(self, member: Member, fact: WorkerSays) -> None:
        """Act on what a worker says. Of one that is gone, nothing counts any more."""
        if not member.gone:
            self._hears[type(fact)](member, fact)

    def leave(self, member: Member) -> None:
        """Let a worker go that says that it leaves; harmless a second time."""
        self._roster.remove(member)
        self._lose(member, for_good=True)

    def lose(self, member: Member) -> None:
        """Let a worker go whose connection ended; it may come back. Harmless a second time."""
        self._roster.remove(member)
        self._lose(member)

    def dismiss(self, member: Member, why: t.GardDestroyed | t.KeyRevoked) -> None:
        """Tell a worker that it must end, and let it go."""
        member.tell(why)
        for frame in member.wire.close(t.WORKER_TOPIC):
            member.connection.send(frame)
        self.leave(member)
        member.connection.close(CLOSE_TRY_AGAIN)

    def members(self, tenant: str | None = None) -> list[Member]:
        """Return the connected workers of a tenant, or all."""
        return self._roster.all(tenant)

    # ------------------------------------------------------------------------ for other nodes

    def room(self, need: Need) -> int:
        """Return for how many tasks with a need there is room that nobody here waits for."""
        return 0 if self._drains or self.queues.backlog.waits(need) else self._roster.room(need)

    def borrow(
        self, task: Task, on_report: OnReport, on_text: OnText, begun_by: str | None
    ) -> None:
        """Give a task of another node to a worker, or go on with it if somebody has begun it."""
        if begun_by is not None and self._goes_on(task, on_report, on_text, begun_by, True):
            return
        held = self._hold(task, on_report, on_text)
        held.borrowed, held.is_at_home = True, False
        if begun_by is not None:
            held.begin, held.by = "granted", begun_by or None
        if self._has_returned(held):
            return
        if begun_by is not None:
            self._expect(held, None)
        else:
            self._name_and_place(held)

    def lend(self, held: Held, neighbour: Member) -> None:
        """Make another node the owner of a task that has none."""
        self.queues.backlog.drop(held)
        self.queues.expected.drop(held)
        held.unlimit()
        held.is_at_home = False
        held.given(neighbour)
        held.sent = held.wants = True
        held.released = held.begin == "granted"
        neighbour.keep(held.id, held)

    def return_to_backlog(self, held: Held) -> None:
        """Take back a task that did not arrive where it was lent to."""
        self._take_back(held)
        if held.is_once and held.begin == "granted":
            self._expect(held, None)
        else:
            held.given(None)
            self._place(held)

    # ------------------------------------------------------------------------------ coming back

    def _hold(self, task: Task, on_report: OnReport, on_text: OnText) -> Held:
        self._started += 1
        need = need_of(task, self._gard_of(task), self._is_native(task))
        held = Held(task, need, self._started, self._clock.now_ms(), on_report, on_text)
        self.queues.returning.ends(held.id)
        before = self.queues.held.get(held.id)
        if before is not None:
            self._stop(before)
        self.queues.held[held.id] = held
        return held

    def _goes_on(
        self, task: Task, on_report: OnReport, on_text: OnText, by: str, borrowed: bool
    ) -> bool:
        """Leave a begun call to the worker of ours that is at it, although its session moved."""
        held = self.queues.begun_here(h.task_id(task), task, by)
        if held is None:
            return False
        held.take_over(task, on_report, on_text, by, borrowed)
        if by and held.owner is not None:
            self._release(held, held.owner)
        return True

    def _has_returned(self, held: Held) -> bool:
        """Settle a task with what a worker came back with, if one did."""
        result = self.queues.returning.result(held.id, held.need)
        if result is not None:
            report = held.report(result)
            if not isinstance(report, CacheMiss):
                self._soon(self._settle, held, report)
                return True
        found = self.queues.returning.worker(held.id, held.need)
        if found is None:
            return False
        member, wants = found
        if not self._adopt(held, member):
            return False
        if wants:
            self._soon(self._begin, member, t.Begin(held.id))
        return True

    def _adopt(self, held: Held, member: Member) -> bool:
        """Make the worker that is at a task already its owner, unless another one may act."""
        if held.by is not None and not member.runs(held.by):
            member.tell(t.Cancel(held.id))
            return False
        self.queues.backlog.drop(held)
        self.queues.expected.drop(held)
        held.given(member)
        held.sent = True
        held.released = held.begin == "granted"
        member.keep(held.id, held)
        self._limit(held, member)
        return True

    def _holds_now(self, member: Member, holds: t.Holds) -> None:
        """Give a worker back what it is at; what else it had, it has not any more."""
        unknown: list[str] = []
        for task_id in holds.task_ids:
            held = self.queues.held.get(task_id)
            if (
                held is None
                and self._may_be_loaded_yet()
                and not self.queues.returning.ends(task_id)
            ):
                self.queues.returning.is_at(task_id, member)
                unknown.append(task_id)
            elif held is not None and held.owner is None and member.fits(held.need):
                self._adopt(held, member)
            elif held is None or held.owner is not member:
                member.tell(t.Cancel(task_id))
        if unknown and self.on_unknown is not None:
            self.on_unknown(unknown)
        for held in tuple(self.queues.expected):
            if held.expects == member.id and held.need.tenant == member.tenant:
                self._give_up(held)

    def _may_be_loaded_yet(self) -> bool:
        return self.on_unknown is not None or self._clock.monotonic_ms() < self._loaded_ms

    def _expect(self, held: Held, worker: str | None) -> None:
        """Wait for the worker that had a task to come back with it."""
        held.given(None)
        held.expects = worker
        self.queues.expected.add(held)
        has_begun = held.is_once and held.begin == "granted"
        wait_ms = self._return_once_ms if has_begun else self._return_ms
        held.until_ms = self._clock.now_ms() + wait_ms
        held.limit(self._deadlines.queue(wait_ms), lambda: self._give_up(held))
        self.on_unplaced()

    def _give_up(self, held: Held) -> None:
        """Report a task lost whose worker did not come back with it."""
        if self._holds(held):
            self._settle(held, h.lost(held.task, held.expects))

    # -------------------------------------------------------------------------- out to workers

    def _name_and_place(self, held: Held) -> None:
        """Place a task once the ids are known by which the REST surface knows it."""
        known_as = self._numbers(held.task)
        if isinstance(known_as, tuple):
            held.known_as = known_as
            self._place(held)
        else:
            finding = asyncio.ensure_future(self._find(held, known_as))
            self._finding.add(finding)
            finding.add_done_callback(self._finding.discard)

    async def _find(self, held: Held, known_as: Awaitable[Known]) -> None:
        """Place a task once it is known what its worker is to call its agent and run."""
        with contextlib.suppress(StoreError):  # then they are called what they are inside
            held.known_as = await known_as
        if self._holds(held) and held.owner is None and held.expects is None:
            self._place(held)

    def _place(self, held: Held) -> None:
        # Those before it would not wait if anybody had room.
        waits = self.queues.backlog.waits(held.need) or not self.may_start()
        member = None if waits else self._roster.best(held.need)
        if member is None:
            self.queues.backlog.add(held)
            if not held.borrowed:
                self.on_unplaced()
        else:
            self._give(held, member)

    def _serve(self, member: Member) -> None:
        """Give a worker what waits for one like it, oldest first, as long as it has room."""
        while self.queues.backlog and member.free() > 0 and self.may_start():
            held = self.queues.backlog.take(member)
            if held is None:
                return
            self._give(held, member)

    def _give(self, held: Held, member: Member) -> None:
        """Make a worker the owner of a task, and send it, or first ask whether it may begin."""
        held.given(member)
        member.take(held.id, held)
        if held.is_once and held.begin != "granted" and "begin" not in member.features:
            if held.begin == "unasked":
                held.begin = "asked"
                self._soon(self._ask, held, member.id)
            return
        self._send(held, member)

    def _send(self, held: Held, member: Member) -> None:
        payload = h.told(held, member, self._offers, self._clock.now_ms())
        try:
            heard = member.tell(payload)
        except TooLarge as error:
            self._soon(self._turned_away, held, member, h.too_large(held.task, error))
            return
        if heard:
            h.sent(held, member, payload)
            held.released = "begin" not in member.features
            self._limit(held, member)

    def _turned_away(self, held: Held, member: Member, report: Report) -> None:
        """Report a task that its owner would not take, if it is still its owner."""
        if self._holds(held) and held.owner is member:
            self._end(held, report)

    def _release(self, held: Held, member: Member) -> None:
        """Let a granted call act: by a word to a worker that asked, else by sending it."""
        if "begin" not in member.features:
            if not held.sent:
                self._send(held, member)
        elif held.wants and not held.released:
            held.released = member.tell(t.Proceed(held.id))

    def _ask(self, held: Held, worker: str, instead_of: str | None = None) -> None:
        """Report that a call is about to begin."""
        task = held.task
        if self._holds(held) and isinstance(task, ToolTask):
            report = ReportToolBegin(
                call=task.call, attempt=task.attempt, worker=worker, instead_of=instead_of
            )
            held.on_report(task, report)

    @staticmethod
    def _soon(callback: Callable[..., None], *args: Any) -> None:
        """Call after whoever calls us now is done: nobody expects a report while he starts."""
        asyncio.get_running_loop().call_soon(callback, *args)

    # ---------------------------------------------------------------------------- in from workers

    def _result(self, member: Member, result: Result) -> None:
        task_id = result.task_id if isinstance(result.task_id, str) else ""
        held = self.queues.held.get(task_id)
        if held is None and member.native and self._may_be_loaded_yet():
            self.queues.returning.brought(task_id, member, result)
        report = held.report(result) if held is not None and held.counts(member) else None
        if held is None or report is None or (isinstance(report, CacheMiss) and held.whole):
            # A miss of what was sent whole is about a delta of the same task that was sent before.
            self._telemetry.emit("result.dropped", worker=member.id, task=str(result.task_id)[:64])
        elif not isinstance(report, CacheMiss):
            self._end(held, report)
        elif held.owner is not None:
            held.whole = True
            self._send(held, member)

    def _begin(self, member: Member, begin: t.Begin) -> None:
        held = self.queues.held.get(begin.task_id)
        if held is None and self.queues.returning.wants(begin.task_id, member):
            return
        if held is None or held.owner is not member or not held.is_once:
            member.tell(t.Cancel(begin.task_id))
            return
        held.wants = True
        if held.begin == "unasked":
            held.begin = "asked"
            self._ask(held, member.id)
        elif held.begin == "granted":
            held.released = False
            self._release(held, member)

    def _text(self, member: Member, text: t.Text) -> None:
        for task_id, piece in text.pieces.items():
            held = self.queues.held.get(task_id)
            if held is not None and held.owner is member and isinstance(held.task, ModelTask):
                held.on_text(held.task, piece)

    def _progress(self, member: Member, progress: t.Progress) -> None:
        held = self.queues.held.get(progress.task_id)
        if held is not None and held.owner is member and held.sent:
            self._limit(held, member)
            self._on_progress(held.task, progress.progress)

    def _credit(self, member: Member, credit: t.Credit) -> None:
        member.grant(credit.tasks)
        self._serve(member)

    def _drain(self, member: Member, drain: t.Drain) -> None:
        member.draining = True
        self._roster.changed()

    # ---------------------------------------------------------------------------------- endings

    def _end(self, held: Held, report: Report) -> None:
        """Report the outcome of a task; its worker gets the next one that waits."""
        owner = self._forget(held)
        if owner is not None:
            self._serve(owner)
        held.on_report(held.task, report)

    def _settle(self, held: Held, report: Report) -> None:
        """Report the outcome of a task that no worker has, unless it is held no more."""
        if self._holds(held):
            self._forget(held)
            held.on_report(held.task, report)

    def _stop(self, held: Held) -> None:
        self._stop_owner(held)
        if self._holds(held):
            self._forget(held)

    def _stop_owner(self, held: Held) -> None:
        """Take a task from its owner, who is told so."""
        owner = self._take_back(held)
        if owner is not None:
            if held.sent and not (self._drains and "holds" in owner.features):
                owner.tell(t.Cancel(held.id))
            self._serve(owner)

    def _late(self, held: Held, limit_ms: int) -> None:
        stopped = held.owner is not None and held.owner.tell(t.Cancel(held.id))
        self._end(held, h.too_late(held.task, limit_ms, stopped))

    def _lose(self, member: Member, *, for_good: bool = False, replaced: bool = False) -> None:
        """Hand on what a worker had that is gone, unless it may come back with it.

        What it cannot have acted on is given to another, the rest reported lost. One that was
        `replaced` while it was connected may be another process of the same name, which lives and
        goes on: that the new one has nothing of it says nothing.
        """
        for_good = for_good or "holds" not in member.features
        if member.gone:
            return
        member.gone = True
        lost = tuple(member.tasks.values())
        for held in lost:
            self._take_back(held)
        for held in lost:
            if not self._holds(held):
                continue
            if held.untouched():
                held.given(None)
                self._place(held)
            elif for_good:
                self._settle(held, h.lost(held.task, member.id))
            else:
                self._expect(held, None if replaced else member.id)

    def _holds(self, held: Held) -> bool:
        return self.queues.held.get(held.id) is held

    def _forget(self, held: Held) -> Member | None:
        """Hold a task no more; returns who had it."""
        del self.queues.held[held.id]
        self.queues.backlog.drop(held)
        self.queues.expected.drop(held)
        held.unlimit()
        return self._take_back(held)

    def _take_back(self, held: Held) -> Member | None:
        owner, held.owner = held.owner, None
        if owner is not None:
            owner.tasks.pop(held.id, None)
            held.unlimit()
        return owner

    def _limit(self, held: Held, member: Member) -> None:
        """Begin the time of a task, anew if it is under way."""
        task = held.task
        limit_ms = task.timeout_ms or self._model_timeout_ms
        slack_ms = h.DEADLINE_SLACK_MS if member.native else 0
        held.limit(self._deadlines.queue(limit_ms + slack_ms), lambda: self._late(held, limit_ms))
