"""Connections that are checked when they are made, bounded in what they wait for, and made again.

Behind a pooler that gives a server connection to one transaction at a time, say `?pooler=yes`: then
what is set is set in each transaction, and nothing is prepared beforehand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from perdure.adapters.postgres import driver
from perdure.adapters.postgres.errors import in_words, sqlstate, verdict
from perdure.adapters.postgres.found import LINEAGE, LOOK, NOT_TOLD, Found, durability, judge
from perdure.core.errors import Broken, InvalidInput, StoreRefused, Unavailable

if TYPE_CHECKING:
    import asyncpg

T = TypeVar("T")
Rows = list[Any]

STATEMENTS_PREPARED_MAX = 100
CONNECT_SECONDS_MAX = 3.0
CLOSE_SECONDS_MAX = 1.0
STATEMENT_SECONDS_MAX = 8
LOCK_SECONDS_MAX = 1
IDLE_IN_TRANSACTION_SECONDS_MAX = 8
PATIENCE_SECONDS = 8.0
"""How long an operation waits for a server that is away or silent, before it is told that it is."""
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.05, 1.0

ENCODE = "what is special in its password has to be percent-encoded, / as %2F"

SETTINGS = {
    "statement_timeout": f"{STATEMENT_SECONDS_MAX}s",
    "lock_timeout": f"{LOCK_SECONDS_MAX}s",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS_MAX}s",
    "default_transaction_isolation": "read committed",
    # All that we ask is answered by indexes. Without these, a plan that was made while a table was
    # small would read it as a whole when it has grown.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
SET_IN_TRANSACTION = ";".join(f"SET LOCAL {name} = '{value}'" for name, value in SETTINGS.items())


class Database:
    """Where a database is, and how to connect to it, and how long to wait for it.

    `found` is what the server was found to be when it was connected to last.
    """

    found: Found
    greet: Callable[[asyncpg.Connection[Any], Found], Awaitable[None]] | None = None
    """What is to be done with every new connection before anything else."""

    def __init__(self, url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Take a URL as libpq knows it, with `pooler` besides. Raises `InvalidInput`."""
        self.patience_seconds = patience_seconds
        try:
            parts = urlsplit(url)
        except ValueError:
            raise InvalidInput(f"a PostgreSQL URL cannot be understood: {ENCODE}") from None
        if parts.scheme not in {"postgresql", "postgres"}:
            raise InvalidInput(
                f"a PostgreSQL URL begins with postgresql://, not with {parts.scheme}://"
            )
        options = parse_qsl(parts.query, keep_blank_values=True)
        pooler = dict(options).get("pooler", "no")
        if pooler not in {"yes", "no"}:
            raise InvalidInput(f"pooler is {pooler!r} in the URL: expected yes or no")
        rest = urlencode([(name, value) for name, value in options if name != "pooler"])
        self._url = urlunsplit(parts._replace(query=rest))
        self.pooled = pooler == "yes"
        # What is before the last @ is a user and his password, whatever a parser takes it for.
        self._hides = "@" in parts.path + parts.query + parts.fragment
        place = url.partition("://")[2].rpartition("@")[2].partition("#")[0].partition("?")[0]
        self.name = f"{parts.scheme}://{place}"

    async def connect(self, options: dict[str, str] | None = None) -> asyncpg.Connection[Any]:
        """Return a new connection to a primary.

        Raises `Unavailable` if there is none now, and `StoreRefused` if the server will not do.
        """
        settings = {} if self.pooled else {**SETTINGS, **(options or {})}
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                connection = await driver.connect(
                    self._url,
                    server_settings={"application_name": "perdure", **settings},
                    statement_cache_size=0 if self.pooled else STATEMENTS_PREPARED_MAX,
                    max_cached_statement_lifetime=0,
                )
        except (OSError, TimeoutError) as error:
            raise self._away(error) from None
        except ValueError as error:
            why = ENCODE if self._hides else error
            raise InvalidInput(f"{self.name} cannot be understood: {why}") from None
        except Exception as error:
            if not is_drivers(error):
                raise
            if verdict(error) == "refused":
                raise StoreRefused(f"{self.name} lets nobody in: {in_words(error)}") from None
            raise self._away(error) from None
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                self.found = await self._look(connection)
                if self.greet is not None:
                    await self.greet(connection, self.found)
        except BaseException as error:
            connection.terminate()
            if is_drivers(error):
                raise self._away(error) from None
            raise
        return connection

    async def _look(self, connection: asyncpg.Connection[Any]) -> Found:
        async with connection.transaction():
            settings = dict(await connection.fetchrow(LOOK) or {})
            judge(settings, self.name)
            lineage = await self._lineage(connection)
        return Found(durability(settings), lineage, settings)

    async def _lineage(self, connection: asyncpg.Connection[Any]) -> str:
        try:
            async with connection.transaction():
                return str(await connection.fetchval(LINEAGE))
        except Exception as error:
            if not sqlstate(error).startswith(NOT_TOLD):
                raise
            return ""

    def _away(self, error: BaseException) -> Unavailable:
        return Unavailable(f"{self.name} cannot be reached: {in_words(error)}")


