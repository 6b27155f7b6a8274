"""The driver, asyncpg: it is imported when the first connection is made, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg


async def connect(url: str, **options: Any) -> asyncpg.Connection[Any]:
    """Return a connection. Raises `InvalidInput` where the extra `postgres` is not installed."""
    try:
        import asyncpg
    except ImportError:
        raise InvalidInput("PostgreSQL needs a driver: pip install 'perdure[postgres]'") from None
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url, **options)
    return connection


def uuid_maker() -> Callable[[bytes], UUID]:
    """Return the function that makes a UUID of 16 bytes; asyncpg's own needs least time."""
    from asyncpg.pgproto import pgproto

    maker: Callable[[bytes], UUID] = pgproto.UUID
    return maker
