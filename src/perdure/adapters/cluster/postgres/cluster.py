"""PostgresCluster: presence and a bus in two tables of a database.

A message is a row for each node that it is for, which takes it by deleting it. A NOTIFY says that
there is one, sent with the message and never by what commits steps; whoever misses it looks by
himself a little later.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from perdure.adapters.postgres.connections import Database, Pauses, Pool, ask, close, is_drivers
from perdure.adapters.postgres.schema import Schema
from perdure.core.errors import StoreError, Unavailable
from perdure.ports.cluster import MESSAGE_BYTES_MAX, NodeCard, OnMessage

if TYPE_CHECKING:
    import asyncpg

SCHEMA = Schema(part="cluster", package=__package__)
CONNECTIONS = 2
"""Besides the one that listens: for sending, and for who is there."""
QUIET_SECONDS, BUSY_SECONDS = 1.0, 0.2
"""How often a node looks for messages without being told; the latter when some came lately."""
BUSY_FOR_SECONDS = 5.0
FAREWELL_SECONDS_MAX = 0.5
"""How long who leaves waits until everything is sent."""
SWEPT_EVERY_SECONDS = 30.0
MESSAGE_KEPT_MS = 60_000
MEMBER_KEPT_MS = 24 * 3600 * 1000
OUTGOING_BYTES_MAX = 2 * MESSAGE_BYTES_MAX
"""What waits to be sent, at most: what is more is dropped."""
BATCH_BYTES_MAX = 8 * 1024 * 1024
BATCH_MAX = 500

NOW = "coalesce({}::bigint, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
ANNOUNCE = f"""
INSERT INTO perdure.members (id, card, lifetime_ms, seen_at) VALUES ($1, $2, $3, {NOW.format("$4")})
ON CONFLICT (id) DO UPDATE SET
    card = excluded.card, lifetime_ms = excluded.lifetime_ms, seen_at = excluded.seen_at