async def ask(
    connection: asyncpg.Connection[Any], database: Database, query: str, *values: Any
) -> Rows:
    """Run one statement in a transaction of its own and return its rows.

    Raises what the driver raises, and `TimeoutError` if the server says nothing at all.
    """
    try:
        async with asyncio.timeout(database.patience_seconds):
            if not database.pooled:
                return await connection.fetch(query, *values)
            async with connection.transaction():
                await connection.execute(SET_IN_TRANSACTION)
                return await connection.fetch(query, *values)
    except TimeoutError:
        connection.terminate()
        raise


class Pool:
    """A few connections for whatever can be asked twice: reads, and writes that are repeatable.

    Connections are made when they are needed, and made again when they are lost.
    """

    def __init__(self, database: Database, size: int) -> None:
        self._database = database
        self._idle: list[asyncpg.Connection[Any]] = []
        self._free = asyncio.Semaphore(size)
        self._closed = False

    async def ask(self, query: str, *values: Any) -> Rows:
        """Run one statement and return its rows, on another connection if one is lost meanwhile.

        Raises `Unavailable`, and what the server says of a statement that it refuses.
        """
        return await self.run(lambda one: ask(one, self._database, query, *values))

    async def ask_once(self, query: str, *values: Any) -> Rows:
        """Run one statement that does not bear repetition, and return its rows.

        Raises `Unavailable` if the connection is lost meanwhile: what came of it is not known.
        """
        return await self._run(lambda one: ask(one, self._database, query, *values), once=True)

    async def run(self, work: Callable[[asyncpg.Connection[Any]], Awaitable[T]]) -> T:
        """Do some work with a connection, and anew if the connection is lost or the work undone."""
        return await self._run(work, once=False)

    async def _run(self, work: Callable[[asyncpg.Connection[Any]], Awaitable[T]], once: bool) -> T:
        end = asyncio.get_running_loop().time() + self._database.patience_seconds
        pauses = Pauses()
        while True:
            if self._closed:
                raise Broken(f"{self._database.name} was closed")
            try:
                return await self._run_once(work)
            except (Unavailable, StoreRefused) as error:
                why = Unavailable(str(error))
            except Exception as error:
                if not is_drivers(error) or verdict(error) == "refused":
                    raise
                why = Unavailable(f"{self._database.name} did not answer: {in_words(error)}")
                if once and verdict(error) == "lost":
                    raise why from None
            if asyncio.get_running_loop().time() > end:
                raise why
            await pauses.pause()

    async def close(self) -> None:
        """Close all connections; whatever is under way is given up. Safe twice."""
        self._closed = True
        while self._idle:
            await close(self._idle.pop())

    async def _run_once(self, work: Callable[[asyncpg.Connection[Any]], Awaitable[T]]) -> T:
        async with self._free:
            while self._idle and self._idle[-1].is_closed():
                self._idle.pop()
            connection = self._idle.pop() if self._idle else await self._database.connect()
            try:
                return await work(connection)
            finally:
                if self._closed or connection.is_closed() or connection.is_in_transaction():
                    connection.terminate()
                else:
                    self._idle.append(connection)


class Pauses:
    """Ever longer pauses between attempts, up to a second."""

    def __init__(self) -> None:
        self._seconds = RETRY_SECONDS_MIN

    async def pause(self) -> None:
        """Wait until the next attempt."""
        await asyncio.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, RETRY_SECONDS_MAX)


async def close(connection: asyncpg.Connection[Any]) -> None:
    """Close a connection, whatever the other side does."""
    try:
        await connection.close(timeout=CLOSE_SECONDS_MAX)
    except Exception as error:
        connection.terminate()
        if not is_drivers(error):
            raise


def is_drivers(error: BaseException) -> bool:
    """Say whether an error tells of the server or the way to it, and not of a mistake of ours."""
    network = isinstance(error, OSError | TimeoutError | EOFError)
    return network or type(error).__module__.startswith("asyncpg.")
