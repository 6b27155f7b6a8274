"""The writer: whatever waits goes out in one batch, and the next one when its answer is there.

A batch has a number, and the script keeps what the last one of each writer came to: one that is
sent again after a lost line is executed once and answered as the first time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from perdure.adapters.redis.line import Command
from perdure.adapters.redis.realm import Realm
from perdure.adapters.redis.script import Script
from perdure.core.errors import Conflict, PerdureError, StoreError, Unavailable

BATCH_OPERATIONS_MAX = 500
BATCH_BYTES_MAX = 4 << 20
ID_BYTES = 16
REFRESH_SECONDS = 6 * 3600.0
TELLING_SECONDS = 0.001
"""How long what became of operations is told before others have their turn on the event loop."""

Header = tuple[Any, ...]
"""What a script takes apart at once: a kind, the number of payloads, then text and integers."""
Answer = Sequence[Any]
"""A word and what belongs to it; empty when an operation just happened."""

UNSTORABLE = (OverflowError, TypeError, ValueError)
"""One operation's own fault: it is refused, and the others go on."""
DAMAGED = (ArithmeticError, LookupError, TypeError, ValueError)

_encode = msgspec.msgpack.Encoder().encode


class Operation(Protocol):
    """What is executed once; `submitted` is when, `error` why it is refused if it is.

    `load_bytes` is how much may be read for it, at a guess.
    """

    submitted: float
    load_bytes: int

    @property
    def error(self) -> PerdureError | None:
        """Why nothing counts as done."""
        ...

    def packed(self) -> tuple[Header, list[bytes]]:
        """Return the header and the payloads."""
        ...

    def settle(self, answer: Answer, load: Any) -> None:
        """Note what became of it; `load` is what was read for it, if anything was."""
        ...

    def fail(self, error: StoreError) -> None:
        """Note that nothing came of it, or that what came of it is not known."""
        ...

    def tell(self) -> None:
        """Tell whoever waits."""
        ...


class Request:
    """An operation with a result; `read` makes it of an answer and of what was loaded."""

    __slots__ = ("_future", "_packed", "_read", "_result", "error", "load_bytes", "submitted")

    def __init__(
        self,
        header: Header,
        payloads: list[bytes],
        read: Callable[[Answer, Any], Any],
        future: asyncio.Future[Any],
        load_bytes: int = 0,
    ) -> None:
        self.load_bytes = load_bytes
        self.submitted = future.get_loop().time()
        self.error: PerdureError | None = None
        self._packed = header, payloads
        self._read = read
        self._result: Any = None
        self._future = future

    def packed(self) -> tuple[Header, list[bytes]]:
        """Return the header and the payloads."""
        return self._packed

    def settle(self, answer: Answer, load: Any) -> None:
        """Note what became of it."""
        try:
            self._result = self._read(answer, load)
        except PerdureError as error:
            self.error = error
        except DAMAGED as error:
            self.error = Unavailable(f"what is stored cannot be read: {error!r}")

    def fail(self, error: StoreError) -> None:
        """Note that nothing came of it, or that what came of it is not known."""
        self.error = type(error)(str(error))

    def tell(self) -> None:
        """Resolve the future, unless nobody waits any more."""
        if self._future.done():
            return
        if self.error is None:
            self._future.set_result(self._result)
        else:
            self._future.set_exception(self.error)


Op = TypeVar("Op", bound=Operation)


