"""Stores with a password, and all that somebody finds in them who can read the disk."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from perdure.testing.servers import ServerMissing
from perdure.testing.servers.nats import NatsServer
from perdure.testing.servers.postgres import PostgresServer
from perdure.testing.servers.redis import RedisServer
from tests.canaries.places import CANARIES, stored

KINDS = ("sqlite", "postgresql", "redis", "nats")
PASSWORD = CANARIES["DATABASE"]
CONFIGURED = ("server.conf", "redis.conf")
"""Files of the servers themselves: there the password is set."""


class Place(NamedTuple):
    """A store's URL, and what returns all that it has kept."""

    url: str
    kept: Callable[[], dict[str, bytes]]


@contextmanager
def a_store(kind: str, folder: Path) -> Iterator[Place]:
    """Start a server of a kind, to which one gets with a password; or name a file."""
    if kind == "sqlite":
        yield Place(f"sqlite:///{folder}/p.db", lambda: unzipped(stored(folder)))
        return
    try:
        opened = {"postgresql": _postgres, "redis": _redis, "nats": _nats}[kind]()
    except ServerMissing as missing:
        pytest.skip(f"no server: {missing}")
    with opened as place:
        yield place


def unzipped(places: dict[str, bytes]) -> dict[str, bytes]:
    """Return places with everything in them that is compressed by zlib, unpacked."""
    found = dict(places)
    for name, body in places.items():
        at = body.find(b"\x78\x01")
        pieces = []
        while at >= 0:
            with suppress(zlib.error):  # two bytes may mean anything
                pieces.append(zlib.decompressobj().decompress(body[at:]))
            at = body.find(b"\x78\x01", at + 1)
        found[f"{name}, unzipped"] = b"\n".join(pieces)
    return found


@contextmanager
def _postgres() -> Iterator[Place]:
    server = PostgresServer.start(password=PASSWORD)
    with server:
        url = server.fresh_database()

        def kept() -> dict[str, bytes]:
            tables = server.sql(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
                url,
            ).split()
            rows_of, found = {}, {}
            for table in tables:
                rows = server.sql(f"SELECT * FROM {table}", url)
                values = [bytes.fromhex(part[2:]) if part.startswith("\\x") else part.encode()
                          for row in rows.splitlines() for part in row.split("|")]  # fmt: skip
                rows_of[table] = b"\n".join([rows.encode(), *values])
            server.sql("CHECKPOINT")
            # The write-ahead log has every page that was written.
            found |= stored(Path(server.sql("SHOW data_directory").strip()) / "pg_wal")
            return {**unzipped(rows_of), **found, "the server's log": server.log.encode()}

        yield Place(url, kept)


@contextmanager
def _redis() -> Iterator[Place]:
    server = RedisServer.start(requirepass=PASSWORD, rdbcompression="no")
    with server:

        def kept() -> dict[str, bytes]:
            server.ask("SAVE")
            return {**unzipped(stored(server.disk())), "its log": server.log.encode()}

        yield Place(server.url, kept)


@contextmanager
def _nats() -> Iterator[Place]:
    server = NatsServer.start(f'authorization {{ user: perdure, password: "{PASSWORD}" }}')
    with server:
        url = server.url.replace("//", f"//perdure:{PASSWORD}@") + "?name=canary"
        yield Place(url, lambda: unzipped(stored(server.folder, but=CONFIGURED)))
