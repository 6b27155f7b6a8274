"""PostgresStore: a database that many nodes share, and every promise of the port."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from perdure.adapters.postgres.connections import PATIENCE_SECONDS, Database, Pool, close
from perdure.adapters.postgres.found import Found, durability
from perdure.adapters.postgres.schema import Schema
from perdure.adapters.stores.postgres import statements
from perdure.adapters.stores.postgres.names import Keys, storable
from perdure.adapters.stores.postgres.operations import (
    Accept,
    Claim,
    Commit,
    Release,
)
from perdure.adapters.stores.postgres.reading import Reading
from perdure.adapters.stores.postgres.writer import Writer
from perdure.core.codec import Record
from perdure.core.durability import Durability
from perdure.core.errors import (
    Broken,
    Fenced,
    InvalidInput,
    NotFound,
    StoreRefused,
    Unavailable,
)
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    Claimed,
    CommitDone,
    InboxEntry,
    Loaded,
    NotClaimed,
    Receipt,
    RunQuery,
    Settled,
    StepCommit,
    Token,
)

if TYPE_CHECKING:
    import asyncpg

SCHEMA = Schema(part="store", package=__package__)
IDENTITY = "SELECT identity FROM perdure.store"
READERS = 3
"""Connections that read, at most; one more writes, and one renews the lease."""
NODES_KEPT_MS = 7 * 24 * 3600 * 1000
"""How long a node that renews no lease and owns nothing is remembered."""


class _HasTime(Protocol):
    def now_ms(self) -> int: ...


class PostgresStore:
    """A store in a PostgreSQL database, shared by all nodes that name the same one.

    A connection that is lost is made again, and what was under way on it is found out about:
    `Unavailable` is raised only when the server stays away for longer than that may take.
    """

    durability: Durability

    def __init__(
        self,
        database: Database,
        connection: asyncpg.Connection[Any],
        now: Callable[[], int | None],
        identity: str,
    ) -> None:
        self.durability = database.found.durability
        self.identity = identity
        self._database = database
        self._now = now
        self._keys = Keys()
        self._writer = Writer(database, connection)
        self._pool = Pool(database, READERS)
        self._renewals = Pool(database, 1)
        self._noting: asyncio.Task[None] | None = None
        self._reading = Reading(self._pool, self._keys)
        self._closed = False
        database.greet = self._greet

    @classmethod
    async def open(
        cls,
        url: str,
        clock: Callable[[], int] | _HasTime | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> PostgresStore:
        """Open the store in the database at `url`, making its tables if they are missing.

        Time is the server's, unless a `clock` says it. What is asked waits `patience_seconds` for a
        server that is away, or silent, before it raises `Unavailable`.

        Raises `InvalidInput` for a URL that is none, or if asyncpg is not installed, `Unavailable`
        if the server cannot be reached, and `StoreRefused` if it may not be trusted with a store:
        it is a standby, or was written by a newer version.
        """
        now = _no_time if clock is None else clock if callable(clock) else clock.now_ms
        database = Database(url, patience_seconds)
        connection = await database.connect()
        try:
            await SCHEMA.migrate(connection, database.name)
            await _note(connection, database.found, now())
            await connection.execute(statements.FORGET_NODES, now(), NODES_KEPT_MS)
            identity = await connection.fetchval(IDENTITY)
        except BaseException:
            await close(connection)
            raise
        return cls(database, connection, now, identity)

    async def close(self) -> None:
        """Write what was submitted, and close all connections; safe to call twice."""
        if not self._closed:
            self._closed = True
            if self._noting is not None:
                self._noting.cancel()
            await self._writer.close()
            await self._renewals.close()
            await self._pool.close()

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Put a command into a session's inbox, creating the session if it is new."""
        key = self._keys.find(entry.session)
        if key is None or not storable(entry.id):
            raise InvalidInput(
                f"{entry.id!r} or its session cannot be a name: it has a character that is not "
                "valid Unicode, or the character NUL"
            )
        digest = hashlib.sha256(entry.command).digest()
        future = self._future()
        self._writer.submit(Accept(key, future, entry, digest, row, generation, self._now()))
        duplicate: bool = await future
        return Receipt(entry.id, entry.session, self.durability, duplicate)

    async def claim(
        self,
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None = None,
        reads: int | None = None,
    ) -> Claimed | NotClaimed:
        """Take the right to write a session, then read it, in one round trip."""
        key = self._keys.find(session)
        if key is None:
            return NotClaimed("absent")
        future = self._future()
        asked = (session, owner, nonce, strikes_max, reads, self._now())
        self._writer.submit(Claim(key, future, *asked))
        claimed: Claimed | NotClaimed = await future
        if isinstance(claimed, Claimed):
            self._keys.remember(session, key)
        return claimed

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session without the right to write it; None if there is none."""
        return await self._reading.load(session)

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Submit a step commit; `done` is called on the event loop once its fate is known."""
        key = self._keys.find(step.session)
        if key is None:
            why = f"the claim {step.token.epoch} of {step.session} is not the current one"
            asyncio.get_running_loop().call_soon(done, Fenced(why))
        elif self._closed:
            asyncio.get_running_loop().call_soon(done, self._broken())
        else:
            self._writer.submit(Commit(key, step, done))

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Confirm the node's lease for all its sessions; False if it had run out meanwhile.

        It waits for no commit and no reading: a lease must not run out because there is much to
        do. What a commit is worth is told besides, since that can be set while the server runs.
        """
        (row,) = await self._renewals.ask(statements.RENEW, owner, lease_ms, self._now())
        settings = dict(row)
        run_out = settings.pop("run_out")
        is_noted = durability(settings) == self.durability
        if not is_noted and (self._noting is None or self._noting.done()):
            self._noting = asyncio.ensure_future(self._note_again(settings))
        return not run_out

    async def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None = None,
        quarantine: str | None = None,
    ) -> None:
        """Give up a claim, or put a session in quarantine, or lift that."""
        key = self._keys.find(session)
        if key is None:
            raise NotFound(f"there is no session {session}")
        future = self._future()
        self._writer.submit(Release(key, future, session, token, snapshot, quarantine))
        await future
        self._keys.forget(session)

    async def due(
        self,
        now: int,
        limit: int,
        agents: Collection[str] | None = None,
        reads: int | None = None,
    ) -> tuple[builtins.list[SessionId], int | None]:
        """Return sessions nobody runs that are due at `now`, and the time of the next one after."""
        return await self._reading.due(now, self._now(), limit, agents, reads)

    async def unread(self, owner: str, limit: int) -> builtins.list[SessionId]:
        """Return sessions for which something was accepted that their owner may not know of."""
        return await self._reading.unread(owner, limit)

    async def distrust(self) -> None:
        """Make every session suspect."""
        await self._pool.ask(statements.DISTRUST, self._now())

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        return await self._reading.settled(session, id)

    async def read(self, session: SessionId, after: int, limit: int) -> builtins.list[Record]:
        """Return up to `limit` records after position `after`, in order."""
        return await self._reading.read(session, after, limit)

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match, newest first."""
        return await self._reading.list_runs(query)

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        return await self._reading.blob(address)

    def facts(self) -> dict[str, str | int | None]:
        """Return what is worth knowing of this store: where and how it writes, and how much."""
        settings = self._database.found.settings
        return {
            "url": self._database.name,
            **{name: value for name, value in settings.items() if name != "standby"},
            "lineage": self._database.found.lineage,
            "durability": self.durability,
            "transactions": self._writer.transactions,
            "connections_made": self._writer.connections,
        }

    async def _greet(self, connection: asyncpg.Connection[Any], found: Found) -> None:
        if await connection.fetchval(IDENTITY) != self.identity:
            raise StoreRefused(f"{self._database.name} holds another store than before")
        await _note(connection, found, self._now())
        self.durability = found.durability

    async def _note_again(self, settings: dict[str, Any]) -> None:
        """Note that a commit is worth something else by now; the next renewal tries it again."""
        found = self._database.found._replace(durability=durability(settings), settings=settings)
        with suppress(Unavailable):
            await self._pool.ask(statements.GREET, found.lineage, found.durability, self._now())
            self._database.found, self.durability = found, found.durability

    def _future(self) -> asyncio.Future[Any]:
        if self._closed:
            raise self._broken()
        return asyncio.get_running_loop().create_future()

    def _broken(self) -> Broken:
        return Broken(f"the store {self._database.name} is closed")


async def _note(connection: asyncpg.Connection[Any], found: Found, now: int | None) -> None:
    """Note on which line of history we write from now on; if it is another, distrust what is there.

    Of all nodes that find out, the first one does it.
    """
    await connection.execute(statements.GREET, found.lineage, found.durability, now)


def _no_time() -> None:
    """Leave it to the server to say what time it is."""