class Writer(Generic[Op]):
    """Executes operations in the order in which they are submitted, many at a time.

    `losses` is how often the server was found to lack what it had answered.
    """

    def __init__(self, realm: Realm, script: Script) -> None:
        self.batches = 0
        self.losses = 0
        self._realm = realm
        self._script = script
        self._id = secrets.token_hex(ID_BYTES)
        self._acknowledged = 0
        self._incarnation = b""
        self._queue: deque[Op] = deque()
        self._telling: deque[Op] = deque()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._stopping = False
        self._task = self._loop.create_task(self._run())

    def submit(self, operation: Op) -> None:
        """Queue an operation; it is told on the event loop what became of it."""
        self._queue.append(operation)
        self._news.set()

    async def stop(self) -> None:
        """Execute what was submitted, and tell it."""
        self._stopping = True
        self._news.set()
        await self._task
        while self._telling:
            self._tell_on()

    def _executed(self, batch: list[Op]) -> None:
        """Look at a batch before it is told."""

    def _tell_one(self, operation: Op) -> None:
        operation.tell()

    async def _run(self) -> None:
        while self._queue or not self._stopping:
            if not self._queue:
                await self._rest()
                continue
            batch, asked, arguments = self._collect()
            if asked:
                await self._execute(asked, arguments)
            self._executed(batch)
            self._tell(batch)

    async def _rest(self) -> None:
        """Wait for something to do; what the server keeps of an idle writer must not expire."""
        self._news.clear()
        try:
            async with asyncio.timeout(REFRESH_SECONDS):
                await self._news.wait()
        except TimeoutError:
            if self._acknowledged:
                await self._execute([], [list_of([])])

    def _collect(self) -> tuple[list[Op], list[Op], list[bytes]]:
        """Take a batch: all of it, what of it is to be asked, and the headers and payloads."""
        batch: list[Op] = []
        asked: list[Op] = []
        headers, payloads, size = list[bytes](), list[bytes](), 0
        while self._queue and len(asked) < BATCH_OPERATIONS_MAX and size < BATCH_BYTES_MAX:
            operation = self._queue.popleft()
            batch.append(operation)
            if operation.error is not None:
                continue
            try:
                header, parts = operation.packed()
                headers.append(_encode(header))
            except UNSTORABLE as error:
                operation.fail(Conflict(f"it cannot be stored: {error}"))
                continue
            payloads += parts
            size += operation.load_bytes + sum(map(len, parts))
            asked.append(operation)
        return batch, asked, [list_of(headers), *payloads]

    async def _execute(self, asked: list[Op], arguments: list[bytes]) -> None:
        """Have operations executed, and let each note what became of it."""
        headers, *payloads = arguments
        since = min((one.submitted for one in asked), default=self._loop.time())
        self.batches = number = self.batches + 1

        def batch() -> Command:
            safely = int(self._realm.restarts_safely)
            standing = (self._acknowledged, safely, self._incarnation)
            return (headers, self._id, number, *standing, *payloads)

        try:
            answers, loads, incarnation, behind = await self._realm.run(self._script, batch, since)
        except Unavailable as error:
            for operation in asked:
                operation.fail(error)
            return
        self._acknowledged, self._incarnation = number, incarnation
        self.losses += behind
        said = {place: answer for place, *answer in answers}
        loaded = iter(loads)
        for place, operation in enumerate(asked):
            answer = said.get(place, ())
            claimed = bool(answer) and answer[0] == b"claimed"
            operation.settle(answer, next(loaded) if claimed else None)

    def _tell(self, batch: list[Op]) -> None:
        waits_for_its_turn = bool(self._telling)
        self._telling.extend(batch)
        if not waits_for_its_turn:
            self._tell_on()

    def _tell_on(self) -> None:
        """Tell for a moment; the rest after whatever else came up: each may be a step's work."""
        end = self._loop.time() + TELLING_SECONDS
        while self._telling:
            try:
                self._tell_one(self._telling.popleft())
            except Exception as error:  # noqa: BLE001 - it is reported, and the others are told
                what = {"message": "a callback of a store failed", "exception": error}
                self._loop.call_exception_handler(what)
            if self._loop.time() > end:
                self._loop.call_soon(self._tell_on)
                break


def list_of(encoded: Sequence[bytes]) -> bytes:
    """Return the msgpack list of what is encoded already; at most 65,535 of it."""
    return b"".join((b"\xdc", len(encoded).to_bytes(2), *encoded))
