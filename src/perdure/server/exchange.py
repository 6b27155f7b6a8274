"""The exchange: calls for which no worker is here go to a node that has one, and come back.

The node that runs a session asks the others which of them have room for what its calls need, or
have them already, and lends the calls to those that say yes. A borrowed call is in the pool of its
borrower like any other. Whatever is reported of it, that it asks to begin or how it ended, is put
into its session's inbox: it is durable there, and whoever runs the session by then decides it. That
a `once` call has begun is told by its lender, after the commit.

Messages get lost, repeated and late. So each side says again and again what it takes for true: the
lender what it has lent, and the borrower which of that it has not. And a borrower remembers what it
is done with: a late word can begin nothing twice, since it is addressed to this life of this node.
A borrower that is seen no more has taken its calls along; they are treated like those of a worker
whose connection ended.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from perdure.core.commands import Report, ReportToolBegin
from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.ports.clock import Clock, Timer
from perdure.ports.cluster import NodeCard
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, Task, ToolTask
from perdure.runtime.bringing import bring
from perdure.runtime.bus import Bus, Knock, Message, Pieces
from perdure.server.held import Held
from perdure.server.held import task_id as id_of
from perdure.server.members import Member, Need
from perdure.server.pool import Pool
from perdure.wire import table as t
from perdure.wire.registration import Registration

SEEK_MS = 5
"""How long the first call that finds no worker waits for others, to be asked for with them."""
SYNC_MS = 1_000
"""How often nodes tell each other what they take for true."""
MISSING_MS = 10_000
"""How long a node that borrowed calls may not be seen."""
SILENT_MS = 60_000
"""How long nobody may speak of a borrowed call before it is stopped, unless it has begun."""
STOP_MS = 8_000
"""How long a node that stops tries to put what was reported here into its inbox."""
NAMES_MAX = 500
OVER_MAX = 100_000
"""How many calls a borrower remembers that it is done with."""


class Seek(Message, frozen=True, tag="seek"):
    """Who has room for calls that need this, or has these tasks?"""

    node: str
    needs: tuple[Need, ...] = ()
    tasks: tuple[str, ...] = ()


class Bid(Message, frozen=True, tag="bid"):
    """I have room for so many calls of each need, and have these tasks already."""

    node: str
    room: tuple[tuple[Need, int], ...] = ()
    tasks: tuple[str, ...] = ()


class Lend(Message, frozen=True, tag="lend"):
    """Have this call executed, or go on with it if somebody, `begun_by`, was allowed to begin.

    `epoch` is that of the claim under which it is owed: the word of an earlier owner counts less.
    """

    node: str
    begun_by: str | None = None
    model: ModelTask | None = None
    tool: ToolTask | None = None
    epoch: int = 0


class Lent(Message, frozen=True, tag="lent"):
    """What I have lent you: the tasks, and who may run each that has begun."""

    node: str
    tasks: tuple[tuple[str, str | None], ...]


class Missing(Message, frozen=True, tag="missing"):
    """Of what you say that you have lent me, I have not these."""

    node: str
    tasks: tuple[str, ...]


class Stop(Message, frozen=True, tag="stop"):
    """These calls are not owed any more, by me: another node may have the session by now."""

    node: str
    tasks: tuple[str, ...]


class Holding(Message, frozen=True, tag="holding"):
    """A worker came to me with these tasks, which I do not know: whose are they?"""

    node: str
    tasks: tuple[str, ...]


class Neighbour(Member):
    """A node that has borrowed calls, as a member of the pool of the node that lent them."""

    is_node = True

    def __init__(self, node: str, exchange: Exchange, since_ms: int) -> None:
        registration = Registration(
            worker_id=node, tools=(), capabilities=(), features=frozenset({"begin", "holds"})
        )
        super().__init__("", registration, _NO_WIRE, _NO_CONNECTION, since_ms)
        self.native = True
        self.seen_ms = since_ms
        self._exchange = exchange

    def free(self) -> int:
        """Return 0: it is given what it bids for, and nothing that waits."""
        return 0

    def fits(self, need: Need) -> bool:
        """Say yes: it would not have been given a call otherwise."""
        return True

    def runs(self, worker: str) -> bool:
        """Say yes: the borrower lets nobody else act."""
        return True

    def tell(self, payload: Any) -> bool:
        """Pass on that a call may go on, or is not owed any more."""
        if isinstance(payload, t.Proceed | t.Cancel):
            self._exchange.tell(self.id, payload)
        return True


class _Borrowed:
    """A call that is executed here for another node; `named_ms` is when one spoke of it last."""

    __slots__ = ("begun", "epoch", "lender", "named_ms", "task")

    def __init__(self, task: Task, lend: Lend, now_ms: int) -> None:
        self.task = task
        self.lender = lend.node
        self.epoch = lend.epoch
        self.begun = lend.begun_by is not None
        self.named_ms = now_ms


class Exchange:
    """Lends what this node's pool cannot place, and borrows what it can.

    `nodes` returns who is there, `epoch_of` the epoch under which a session is run here (0: it is
    not). Reports are accepted through `store`.
    """

    def __init__(
        self,
        owner: str,
        pool: Pool,
        bus: Bus,
        store: SessionStore,
        nodes: Callable[[], Sequence[NodeCard]],
        epoch_of: Callable[[SessionId], int],
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._owner = owner
        self._pool = pool
        self._bus = bus
        self._store = store
        self._nodes = nodes
        self._epoch_of = epoch_of
        self._clock = clock
        self._telemetry = telemetry
        self._neighbours: dict[str, Neighbour] = {}
        self._borrowed: dict[str, _Borrowed] = {}
        self._over: dict[tuple[str, int], None] = {}
        self._seeking: Timer | None = None
        self._sync: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        pool.on_unplaced = self._seek_soon
        pool.on_unknown = self._unknown
        bus.on(Seek, self._sought)
        bus.on(Bid, self._bid)
        bus.on(Lend, self._lend)
        bus.on(Lent, self._lent)
        bus.on(Missing, self._missing)
        bus.on(Stop, self._stop)
        bus.on(Holding, self._holding)

    def start(self) -> None:
        """Begin to tell the others what is lent and sought."""
        self._sync = self._clock.call_later(SYNC_MS, self._synchronise)

    async def stop(self) -> None:
        """Tell nothing more, once what was reported here is in its inbox."""
        self._stopped = True
        for timer in (self._seeking, self._sync):
            if timer is not None:
                timer.cancel()
        late = self._clock.call_later(STOP_MS, self._cut_short)
        if self._tasks:
            await asyncio.wait(self._tasks)
        late.cancel()

    def _cut_short(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()

    # ------------------------------------------------------------------------------ the lender

    def tell(self, node: str, payload: t.Proceed | t.Cancel) -> None:
        """Tell a borrower that a call may go on, or is not owed any more."""
        if isinstance(payload, t.Cancel):
            self._bus.send(node, Stop(self._owner, (payload.task_id,)))
        else:
            held = self._pool.queues.of_ours(payload.task_id)
            if held is not None:
                self._bus.send(node, Lent(self._owner, (_as_lent(held),)))

    def _seek_soon(self) -> None:
        if self._seeking is None and not self._stopped:
            self._seeking = self._clock.call_later(SEEK_MS, self._seek)

    def _seek(self) -> None:
        self._seeking = None
        needs, tasks = self._pool.queues.wanting()
        for start in range(0, max(len(needs), len(tasks)), NAMES_MAX):
            end = start + NAMES_MAX
            some = tuple(needs[start:end]), tuple(tasks[start:end])
            self._bus.send(None, Seek(self._owner, *some))

    def _bid(self, bid: Bid) -> None:
        """Lend what a node has room for; what it has already, it is to go on with."""
        for task_id in bid.tasks:
            held = self._pool.queues.of_ours(task_id)
            if held is not None and held.owner is None:
                self._lend_to(bid.node, held)
        for need, room in bid.room:
            for held in self._pool.queues.waiting(need, room):
                self._lend_to(bid.node, held)

    def _lend_to(self, node: str, held: Held) -> None:
        """Lend a call, unless its session is lost, or may be: others may owe it by now."""
        epoch = self._epoch_of(held.task.session)
        if not epoch or not self._pool.may_start():
            return
        neighbour = self._neighbours.get(node)
        if neighbour is None or neighbour.gone:
            neighbour = Neighbour(node, self, self._clock.monotonic_ms())
            self._neighbours[node] = neighbour
        self._pool.lend(held, neighbour)
        self._bus.send(node, _lending(self._owner, held, epoch))

    def _missing(self, missing: Missing) -> None:
        """Lend again what did not arrive; what may have begun is waited for."""
        neighbour = self._neighbours.get(missing.node)
        for task_id in missing.tasks:
            held = self._pool.queues.of_ours(task_id)
            if held is not None and neighbour is not None and held.owner is neighbour:
                self._pool.return_to_backlog(held)

    def _holding(self, holding: Holding) -> None:
        for task_id in holding.tasks:
            held = self._pool.queues.of_ours(task_id)
            if held is not None and held.owner is None:
                self._lend_to(holding.node, held)

    # ---------------------------------------------------------------------------- the borrower

    def _sought(self, seek: Seek) -> None:
        """Say what there is room for, and what is here already."""
        room = [(need, free) for need in seek.needs if (free := self._pool.room(need)) > 0]
        has = [
            task_id
            for task_id in seek.tasks
            if task_id in self._borrowed
            or self._pool.queues.has_returned(task_id)
            or self._pool.queues.at_a_worker(task_id) is not None
        ]
        if room or has:
            self._bus.send(seek.node, Bid(self._owner, tuple(room), tuple(has)))

    def _lend(self, lend: Lend) -> None:
        task = lend.model if lend.tool is None else lend.tool
        if task is None:
            return
        if (mine := self._epoch_of(task.session)) and mine >= lend.epoch:
            return  # whoever lends it ran its session before
        task_id = id_of(task)
        if (task_id, _attempt(task)) in self._over:
            self._bus.send(lend.node, Knock(task.session, self._owner))
            return
        known = self._borrowed.get(task_id)
        if known is not None and lend.epoch < known.epoch:
            return
        if known is not None and _attempt(known.task) == _attempt(task):
            known.lender, known.epoch = lend.node, lend.epoch
            known.named_ms = self._clock.monotonic_ms()
            self._proceed(known, lend.begun_by)
            return
        if known is not None:
            self._drop(task_id, known)
        borrowed = _Borrowed(task, lend, self._clock.monotonic_ms())
        self._borrowed[task_id] = borrowed
        report = partial(self._reported, task_id, borrowed)
        self._pool.borrow(task, report, partial(self._text, borrowed), lend.begun_by)

    def _proceed(self, borrowed: _Borrowed, begun_by: str | None) -> None:
        if begun_by is not None and not borrowed.begun and isinstance(borrowed.task, ToolTask):
            borrowed.begun = True
            self._pool.proceed(borrowed.task, begun_by)

    def _lent(self, lent: Lent) -> None:
        now_ms = self._clock.monotonic_ms()
        missing = []
        for task_id, begun_by in lent.tasks:
            borrowed = self._borrowed.get(task_id)
            if borrowed is None:
                missing.append(task_id)
            else:
                borrowed.named_ms = now_ms
                self._proceed(borrowed, begun_by)
        if missing:
            self._bus.send(lent.node, Missing(self._owner, tuple(missing)))

    def _stop(self, stop: Stop) -> None:
        for task_id in stop.tasks:
            borrowed = self._borrowed.get(task_id)
            if borrowed is not None and borrowed.lender == stop.node:
                self._drop(task_id, borrowed)

    def _drop(self, task_id: str, borrowed: _Borrowed) -> None:
        """Have a call executed no more."""
        del self._borrowed[task_id]
        self._pool.cancel(borrowed.task)
        if _may_have_acted(borrowed):
            self._be_over(task_id, borrowed.task)

    def _be_over(self, task_id: str, task: Task) -> None:
        """Remember that this attempt at a call is never to be made here again."""
        self._over[task_id, _attempt(task)] = None
        if len(self._over) > OVER_MAX:
            del self._over[next(iter(self._over))]

    def _unknown(self, task_ids: Sequence[str]) -> None:
        self._bus.send(None, Holding(self._owner, tuple(task_ids)))

    def _text(self, borrowed: _Borrowed, task: Task, piece: str) -> None:
        if isinstance(task, ModelTask) and task.request.purpose == "reply":
            self._bus.send(borrowed.lender, Pieces(task.session, task.run, piece))

    def _reported(self, task_id: str, borrowed: _Borrowed, task: Task, report: Report) -> None:
        if not isinstance(report, ReportToolBegin):
            self._be_over(task_id, task)
        work = asyncio.ensure_future(self._bring(task_id, borrowed, task, report))
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def _bring(self, task_id: str, borrowed: _Borrowed, task: Task, report: Report) -> None:
        """Put a report into its session's inbox, however often it takes."""
        try:
            await bring(self._store, self._clock, self._telemetry, task.session, report)
        except PerdureError as error:
            said = f"{task_id}: {error}"
            self._telemetry.emit("result.dropped", worker=self._owner, task=said)
        if not isinstance(report, ReportToolBegin) and self._borrowed.get(task_id) is borrowed:
            del self._borrowed[task_id]
        self._bus.send(borrowed.lender, Knock(task.session, self._owner))

    # --------------------------------------------------------------------------------- the sync

    def _synchronise(self) -> None:
        now_ms = self._clock.monotonic_ms()
        there = {card.id for card in self._nodes()}
        lent: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        for node, neighbour in tuple(self._neighbours.items()):
            if node in there:
                neighbour.seen_ms = now_ms
            if now_ms - neighbour.seen_ms > MISSING_MS:
                del self._neighbours[node]
                self._pool.lose(neighbour)
            lent[node] = [_as_lent(held) for held in neighbour.tasks.values()]
        for node, tasks in lent.items():
            for start in range(0, len(tasks), NAMES_MAX):
                some = tuple(tasks[start : start + NAMES_MAX])
                self._bus.send(node, Lent(self._owner, some))
        for task_id, borrowed in tuple(self._borrowed.items()):
            self._look_after(task_id, borrowed, now_ms)
        self._seek()
        if not self._stopped:
            self._sync = self._clock.call_later(SYNC_MS, self._synchronise)

    def _look_after(self, task_id: str, borrowed: _Borrowed, now_ms: int) -> None:
        """Give back what nobody here has room for, and forget what nobody speaks of."""
        held = self._pool.queues.held.get(task_id)
        if held is None or held.task is not borrowed.task:
            if (task_id, _attempt(borrowed.task)) not in self._over:
                del self._borrowed[task_id]  # its session came here, and so did the call
        elif self._pool.queues.is_unbegun(held):
            self._drop(task_id, borrowed)
            self._bus.send(borrowed.lender, Missing(self._owner, (task_id,)))
        elif now_ms - borrowed.named_ms > SILENT_MS and not _may_have_acted(borrowed):
            self._drop(task_id, borrowed)


def _attempt(task: Task) -> int:
    return task.attempt if isinstance(task, ToolTask) else 0


def _may_have_acted(borrowed: _Borrowed) -> bool:
    """Say whether a call is a `once` call that has begun: its outcome is worth waiting for."""
    task = borrowed.task
    return isinstance(task, ToolTask) and task.effect == "once" and borrowed.begun


def _as_lent(held: Held) -> tuple[str, str | None]:
    return held.id, (held.by or "") if held.begin == "granted" else None


def _lending(owner: str, held: Held, epoch: int) -> Lend:
    task, begun_by = held.task, _as_lent(held)[1]
    if isinstance(task, ModelTask):
        return Lend(owner, begun_by, model=task, epoch=epoch)
    return Lend(owner, begun_by, tool=task, epoch=epoch)


class _Nothing:
    """Stands for the socket that a neighbour does not have."""

    def send(self, frame: str) -> None:
        """Send nothing."""

    def close(self, code: int) -> None:
        """Close nothing."""

    def gather(self, payload: Any) -> bool:
        """Gather nothing."""
        return False


_NO_CONNECTION = _Nothing()
_NO_WIRE: Any = _Nothing()
