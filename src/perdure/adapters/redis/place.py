"""Where a Redis is: what a URL says, without its password in anything that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec
from redis.asyncio import Connection
from redis.asyncio.connection import parse_url

from perdure.core.errors import InvalidInput

PREFIX = "perdure"
COPIES_MAX = 100
CERTIFICATES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
SETTINGS = ("prefix", "replicas", "wait_aof", *CERTIFICATES)
EXAMPLE = "redis://user:password@host:6379/0?prefix=perdure&replicas=1"


class Place(msgspec.Struct, frozen=True):
    """A Redis database and how it is used.

    `shown` is what may be said of it. All our names begin with `{prefix}:`, so that a Redis Cluster
    keeps them in one slot. `replicas` is how many replicas must have a write before it counts as
    written; with `wait_aof` the primary must have synced it to its disk as well.
    """

    shown: str
    connection: type[Any]
    options: Mapping[str, Any]
    prefix: str = PREFIX
    replicas: int = 0
    wait_aof: bool = False

    @property
    def base(self) -> str:
        """What the names of all our keys begin with."""
        return f"{{{self.prefix}}}:"


def place_of(url: str) -> Place:
    """Return the place that a URL names. Raises `InvalidInput` for one that cannot be."""
    try:
        parts = urlsplit(url)
        named = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        shown = _shown(parts.scheme, parts.hostname, parts.port, parts.path)
        options: dict[str, Any] = dict(parse_url(urlunsplit(parts._replace(query="", fragment=""))))
    except ValueError:
        # What Python says of it may quote a password that was not percent-encoded.
        raise InvalidInput(
            f"the Redis URL cannot be read: expected {EXAMPLE}, with what is special in a password "
            "percent-encoded, or rediss:// or unix://"
        ) from None
    settings = dict(named)
    unknown = sorted(settings.keys() - set(SETTINGS))
    if unknown or len(settings) != len(named):
        raise InvalidInput(
            f"the settings of {shown} are {', '.join(SETTINGS)}, each once, not "
            f"{', '.join(unknown) or 'one twice'}"
        )
    prefix = settings.get("prefix", PREFIX)
    if not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum():
        raise InvalidInput(f"the prefix {prefix!r} is not made of letters, digits, - and _")
    connection = options.pop("connection_class", Connection)
    certificates = {name: settings[name] for name in CERTIFICATES if name in settings}
    if certificates and parts.scheme != "rediss":
        raise InvalidInput(f"{', '.join(certificates)} are for rediss://, not for {shown}")
    return Place(
        shown=shown,
        connection=connection,
        options=options | certificates,
        prefix=prefix,
        replicas=_count("replicas", settings.get("replicas", "0"), COPIES_MAX),
        wait_aof=bool(_count("wait_aof", settings.get("wait_aof", "0"), 1)),
    )


def _count(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > most:
        raise InvalidInput(f"{name}={text!r} is not a whole number from 0 to {most}")
    return int(text)


def _shown(scheme: str, host: str | None, port: int | None, path: str) -> str:
    if scheme == "unix":
        return f"unix://{path}"
    named = f"[{host}]" if host and ":" in host else host or "localhost"
    return f"{scheme}://{named}:{port or 6379}{path or '/0'}"
