"""The writer: one connection, on which whatever waits is written in as few statements as can be.

There is no timer: while one statement is under way the next batch gathers, so that an idle server
is asked at once and a busy one pays one round trip and one fsync for hundreds of steps.

When the connection is lost, what became of the statement under way is not known. It is sent again:
its guards let nothing happen twice, and what they refuse is looked up in the log, where a step
that was written shows its own hash. Nobody is told anything before that is known, or
the database's `patience_seconds` have passed.

What was sent on a connection that is given up may still be on its way: a claim that arrives when
its session was run and released would hold it for a node that knows nothing of it. So the backend
of a lost connection is ended before anything is written on the next one. That cannot be done behind
a pooler, whose connections are not ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.adapters.postgres.connections import (
    Database,
    Pauses,
    ask,
    close,
    is_drivers,
)
from perdure.adapters.postgres.errors import in_words, sqlstate, verdict
from perdure.adapters.stores.postgres.commits import Commits
from perdure.adapters.stores.postgres.operations import (
    Accept,
    Claim,
    ClaimKey,
    Commit,
    Operation,
    Release,
)
from perdure.adapters.stores.postgres.requests import AcceptRuns, Accepts, Claims, Releases
from perdure.adapters.stores.postgres.stages import Stage, arrange
from perdure.core.errors import StoreError, StoreRefused, Unavailable
from perdure.ports import faults

if TYPE_CHECKING:
    import asyncpg

BATCH_MAX = 1_000
BATCH_BYTES_MAX = 16 * 1024 * 1024
UNDONE_MAX = 2
"""How often a transaction may be undone by others before its operations are tried one by one."""
UNIQUE_VIOLATION = "23505"
"""Somebody else has put in the same row: now it can be seen."""
END_LOST = """
SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
WHERE pid = ANY($1::integer[]) AND pid <> pg_backend_pid()
AND usename = current_user AND datname = current_database()
AND application_name = current_setting('application_name')
"""
"""Should another of our connections have got the number meanwhile, it is made again."""
TELLING_SECONDS = 0.001
"""How long what became of commits is told before others have their turn on the event loop."""

KINDS: dict[type[Operation], type[Stage]] = {
    Commit: Commits,
    Claim: Claims,
    Release: Releases,
}


class Told(NamedTuple):
    """From here on in the queue, what was submitted was decided with a refusal known."""

    claim: ClaimKey


class Writer:
    """Writes operations in the order in which they are submitted, many at a time."""

    def __init__(self, database: Database, connection: asyncpg.Connection[Any]) -> None:
        """Take a connection over; further ones are made when it is lost."""
        self.transactions = 0
        self.connections = 1
        self._database = database
        self._connection: asyncpg.Connection[Any] | None = connection
        self._backend = connection.get_server_pid()
        self._lost: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Operation | Told] = deque()
        self._news = asyncio.Event()
        self._closing = False
        self._untold: dict[ClaimKey, list[StoreError]] = {}
        self._telling: deque[Operation] = deque()
        self._task = self._loop.create_task(self._run())

    def submit(self, operation: Operation) -> None:
        """Queue an operation; it is told on the event loop what became of it."""
        operation.at = self._loop.time()
        self._waiting.append(operation)
        self._news.set()

    async def close(self) -> None:
        """Write what was submitted, and close the connection."""
        self._closing = True
        self._news.set()
        await self._task

    async def _run(self) -> None:
        try:
            while self._waiting or not self._closing:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    for stage in arrange(self._collect(), _stage_of):
                        await self._write(stage)
        finally:
            if self._connection is not None:
                await close(self._connection)

    def _collect(self) -> list[Operation]:
        batch: list[Operation] = []
        size = 0
        waiting = self._waiting
        while waiting and len(batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
            operation = waiting.popleft()
            if isinstance(operation, Told):
                self._note_told(operation)
            elif not self._untold or not self._is_doomed(operation):
                size += operation.bytes
                batch.append(operation)
        return batch

    async def _write(self, stage: Stage) -> None:
        """Write a stage, and then what was refused together with something else, by itself."""
        stages = deque([stage])
        while stages:
            stage = stages.popleft()
            if self._untold and isinstance(stage, Commits):
                stage = Commits.of(*(one for one in stage.operations if not self._is_doomed(one)))
            if not stage.operations:
                continue
            faults.reach("store.before_begin")
            again = await self._attempt(stage)
            faults.reach("store.after_commit")
            stages.extendleft(reversed(again))
            put_off = {id(operation) for one in again for operation in one.operations}
            self._tell([one for one in stage.operations if id(one) not in put_off])

    async def _attempt(self, stage: Stage) -> list[Stage]:
        """Carry a stage out, however often it takes, and return what has to be done anew.

        After this every other operation of it knows its fate.
        """
        end = stage.operations[0].at + self._database.patience_seconds
        pauses, undone = Pauses(), 0
        while True:
            try:
                connection = await self._connected()
                again = await stage.write(partial(ask, connection, self._database))
            except (Unavailable, StoreRefused) as error:
                why = str(error)
            except Exception as error:  # noqa: BLE001 - whoever waits must learn of it
                why = f"{self._database.name} did not do what was asked: {in_words(error)}"
                meant = verdict(error) if is_drivers(error) else "refused"
                raced = sqlstate(error) == UNIQUE_VIOLATION
                undone += raced or meant == "again"
                if meant == "lost":
                    self._lose(stage)
                elif undone > UNDONE_MAX or not (raced or meant == "again"):
                    if len(stage.operations) > 1:
                        return stage.alone()
                    if meant == "refused":
                        stage.spoil(error)
                        return []
            else:
                self.transactions += 1
                return again
            if self._loop.time() > end:
                for operation in stage.operations:
                    operation.fail(Unavailable(why))
                return []
            await pauses.pause()

    async def _connected(self) -> asyncpg.Connection[Any]:
        if self._connection is not None and self._connection.is_closed():
            self._give_up_connection()
        if self._connection is None:
            self._connection = await self._database.connect()
            self._backend = self._connection.get_server_pid()
            self.connections += 1
        if self._lost:
            await self._end_lost(self._connection)
        return self._connection

    async def _end_lost(self, connection: asyncpg.Connection[Any]) -> None:
        """See that what was sent on lost connections, and has not arrived, never does."""
        try:
            await ask(connection, self._database, END_LOST, self._lost)
        except Exception as error:
            # A provider may forbid it. Then there is nothing that could be done.
            if not is_drivers(error) or verdict(error) != "refused":
                raise
        self._lost.clear()

    def _give_up_connection(self) -> None:
        if self._connection is not None:
            if not self._database.pooled:
                self._lost.append(self._backend)
            self._connection.terminate()
        self._connection = None

    def _lose(self, stage: Stage) -> None:
        self._give_up_connection()
        for operation in stage.operations:
            operation.unsure = True

    def _is_doomed(self, operation: Operation) -> bool:
        """Refuse a step that was decided on one that was refused, and tell it so."""
        if not isinstance(operation, Commit):
            return False
        earlier = self._untold.get(operation.claim)
        if earlier is None:
            return False
        operation.fail(type(earlier[0])(str(earlier[0])))
        self._tell([operation])
        return True

    def _tell(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if isinstance(operation, Commit) and operation.error is not None:
                self._untold.setdefault(operation.claim, []).append(operation.error)
        waits_for_its_turn = bool(self._telling)
        self._telling.extend(operations)
        if not waits_for_its_turn:
            self._loop.call_soon(self._tell_on)

    def _tell_on(self) -> None:
        """Tell for a moment; the rest after whatever else came up: each may be a step's work."""
        end = self._loop.time() + TELLING_SECONDS
        try:
            while self._telling:
                operation = self._telling.popleft()
                if isinstance(operation, Commit) and operation.error is not None:
                    # What was submitted until now was decided before anybody knew.
                    self._waiting.append(Told(operation.claim))
                    self._news.set()
                operation.tell()
                if self._loop.time() > end:
                    break
        finally:
            # A callback that raised is the event loop's to report; the others are told anyway.
            if self._telling:
                self._loop.call_soon(self._tell_on)

    def _note_told(self, told: Told) -> None:
        errors = self._untold[told.claim]
        errors.pop()
        if not errors:
            del self._untold[told.claim]


def _stage_of(operation: Operation) -> type[Stage]:
    if isinstance(operation, Accept):
        return Accepts if operation.row is None else AcceptRuns
    return KINDS[type(operation)]
