"""A stream as a node has it: everything that is in it, in order, and a way to add to it.

The messages of a stream are folded, one after the other, from the first one on. What is added may
be guarded by the number of the last message on its subject, or in the stream: then it is stored
only if nothing came after that, which JetStream decides. Every message that is added names who
added it and carries a number of his, so that its author knows it when it comes by: whether it is
stored is never in doubt for longer than it takes to fold what is there. A guarded message may be
sent again as often as one likes: it is stored once.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from perdure.adapters.nats.connection import (
    TEMPORARY,
    Connection,
    Hearing,
    Refused,
    refusal,
    temporary,
)
from perdure.adapters.nats.streams import is_followed, is_led
from perdure.core.errors import Broken, PerdureError, Unavailable

if TYPE_CHECKING:
    from nats.aio.msg import Msg

HEADER = "Perdure"
"""Who wrote a message, a space, and what it changes, as JSON."""
ON_SUBJECT, IN_STREAM = "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Sequence"
WRONG_LAST_SEQUENCE, ANOTHER_IS_UNDER_WAY = 10071, 10164
HEARTBEAT_SECONDS = 1
SILENCE_SECONDS_MAX = 3 * HEARTBEAT_SECONDS
RESEND_SECONDS = 2.0
"""After which a message is sent again; each time after twice as long. A connection loses nothing,
but a leader that dies loses what it was about to store.
"""
SWEEP_SECONDS = 0.1
MEETINGS = 2
"""How often a leader has to meet a majority before it is believed that something is gone: one that
is a leader no more learns of that at the first such meeting.
"""
MEETINGS_SECONDS_MAX = 5.0
"""How long that may take even if patience is shorter; leaders meet their replicas every second."""
IDLE_SECONDS = 0.5
NANOSECONDS_PER_MS = 1_000_000


class Folded(NamedTuple):
    """A message as it is folded; `at_ms` is when JetStream stored it, by its clock."""

    seq: int
    at_ns: int
    subject: str
    change: str
    body: bytes

    @property
    def at_ms(self) -> int:
        """Milliseconds since 1970."""
        return self.at_ns // NANOSECONDS_PER_MS


class Overtaken(Exception):
    """Nothing was stored: another message came first, and has been folded."""


class Doubtful(Unavailable):
    """Another message came first, and has been folded; but what is gone by then from a stream that
    is trimmed may have been an earlier copy of this one.
    """


Outcome = int | Overtaken | Unavailable
Told = Callable[[Outcome], None]


class _Addition:
    """A message on its way into a stream."""

    __slots__ = (
        "after",
        "again_at",
        "body",
        "copies",
        "deadline",
        "headers",
        "pause",
        "reply",
        "subject",
        "told",
    )

    def __init__(
        self,
        subject: str,
        headers: dict[str, str],
        body: bytes,
        told: Told,
        deadline: float,
        after: int,
    ) -> None:
        self.subject = subject
        self.headers = headers
        self.body = body
        self.told = told
        self.deadline = deadline
        self.after = after
        self.reply = ""
        self.copies = 0
        self.again_at = 0.0
        self.pause = RESEND_SECONDS


class Log:
    """One stream. `fold` is called with each of its messages; it awaits nothing but the stream.

    With `whole`, messages come with their bodies; without, only with what their headers say. A
    stream that is `trimmed` forgets messages that have later ones on their subject.
    `patience` is for how many seconds an operation tries before it is `Unavailable`. When the
    stream turns out to have lost what was folded, `on_loss` is called, `failure` says so, and
    everything is `Broken`.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        fold: Callable[[Folded], Awaitable[None] | None],
        *,
        whole: bool,
        patience: float,
        trimmed: bool = False,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream = stream
        self.folded = 0
        self.failure: str | None = None
        self._connection = connection
        self._fold = fold
        self._whole = whole
        self._trimmed = trimmed
        self._on_loss = on_loss
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._author = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)
        self._additions: dict[str, _Addition] = {}
        self._stored: dict[int, str] = {}
        self._highest = 0
        self._outbox: list[_Addition] = []
        self._has_mail = asyncio.Event()
        self._reached: dict[int, tuple[float, list[Callable[[], None]]]] = {}
        self._sought: list[tuple[int, int, asyncio.Future[None]]] = []
        self._syncing: asyncio.Task[None] | None = None
        self._next_sync: asyncio.Future[None] | None = None
        self._last_at_ns = 0
        self._hearing: Hearing | None = None
        self._round = 0
        self._delivered = 0
        self._heard_at = 0.0
        self._restart = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Fold everything that is there. Raises `Unavailable`, `Broken`."""
        self._connection.on_return.append(self._begin_again)
        last = await self._listen()
        self._tasks = [
            asyncio.create_task(work()) for work in (self._send, self._sweep, self._stay_tuned)
        ]
        await self.reach(last, for_ever=True)
        await self.sync()

    async def close(self) -> None:
        """Listen no more, if it ever did; what is on its way is `Unavailable`."""
        self.failure = self.failure or "it was closed"
        with suppress(ValueError):
            self._connection.on_return.remove(self._begin_again)
        for task in [*self._tasks, *([self._syncing] if self._syncing else [])]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._hearing is not None:
            await self._hearing.end()
        self._fail(Broken(f"{self.stream}: {self.failure}"))

    def add(
        self, subject: str, change: bytes, body: bytes, guard: str, last: int, told: Told
    ) -> None:
        """Add a message, if the last one on its subject or in the stream is `last`.

        `told` is called once, with the number of the message, with `Overtaken`, or with
        `Unavailable` when it is not known whether it is stored; see also `Doubtful`.
        """
        key = f"{self._author}-{next(self._numbers):x}"
        headers = {HEADER: f"{key} {as_header(change)}"}
        if guard:
            headers[guard] = str(last)
        deadline = self._loop.time() + self._patience
        addition = _Addition(subject, headers, body, told, deadline, self._highest)
        self._additions[key] = addition
        if self.failure is not None:
            self._loop.call_soon(self._settle, key, Broken(f"{self.stream}: {self.failure}"))
            return
        self._post(key, addition)

    async def write(
        self, subject: str, change: bytes, body: bytes = b"", guard: str = "", last: int = 0
    ) -> int:
        """Add a message, and return its number. Raises `Overtaken`, `Doubtful`, `Unavailable`."""
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def told(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self.add(subject, change, body, guard, last, told)
        outcome = await future
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def when(self, seq: int, call: Callable[[], None]) -> None:
        """Call back once a message is folded, now if it is; or when that takes too long."""
        if seq <= self.folded:
            call()
        else:
            deadline = self._loop.time() + self._patience
            self._reached.setdefault(seq, (deadline, []))[1].append(call)

    async def reach(self, seq: int, for_ever: bool = False) -> None:
        """Wait until a message is folded, for ever or with patience. Raises `Unavailable`."""
        if seq <= self.folded:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._sought, (seq, next(self._numbers), future))
        try:
            await asyncio.wait_for(future, None if for_ever else self._patience)
        except TimeoutError:
            raise Unavailable(f"{self.stream} could not be read up to {seq} in time") from None

    def sync(self) -> asyncio.Future[None]:
        """Return what is done when all is folded that was in the stream when this was called.

        Who calls while somebody is asking waits for the next question, and all share its answer.
        """
        if self._syncing is None:
            self._syncing = self._loop.create_task(self._sync())
            waiting: asyncio.Future[None] = self._syncing
        else:
            if self._next_sync is None:
                self._next_sync = self._loop.create_future()
            waiting = self._next_sync
        return asyncio.shield(waiting)

    async def _sync(self) -> None:
        try:
            if self.failure is not None:
                raise Broken(f"{self.stream}: {self.failure}")
            last = await self._last()
        finally:
            self._sync_next()
        await self.reach(last)

    async def _last(self) -> int:
        """Return the number of the last message. Raises `Broken` if it was once a greater one.

        Of several replicas only the leader is asked. It may be one no more and not know that yet:
        a smaller number than before is believed when most replicas have met it since.
        """
        highest, asked = self._highest, self._loop.time()
        end = asked + max(self._patience, MEETINGS_SECONDS_MAX)
        since, met = asked, 0
        while True:
            try:
                found = await self._connection.api(f"STREAM.INFO.{self.stream}", self._patience)
            except Refused as error:
                raise Unavailable(f"{self.stream} cannot be read: {error}") from None
            last = int(found["state"]["last_seq"])
            if is_led(found):
                if last >= highest:
                    return last
                if is_followed(found, asked - since):
                    since, met = self._loop.time(), met + 1
                if met == MEETINGS or int(found["config"]["num_replicas"]) == 1:
                    self._lose(last)
                    raise Broken(f"{self.stream}: {self.failure}")
            if self._loop.time() > end:
                raise Unavailable(f"{self.stream} has no leader that most replicas follow")
            await asyncio.sleep(SWEEP_SECONDS)
            asked = self._loop.time()

    def _sync_next(self) -> None:
        self._syncing, waiting = None, self._next_sync
        self._next_sync = None
        if waiting is not None:
            self._syncing = self._loop.create_task(self._sync())
            self._syncing.add_done_callback(lambda task: _hand_on(task, waiting))

    # What is added.

    def _post(self, key: str, addition: _Addition) -> None:
        if not addition.reply:
            addition.reply = self._connection.answer_to(
                lambda message: self._acknowledge(key, message)
            )
        addition.copies += 1
        addition.again_at = self._loop.time() + addition.pause
        addition.pause *= 2
        self._outbox.append(addition)
        self._has_mail.set()

    async def _send(self) -> None:
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            outbox, self._outbox = self._outbox, []
            for one in outbox:
                await self._connection.publish(one.subject, one.body, one.headers, one.reply)

    def _acknowledge(self, key: str, message: Msg) -> None:
        addition = self._additions.get(key)
        if addition is None:
            return
        if temporary(message):
            addition.again_at = 0.0
            return
        answer = json.loads(message.data)
        if "error" not in answer:
            seq = int(answer["seq"])
            if seq <= addition.after:
                self._lose(seq - 1)
                return
            if seq > self.folded:
                if not self._trimmed:
                    self._stored[seq] = key
                self._highest = max(self._highest, seq)
            self._settle(key, seq)
            return
        error = refusal(answer["error"])
        if error.number == WRONG_LAST_SEQUENCE:
            doubtful = self._trimmed and addition.copies > 1
            task = self._loop.create_task(self._overtaken(key, doubtful))
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)
        elif error.code == TEMPORARY:
            addition.again_at = 0.0
        elif error.number == ANOTHER_IS_UNDER_WAY:
            addition.copies, addition.again_at = addition.copies - 1, 0.0
        else:
            self._settle(key, Unavailable(f"{self.stream} takes nothing: {error}"))

    async def _overtaken(self, key: str, doubtful: bool) -> None:
        """Fold what came first. If that was an earlier copy, its author has been told by then."""
        try:
            await self.sync()
        except Unavailable as error:
            self._settle(key, error)
        else:
            why = f"{self.stream} has something else: it is not known whether this came before it"
            self._settle(key, Doubtful(why) if doubtful else Overtaken())

    async def _sweep(self) -> None:
        while True:
            idle = not self._additions and not self._reached
            await asyncio.sleep(IDLE_SECONDS if idle else SWEEP_SECONDS)
            now = self._loop.time()
            for seq, (deadline, _) in [*itertools.islice(self._reached.items(), 1)]:
                if now > deadline:
                    for call in self._reached.pop(seq)[1]:
                        call()
            for key, addition in [*self._additions.items()]:
                if now > addition.deadline:
                    self._settle(
                        key,
                        Unavailable(
                            f"{self.stream} did not answer within {self._patience:g} s: it is not "
                            "known whether this is stored"
                        ),
                    )
                elif now > addition.again_at and self._connection.connected:
                    self._post(key, addition)

    def _begin_again(self) -> None:
        """The connection has come back: what was on its way may be lost, in both directions."""
        self._hear_again()
        for key, addition in [*self._additions.items()]:
            self._post(key, addition)

    def _settle(self, key: str, outcome: Outcome) -> None:
        addition = self._additions.pop(key, None)
        if addition is not None:
            self._connection.forget(addition.reply)
            try:
                addition.told(outcome)
            except Exception as error:  # noqa: BLE001  a callback's error is the loop's to report
                self._loop.call_exception_handler(
                    {"message": f"{self.stream}: a callback raised", "exception": error}
                )

    # What is folded.

    async def _listen(self) -> int:
        """Have JetStream send everything from the last message that was folded on.

        Returns the number of the last one there was: asked before, not behind all of them.
        """
        last = await self._last()
        if self._hearing is not None:
            await self._hearing.end()
        self._round += 1
        self._delivered, self._heard_at = 0, self._loop.time()
        here = self._round

        async def hear(message: Msg) -> None:
            if here == self._round:
                await self._hear(message)

        inbox = self._connection.answer_to(lambda message: None)
        self._connection.forget(inbox)
        self._hearing = await self._connection.subscribe(inbox + ".all", hear)
        config = {
            "deliver_subject": inbox + ".all",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, self.folded),
            "ack_policy": "none",
            "max_deliver": 1,
            "headers_only": not self._whole,
            "mem_storage": True,
            "num_replicas": 1,
            "flow_control": True,
            "idle_heartbeat": HEARTBEAT_SECONDS * 1_000_000_000,
            "inactive_threshold": 10 * 1_000_000_000,
        }
        await self._connection.api(
            f"CONSUMER.CREATE.{self.stream}", stream_name=self.stream, config=config
        )
        return last

    async def _stay_tuned(self) -> None:
        """Listen anew when something is missing, nothing is heard, or the connection was lost."""
        while self.failure is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._restart.wait(), HEARTBEAT_SECONDS)
            silent = self._loop.time() - self._heard_at > SILENCE_SECONDS_MAX
            if not self._restart.is_set() and not silent:
                continue
            self._restart.clear()
            try:
                await self._listen()
            except (Unavailable, Refused):
                self._restart.set()
                await asyncio.sleep(SWEEP_SECONDS)

    async def _hear(self, message: Msg) -> None:
        self._heard_at = self._loop.time()
        if not message.reply.startswith("$JS.ACK."):
            await self._hear_control(message)
            return
        tokens = message.reply.split(".")
        seq, number, at_ns = (int(tokens[n]) for n in (_places(len(tokens))))
        if number != self._delivered + 1:
            self._hear_again()
            return
        self._delivered = number
        if seq <= self.folded:
            if seq == self.folded and at_ns != self._last_at_ns:
                self._lose(seq - 1)
            return
        if number == 1 and self.folded and not self._trimmed:
            self._lose(self.folded - 1)
            return
        key, _, change = (message.headers or {}).get(HEADER, "").partition(" ")
        if self._stored.pop(seq, key) != key:
            self._lose(seq - 1)
            return
        found = Folded(seq, at_ns, message.subject, change, message.data)
        try:
            folding = self._fold(found)
            if folding is not None:
                await folding
        except Unavailable:
            self._hear_again()
            return
        except Exception as error:  # noqa: BLE001  what cannot be folded must not be passed over
            self._break(f"message {seq} cannot be read, perhaps a newer version wrote it: {error}")
            return
        self.folded, self._last_at_ns = seq, at_ns
        self._highest = max(self._highest, seq)
        self._tell_reached(seq)
        if key in self._additions:
            self._settle(key, seq)

    async def _hear_control(self, message: Msg) -> None:
        headers = message.headers or {}
        answer = message.reply or headers.get("Nats-Consumer-Stalled", "")
        if answer:
            await self._connection.publish(answer, b"")
        elif int(headers.get("Nats-Last-Consumer", 0)) > self._delivered:
            self._hear_again()

    def _hear_again(self) -> None:
        """Take nothing more from this delivery, and begin another one."""
        self._round += 1
        self._restart.set()

    def _tell_reached(self, seq: int) -> None:
        if seq in self._reached:
            for call in self._reached.pop(seq)[1]:
                call()
        while self._sought and self._sought[0][0] <= seq:
            future = heapq.heappop(self._sought)[2]
            if not future.done():
                future.set_result(None)

    def _lose(self, last: int) -> None:
        if self.failure is None:
            self._break(
                f"messages after {last} are gone that were there: it was restored, or its server "
                "lost power. What was in progress is suspect; open it again"
            )
            self._on_loss()

    def _break(self, why: str) -> None:
        self.failure = why
        self._fail(Broken(f"{self.stream}: {why}"))

    def _fail(self, error: Broken) -> None:
        for key in [*self._additions]:
            self._settle(key, error)
        sought, self._sought = self._sought, []
        for *_, future in sought:
            if not future.done():
                future.set_exception(error)
        reached, self._reached = self._reached, {}
        for _, calls in reached.values():
            for call in calls:
                call()


def change_of(headers: Mapping[str, str]) -> str:
    """Return what a message changes, from its headers."""
    return headers[HEADER].partition(" ")[2]


def as_header(change: bytes) -> str:
    """Return JSON as a header's value, in ASCII whatever it says."""
    return change.decode() if change.isascii() else json.dumps(json.loads(change))


def _places(tokens: int) -> tuple[int, int, int]:
    """Return where the name of a delivery has its number in the stream, its own, and its time.

    `$JS.ACK.stream.consumer.delivered.seq.number.time.pending`, with a domain and an account before
    the stream since 2.11.
    """
    return (5, 6, 7) if tokens == 9 else (7, 8, 9)


def _hand_on(task: asyncio.Task[None], waiting: asyncio.Future[None]) -> None:
    if waiting.done() or task.cancelled():
        waiting.cancel()
    elif (error := task.exception()) is not None:
        assert isinstance(error, PerdureError)
        waiting.set_exception(error)
        waiting.exception()
    else:
        waiting.set_result(None)
