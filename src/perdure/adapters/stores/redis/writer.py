"""The writer: whatever waits goes out in one batch, and the next one when its answer is there.

A batch has a number, and the script keeps what the last one of each writer came to: one that is
sent again after a lost line is executed once and answered as the first time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from contextlib import suppress

import msgspec

from perdure.adapters.redis.line import Command
from perdure.adapters.redis.realm import Realm
from perdure.adapters.redis.script import Script
from perdure.adapters.stores.redis.operations import Commit, Operation
from perdure.core.errors import StoreError, Unavailable
from perdure.core.ids import SessionId
from perdure.ports.session_store import Token

BATCH_OPERATIONS_MAX = 500
BATCH_BYTES_MAX = 4 << 20
ID_BYTES = 16
TELLING_SECONDS = 0.001
"""How long what became of operations is told before others have their turn on the event loop."""

ClaimKey = tuple[SessionId, Token]

_encode = msgspec.msgpack.Encoder().encode


class Writer:
    """Executes operations in the order in which they are submitted.

    Steps of a claim that were submitted before its owner was told of a refusal are refused with it.
    """

    def __init__(self, realm: Realm, script: Script) -> None:
        self.batches = 0
        self._realm = realm
        self._script = script
        self._id = secrets.token_hex(ID_BYTES)
        self._acknowledged = 0
        self._queue: deque[Operation] = deque()
        self._untold: dict[ClaimKey, list[StoreError]] = {}
        self._telling: deque[Operation] = deque()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._stopping = False
        self._task = self._loop.create_task(self._run())

    def submit(self, operation: Operation) -> None:
        """Queue an operation; it is told on the event loop what became of it."""
        if isinstance(operation, Commit) and operation.claim in self._untold:
            self._refuse(operation, self._untold[operation.claim][0])
        self._queue.append(operation)
        self._news.set()

    async def stop(self) -> None:
        """Execute what was submitted, and tell it."""
        self._stopping = True
        self._news.set()
        await self._task
        while self._telling:
            self._tell_on()

    async def _run(self) -> None:
        while self._queue or not self._stopping:
            if not self._queue:
                self._news.clear()
                await self._news.wait()
                continue
            batch, asked, payloads = self._collect()
            if asked:
                await self._execute(asked, payloads)
            self._refuse_what_follows(batch)
            self._tell(batch)

    def _collect(self) -> tuple[list[Operation], list[Operation], list[bytes]]:
        """Take a batch: all of it, what of it is to be asked, and the script's arguments."""
        batch: list[Operation] = []
        asked: list[Operation] = []
        headers, payloads, size = [], list[bytes](), 0
        while self._queue and len(asked) < BATCH_OPERATIONS_MAX and size < BATCH_BYTES_MAX:
            operation = self._queue.popleft()
            batch.append(operation)
            if operation.error is None:
                header, parts = operation.packed()
                headers.append(header)
                payloads += parts
                size += sum(map(len, parts))
                asked.append(operation)
        return batch, asked, [_encode(headers), *payloads]

    async def _execute(self, asked: list[Operation], arguments: list[bytes]) -> None:
        """Have operations executed, and let each note what became of it."""
        headers, *payloads = arguments
        since = min(one.submitted for one in asked)
        self.batches += 1

        def batch() -> Command:
            safely = int(self._realm.restarts_safely)
            return (headers, self._id, self.batches, self._acknowledged, safely, *payloads)

        try:
            answers, loads = await self._realm.run(self._script, batch, since)
        except Unavailable as error:
            for operation in asked:
                operation.fail(error)
            return
        self._acknowledged = self.batches
        said = {place: answer for place, *answer in answers}
        loaded = iter(loads)
        for place, operation in enumerate(asked):
            answer = said.get(place, ())
            claimed = bool(answer) and answer[0] == b"claimed"
            operation.settle(answer, next(loaded) if claimed else None)

    def _refuse_what_follows(self, batch: list[Operation]) -> None:
        """Refuse the steps in the queue that were decided on one that is refused."""
        for operation in batch:
            if isinstance(operation, Commit) and operation.error is not None:
                errors = self._untold.setdefault(operation.claim, [])
                if operation.error not in errors:
                    errors.append(operation.error)
        if self._untold:
            for operation in self._queue:
                if isinstance(operation, Commit) and operation.error is None:
                    earlier = self._untold.get(operation.claim)
                    if earlier is not None:
                        self._refuse(operation, earlier[0])

    def _refuse(self, commit: Commit, earlier: StoreError) -> None:
        commit.error = type(earlier)(str(earlier))
        self._untold[commit.claim].append(commit.error)

    def _tell(self, batch: list[Operation]) -> None:
        waits_for_its_turn = bool(self._telling)
        self._telling.extend(batch)
        if not waits_for_its_turn:
            self._tell_on()

    def _tell_on(self) -> None:
        """Tell for a moment; the rest after whatever else came up: each may be a step's work."""
        end = self._loop.time() + TELLING_SECONDS
        try:
            while self._telling:
                operation = self._telling.popleft()
                if isinstance(operation, Commit) and operation.error is not None:
                    self._forget(operation.claim)
                operation.tell()
                if self._loop.time() > end:
                    break
        finally:
            # A callback that raised is the event loop's to report; the others are told anyway.
            if self._telling:
                self._loop.call_soon(self._tell_on)

    def _forget(self, claim: ClaimKey) -> None:
        with suppress(KeyError):
            self._untold[claim].pop()
            if not self._untold[claim]:
                del self._untold[claim]