"""
MEMBERS = f"""
SELECT card, seen_at FROM perdure.members WHERE seen_at + lifetime_ms > {NOW.format("$1")}
ORDER BY id
"""
LEAVE = """
WITH gone AS (DELETE FROM perdure.members WHERE id = $1)
DELETE FROM perdure.messages WHERE addressee = $1
"""
SEND = f"""
WITH sent AS (
    INSERT INTO perdure.messages (addressee, sent_at, body)
    SELECT members.id, {NOW.format("$4")}, message.body
    FROM unnest($2::text[], $3::bytea[]) AS message (addressee, body)
    JOIN perdure.members ON members.id = message.addressee OR (message.addressee IS NULL
        AND members.id <> $1 AND members.seen_at + members.lifetime_ms > {NOW.format("$4")})
    RETURNING addressee
), addressees AS MATERIALIZED (SELECT DISTINCT addressee FROM sent)
SELECT pg_notify('perdure_' || md5(addressee), '') FROM addressees
"""
TAKE = """
DELETE FROM perdure.messages WHERE ctid = ANY (ARRAY(
    SELECT place FROM (
        SELECT place, sum(size) OVER (ORDER BY sent_at, place) - size AS before FROM (
            SELECT ctid AS place, sent_at, octet_length(body) AS size FROM perdure.messages
            WHERE addressee = $1 ORDER BY sent_at LIMIT $2
        ) AS oldest
    ) AS first WHERE before < $3
)) AND addressee = $1 RETURNING body
"""
SWEEP = f"""
WITH gone AS (
    DELETE FROM perdure.members WHERE seen_at < {NOW.format("$1")} - $2::bigint
)
DELETE FROM perdure.messages WHERE sent_at < {NOW.format("$1")} - $3::bigint
"""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(NodeCard)


class _HasTime(Protocol):
    def now_ms(self) -> int: ...


class PostgresCluster:
    """A node's place in the cluster of those who name the same database."""

    def __init__(self, database: Database, now: Callable[[], int | None]) -> None:
        self._database = database
        self._now = now
        self._pool = Pool(database, CONNECTIONS)
        self._id: str | None = None
        self._lifetime_ms = 0
        self._on_message: OnMessage = lambda message: None
        self._outgoing: deque[tuple[str | None, bytes]] = deque()
        self._outgoing_bytes = 0
        self._to_send = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._to_take = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls, url: str, clock: Callable[[], int] | _HasTime | None = None
    ) -> PostgresCluster:
        """Open the cluster in the database at `url`, making its tables if they are missing.

        Time is the server's, unless a `clock` says it. Raises what `PostgresStore.open` raises.
        """
        database = Database(url)
        connection = await database.connect()
        try:
            await SCHEMA.migrate(connection, database.name)
        finally:
            await close(connection)
        return cls(
            database, _no_time if clock is None else clock if callable(clock) else clock.now_ms
        )

    async def join(self, card: NodeCard, lifetime_ms: int, on_message: OnMessage) -> None:
        """Become known, for `lifetime_ms` at a time, and hear what is sent to this node."""
        self._id = card.id
        self._lifetime_ms = lifetime_ms
        self._on_message = on_message
        await self.announce(card)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._keep_sending()),
            loop.create_task(self._keep_taking()),
        ]

    async def announce(self, card: NodeCard) -> None:
        """Say again that this node is there, and how it is."""
        if self._id is None:
            raise Unavailable("a node announces itself after it has joined")
        values = (card.id, _encode(card), self._lifetime_ms, self._now())
        await self._pool.ask(ANNOUNCE, *values)

    async def nodes(self) -> builtins.list[NodeCard]:
        """Return the nodes that announced themselves within their lifetime."""
        rows = await self._pool.ask(MEMBERS, self._now())
        cards = [(_decoder.decode(card), seen_at) for card, seen_at in rows]
        return [msgspec.structs.replace(card, seen_at=seen_at) for card, seen_at in cards]

    def send(self, node: str | None, message: bytes) -> None:
        """Send a message to a node, or to all others."""
        size = len(message)
        if self._id is None or size > MESSAGE_BYTES_MAX:
            return
        if self._outgoing_bytes + size > OUTGOING_BYTES_MAX:
            return
        self._outgoing.append((node, message))
        self._outgoing_bytes += size
        self._all_sent.clear()
        self._to_send.set()

    async def leave(self) -> None:
        """Be known no more, and hear nothing more; what was sent before goes out first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS_MAX):
                await self._all_sent.wait()
        left, self._id = self._id, None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if left is not None:
            # Whoever cannot be told so sees it at the end of the lifetime.
            with suppress(StoreError):
                await self._pool.ask_once(LEAVE, left)
        await self._pool.close()

    async def _keep_sending(self) -> None:
        while self._id is not None:
            await self._to_send.wait()
            self._to_send.clear()
            while self._outgoing:
                nodes, messages = self._collect()
                # A message may get lost, and come twice.
                with suppress(StoreError):
                    await self._pool.ask(SEND, self._id, nodes, messages, self._now())
            self._all_sent.set()

    def _collect(self) -> tuple[list[str | None], list[bytes]]:
        nodes: list[str | None] = []
        messages: list[bytes] = []
        size = 0
        while self._outgoing and len(nodes) < BATCH_MAX and size < BATCH_BYTES_MAX:
            node, message = self._outgoing.popleft()
            nodes.append(node)
            messages.append(message)
            size += len(message)
        self._outgoing_bytes -= size
        return nodes, messages

    async def _keep_taking(self) -> None:
        pauses = Pauses()
        while self._id is not None:
            connection = None
            try:
                connection = await self._database.connect()
                await self._listen(connection)
                pauses = Pauses()
                await self._take_for_ever(connection)
            except Exception as error:
                if not isinstance(error, StoreError) and not is_drivers(error):
                    raise
                await pauses.pause()
            finally:
                if connection is not None:
                    connection.terminate()

    async def _listen(self, connection: asyncpg.Connection[Any]) -> None:
        if self._database.pooled or self._id is None:
            return
        channel = f"perdure_{hashlib.md5(self._id.encode()).hexdigest()}"  # noqa: S324  a name
        await connection.add_listener(channel, lambda *hint: self._to_take.set())
        connection.add_termination_listener(lambda lost: self._to_take.set())

    async def _take_for_ever(self, connection: asyncpg.Connection[Any]) -> None:
        loop = asyncio.get_running_loop()
        busy_until, swept_at = 0.0, loop.time()
        while self._id is not None:
            values = (self._id, BATCH_MAX, BATCH_BYTES_MAX)
            rows = await ask(connection, self._database, TAKE, *values)
            for (body,) in rows:
                loop.call_soon(self._hear, body)
            if rows:
                busy_until = loop.time() + BUSY_FOR_SECONDS
                continue
            if loop.time() > swept_at + SWEPT_EVERY_SECONDS:
                swept_at = loop.time()
                kept = (MEMBER_KEPT_MS, MESSAGE_KEPT_MS)
                await ask(connection, self._database, SWEEP, self._now(), *kept)
            pause = BUSY_SECONDS if loop.time() < busy_until else QUIET_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._to_take.wait()
            self._to_take.clear()

    def _hear(self, message: bytes) -> None:
        if self._id is not None:
            self._on_message(message)


def _no_time() -> None:
    """Leave it to the server to say what time it is."""
