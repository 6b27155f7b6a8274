"""Streams: made when they are missing, and checked for what they promise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from perdure.adapters.nats.connection import NOT_FOUND, Connection, Refused
from perdure.core.durability import Durability, replicated
from perdure.core.errors import StoreRefused, Unavailable

CREATE_SECONDS_MAX = 10.0
RETRY_SECONDS = 0.25
NO_SUITABLE_PEERS = 10005
"""A cluster that has just started does not know its members yet."""
REPLICAS_SINCE = (2, 11)
"""The first version whose replicas stay the same: see docs/decisions/0033."""
NANOSECONDS = 1_000_000_000


async def ensure(
    connection: Connection,
    name: str,
    subjects: str,
    storage: str,
    replicas: int,
    last_per_subject: int = -1,
) -> dict[str, Any]:
    """Return the settings of a stream, as they are, making it if there is none.

    Raises `StoreRefused` for a stream that may forget what is in it, `Unavailable`.
    """
    _check_version(connection, name, replicas)
    wanted = {
        "name": name,
        "subjects": [subjects],
        "storage": storage,
        "num_replicas": replicas,
        "retention": "limits",
        "discard": "old",
        "max_msgs_per_subject": last_per_subject,
        "allow_direct": True,
        "deny_delete": True,
        "deny_purge": True,
    }
    found: dict[str, Any] = (await _info_or_create(connection, name, wanted))["config"]
    _check_version(connection, name, int(found["num_replicas"]))
    limits = {
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": last_per_subject,
        "retention": "limits",
    }
    for setting, expected in limits.items():
        if found.get(setting, expected) not in (expected, 0 if expected == -1 else expected):
            raise StoreRefused(
                f"the stream {name} has {setting} {found[setting]} and would forget what is in it: "
                f"set it to {expected}"
            )
    return found


def _check_version(connection: Connection, name: str, replicas: int) -> None:
    version = connection.server_version
    if replicas > 1 and version < REPLICAS_SINCE:
        raise StoreRefused(
            f"the stream {name} is to have {replicas} replicas, and {connection.place.shown} is "
            f"nats-server {'.'.join(map(str, version))}: before "
            f"{'.'.join(map(str, REPLICAS_SINCE))} replicas come to differ when a server is "
            "started again, and what was acknowledged is lost. Run a newer one on every server"
        )


async def _info_or_create(connection: Connection, name: str, wanted: dict[str, Any]) -> Any:
    loop = asyncio.get_running_loop()
    end = loop.time() + CREATE_SECONDS_MAX
    while True:
        try:
            try:
                return await connection.api(f"STREAM.INFO.{name}")
            except Refused as error:
                if error.code != NOT_FOUND:
                    raise
            return await connection.api(f"STREAM.CREATE.{name}", **wanted)
        except Refused as error:
            if error.number != NO_SUITABLE_PEERS or loop.time() > end:
                raise Unavailable(f"the stream {name} cannot be made: {error}") from None
        await asyncio.sleep(RETRY_SECONDS)


async def look(connection: Connection, name: str) -> dict[str, Any]:
    """Return the settings of a stream as they are now. Raises `Refused`, `Unavailable`."""
    found: dict[str, Any] = (await connection.api(f"STREAM.INFO.{name}"))["config"]
    return found


def is_led(info: Mapping[str, Any]) -> bool:
    """Say whether it is the leader of a stream that told this, who does not list himself.

    Any replica may, while there is none; and it tells what it happens to have.
    """
    if int(info["config"]["num_replicas"]) == 1:
        return True
    leader = info.get("cluster", {}).get("leader")
    return bool(leader) and all(one["name"] != leader for one in _others(info))


def is_followed(info: Mapping[str, Any], seconds: float) -> bool:
    """Say whether the leader that told this has met a majority in the last so many seconds."""
    met = [one for one in _others(info) if 0 < one["active"] < seconds * NANOSECONDS]
    return 1 + len(met) > int(info["config"]["num_replicas"]) // 2


def _others(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    # A server of 2.9 that is alone names no cluster.
    return info.get("cluster", {}).get("replicas") or []


def durability(settings: list[dict[str, Any]]) -> Durability:
    """Return what an acknowledgement is worth, where all of these streams have a part in it.

    One is given when most replicas have a message. A server writes to its disk and does not wait
    for it, so a single one promises what the operating system has: before version 2.11 nothing
    else can be had, and no client can see what a later one is set to.
    """
    copies = min(int(one["num_replicas"]) // 2 + 1 for one in settings)
    if copies > 1:
        return replicated(copies)
    return "os" if all(one["storage"] == "file" for one in settings) else "memory"
