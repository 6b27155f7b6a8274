"""A shard of the store: its stream, and for each session what waits to be written to it.

A session is written one change at a time, each decided on what is folded. Steps that wait while one
is on its way go together into the next. So a commit is refused either here, by what was folded, or
where its batch is folded, because somebody else's message came first; then it is judged anew.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from perdure.adapters.nats.connection import Connection, subject_part
from perdure.adapters.nats.log import ON_SUBJECT, Folded, Log, change_of
from perdure.adapters.stores.nats.batches import Batches
from perdure.adapters.stores.nats.contents import PLAIN, PLAIN_BYTES_MAX, Contents
from perdure.adapters.stores.nats.messages import (
    CHANGES_MAX,
    IN_BODY,
    Body,
    Change,
    Changes,
    Commit,
    decode_body,
    decode_changes,
    encode_body,
    encode_change,
    pack,
    unpack,
)
from perdure.adapters.stores.nats.projection import Projection, Session
from perdure.core.errors import Conflict, Fenced, StoreError, Unavailable
from perdure.ports.session_store import CommitDone, StepCommit, Token

STEPS_MAX = 64
STEPS_BYTES_MAX = 256 * 1024
READ_BYTES_MAX = 16 * 1024 * 1024

T = TypeVar("T")
_encode_row = msgspec.json.Encoder().encode


class _Step:
    """A step commit that waits."""

    __slots__ = ("done", "step")

    def __init__(self, step: StepCommit, done: CommitDone) -> None:
        self.step = step
        self.done = done


class _Turn:
    """Something else that is to be done between the steps of a session."""

    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[], Awaitable[Any]], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future


class Shard:
    """One of the streams that the sessions are spread over."""

    def __init__(
        self,
        number: int,
        connection: Connection,
        name: str,
        projection: Projection,
        contents: Contents,
        patience: float,
        on_loss: Callable[[], None],
    ) -> None:
        self.number = number
        self.stream = f"{name}_{number}"
        self.prefix = f"{name}.{number}"
        self.log = Log(
            connection, self.stream, self._fold, whole=False, patience=patience, on_loss=on_loss
        )
        self.projection = projection
        self.contents = contents
        self.batches = Batches(self.log, f"{self.prefix}.b.{uuid.uuid4().hex}")
        self._connection = connection
        self._lanes: dict[str, Lane] = {}
        self._read: dict[int, list[bytes]] = {}
        self._read_bytes = 0

    def submit(self, place: str, step: StepCommit, done: CommitDone) -> None:
        """Queue a step."""
        self._lane(place).submit(_Step(step, done))

    async def turn(self, place: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do something to a session after what was submitted before, and before the rest."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._lane(place).submit(_Turn(work, future))
        return await future

    async def write(self, place: str, change: Change, body: Body) -> bool:
        """Change a session; False if that does not hold. Raises `Unavailable`."""
        wrapped = await self.contents.wrap(encode_body(body))
        future: asyncio.Future[bool | Unavailable] = asyncio.get_running_loop().create_future()

        def told(outcome: bool | Unavailable) -> None:
            if not future.done():
                future.set_result(outcome)

        self.batches.add(place, change, wrapped, told)
        outcome = await future
        if isinstance(outcome, Unavailable):
            raise outcome
        return outcome

    async def arrive(self, place: str, entry: str, change: Change, body: Body) -> int:
        """Write an entry of an inbox, unless there is one. Raises `Overtaken`, `Unavailable`."""
        wrapped = await self.contents.wrap(encode_body(body))
        header, packed = pack([encode_change(place, change)], [wrapped])
        subject = f"{self.prefix}.i.{place}.{entry}"
        seq = await self.log.write(subject, header, packed, ON_SUBJECT, 0)
        self._remember(seq, [wrapped])
        return seq

    async def entry(self, place: str, entry: str) -> Body | None:
        """Return an entry of an inbox, consumed or not. Raises `Unavailable`."""
        subject = f"{self.prefix}.i.{place}.{entry}"
        found = await self._connection.stored(self.stream, last=subject)
        if found is None:
            return None
        _, bodies = unpack(change_of(found.headers), found.body)
        return decode_body(await self.contents.unwrap(bodies[0]))

    async def body(self, at: int) -> Body:
        """Return the body of a change. Raises `Unavailable`."""
        seq, index = divmod(at, CHANGES_MAX)
        bodies = self._read.get(seq)
        if bodies is None:
            found = await self._connection.stored(self.stream, seq=seq)
            if found is None:
                raise Unavailable(f"{self.stream} has lost message {seq}")
            _, bodies = unpack(change_of(found.headers), found.body)
            self._remember(seq, bodies)
        return decode_body(await self.contents.unwrap(bodies[index]))

    def _remember(self, seq: int, bodies: list[bytes]) -> None:
        """Keep for a while what was read, of which other sessions have a part, or accepted here."""
        if seq not in self._read:
            self._read[seq] = bodies
            self._read_bytes += sum(map(len, bodies))
        while self._read_bytes > READ_BYTES_MAX:
            oldest = next(iter(self._read))
            self._read_bytes -= sum(map(len, self._read.pop(oldest)))

    def forget(self, place: str, lane: Lane) -> None:
        """Nothing waits in a lane any more."""
        if self._lanes.get(place) is lane:
            del self._lanes[place]

    def _lane(self, place: str) -> Lane:
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = Lane(self, place)
        return lane

    def _fold(self, message: Folded) -> Awaitable[None] | None:
        if message.change == IN_BODY.decode():
            return self._fold_body(message)
        changes = None
        if message.subject == self.batches.subject:
            changes = self.batches.changes(message.change)
        self._fold_changes(message, changes or decode_changes(message.change))
        return None

    async def _fold_body(self, message: Folded) -> None:
        found = await self._connection.stored(self.stream, seq=message.seq)
        if found is None:
            raise Unavailable(f"{self.stream} does not show message {message.seq} yet")
        self._fold_changes(message, unpack(message.change, found.body)[0])

    def _fold_changes(self, message: Folded, changes: Changes) -> None:
        held = self.projection.fold(self.number, message, changes)
        if message.subject == self.batches.subject:
            self.batches.folded(message.seq, held)


class Lane:
    """What waits to be written to one session."""

    __slots__ = ("_busy", "_fresh", "_loop", "_place", "_queue", "_scheduled", "_shard", "_task")

    def __init__(self, shard: Shard, place: str) -> None:
        self._shard = shard
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Step | _Turn] = deque()
        self._busy = self._fresh = self._scheduled = False
        self._task: asyncio.Task[None] | None = None

    def submit(self, one: _Step | _Turn) -> None:
        """Queue something; it is looked at when the event loop comes round."""
        self._queue.append(one)
        if not self._busy and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        self._scheduled = False
        if self._busy:
            return
        while self._queue:
            first = self._queue[0]
            if isinstance(first, _Turn):
                self._queue.popleft()
                self._begin(self._take(first))
                return
            session = self._shard.projection.sessions.get(self._place)
            steps, error = self._next_steps(session)
            if error is None:
                assert session is not None, "a step of no session is refused"
                self._busy, self._fresh = True, False
                self._write(session, steps)
                return
            if not self._fresh:
                self._begin(self._refresh())
                return
            self._refuse(first.step.token, error)
        self._shard.forget(self._place, self)

    def _begin(self, work: Any) -> None:
        self._busy = True
        self._task = self._loop.create_task(work)

    def _resume(self) -> None:
        self._busy = False
        self._go()

    async def _take(self, turn: _Turn) -> None:
        try:
            result = await turn.work()
        except BaseException as error:  # noqa: BLE001  whoever waits has to learn of it
            if not turn.future.done():
                turn.future.set_exception(error)
        else:
            if not turn.future.done():
                turn.future.set_result(result)
        self._fresh = False
        self._resume()

    async def _refresh(self) -> None:
        """Nothing is refused before all is known that was written before it was submitted."""
        try:
            await self._shard.log.sync()
        except Unavailable as error:
            self._refuse_first(error)
        self._fresh = True
        self._resume()

    def _next_steps(self, session: Session | None) -> tuple[list[StepCommit], StoreError | None]:
        """Return as many steps as go into the next message; or why the first one does not."""
        steps, size, version = list[StepCommit](), 0, 0 if session is None else session.version
        taken: set[str] = set()
        for waiting in self._queue:
            if isinstance(waiting, _Turn) or size > STEPS_BYTES_MAX or len(steps) == STEPS_MAX:
                break
            step = waiting.step
            error = why_refused(session, step, version, taken)
            if error is not None:
                return steps, None if steps else error
            steps.append(step)
            taken.update(map(subject_part, step.consumed))
            version += len(step.records)
            for record in step.records:
                size += len(record.body)
        return steps, None

    def _write(self, session: Session, steps: list[StepCommit]) -> None:
        change, body = together(session, steps)
        packed = encode_body(body)
        contents = self._shard.contents
        blobs = [blob for step in steps for blob in step.blobs if not contents.knows(blob[0])]
        if blobs or len(packed) > PLAIN_BYTES_MAX:
            self._task = self._loop.create_task(self._write_large(steps, change, packed, blobs))
        else:
            self._add(steps, change, PLAIN + packed)

    async def _write_large(
        self,
        steps: list[StepCommit],
        change: Commit,
        body: bytes,
        blobs: Sequence[tuple[str, bytes]],
    ) -> None:
        contents = self._shard.contents
        try:
            await asyncio.gather(*(contents.keep(*blob) for blob in blobs))
            wrapped = await contents.wrap(body)
        except Unavailable as error:
            self._told(steps, error)
        else:
            self._add(steps, change, wrapped)

    def _add(self, steps: list[StepCommit], change: Commit, body: bytes) -> None:
        self._shard.batches.add(
            self._place, change, body, lambda outcome: self._told(steps, outcome)
        )

    def _told(self, steps: list[StepCommit], outcome: bool | Unavailable) -> None:
        if isinstance(outcome, Unavailable):
            self._refuse_first(outcome)
        elif outcome:
            for written in [self._queue.popleft() for _ in steps]:
                assert isinstance(written, _Step)
                self._tell(written, None)
        else:
            # All that came before is folded: what is refused now, is refused for good.
            self._fresh = True
        self._resume()

    def _refuse_first(self, error: StoreError) -> None:
        first = self._queue[0]
        assert isinstance(first, _Step)
        self._refuse(first.step.token, error)

    def _refuse(self, token: Token, error: StoreError) -> None:
        """Refuse all that its owner submitted before it was told: it was decided on the first."""
        refused = [one for one in self._queue if isinstance(one, _Step) and one.step.token == token]
        for one in refused:
            self._queue.remove(one)
        for n, one in enumerate(refused):
            self._tell(one, type(error)(str(error)) if n else error)

    def _tell(self, one: _Step, error: StoreError | None) -> None:
        try:
            one.done(error)
        except Exception as raised:  # noqa: BLE001  a callback's error is the loop's to report
            self._loop.call_exception_handler(
                {"message": "the callback of a commit raised", "exception": raised}
            )


def why_refused(
    session: Session | None, step: StepCommit, version: int, taken: set[str]
) -> StoreError | None:
    """Return why a step cannot follow what is there, and those before it; None if it can."""
    if (
        session is None
        or session.void
        or (session.epoch, session.nonce) != step.token
        or session.nonce is None
    ):
        return Fenced(f"the claim {step.token.epoch} of {step.session} is not the current one")
    if version != step.expected:
        return Conflict(f"{step.session} is at {version}, not at {step.expected}")
    for record in step.records:
        version += 1
        if record.seq != version:
            return Conflict(f"the records do not follow position {step.expected} of {step.session}")
    if step.consumed:
        entries = {subject_part(entry) for entry in step.consumed}
        if (
            len(entries) < len(step.consumed)
            or not entries.isdisjoint(taken)
            or not entries <= session.waiting.keys()
        ):
            return Conflict(f"a consumed command is not in the inbox of {step.session}")
    return None


def together(session: Session, steps: Sequence[StepCommit]) -> tuple[Commit, Body]:
    """Return the message that several steps make: what one after the other would have left."""
    last = steps[-1]
    version, head, snapshot, generation = session.version, session.head, None, 0
    records: list[tuple[bytes, bytes]] = []
    consumed: list[int] = []
    refusals: list[tuple[str, bytes]] = []
    rows: dict[str, Any] = {}
    kept: bytes | None = None
    for step in steps:
        records += [(record.body, record.hash) for record in step.records]
        version += len(step.records)
        consumed += [session.waiting[subject_part(entry)] for entry in step.consumed]
        refusals += [(subject_part(entry), why) for entry, why in step.refusals]
        for row in step.rows:
            first = rows.get(row.id, row)
            rows[row.id] = msgspec.structs.replace(row, created_at=first.created_at)
        if step.snapshot is not None:
            snapshot, kept = version, step.snapshot
        generation = max(generation, step.generation)
    if records:
        head = records[-1][1]
    change = Commit(
        epoch=last.token.epoch,
        nonce=last.token.nonce,
        expected=session.version,
        version=version,
        head=head,
        consumed=tuple(consumed),
        postponed=last.postponed,
        wake_at=last.wake_at,
        snapshot=snapshot,
        generation=generation,
        rows=tuple((row.id, row.status, row.created_at) for row in rows.values()),
        refused=tuple(entry for entry, _ in refusals),
    )
    encoded = tuple(map(_encode_row, rows.values()))
    return change, Body(encoded, tuple(records), kept, tuple(refusals))
