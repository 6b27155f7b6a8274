"""What a server is found to be when a connection is made: what it promises, and whether it may."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from perdure.core.durability import Durability, replicated
from perdure.core.errors import StoreRefused

VERSION_MIN = 15

TOLD = """
current_setting('server_version_num')::int / 10000 AS version,
    current_setting('server_version') AS server_version,
    pg_is_in_recovery() AS standby,
    current_setting('transaction_read_only') AS transaction_read_only,
    current_setting('server_encoding') AS server_encoding,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS synchronous_standby_names
"""
"""The columns with which a server describes itself."""
LOOK = f"SELECT {TOLD}"
LINEAGE = """
SELECT format('%s/%s', system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8))
FROM pg_control_system()
"""
"""The timeline of what is written now: the control file tells it only after a checkpoint."""
NOT_TOLD = ("0A", "42", "55")
"""What a server says that keeps its line of history to itself, as some providers have it."""


class Found(NamedTuple):
    """A primary, as it describes itself.

    `lineage` is empty where the server does not tell it. It changes when a standby is promoted or a
    backup restored: from then on there may be less than what was acknowledged before.
    """

    durability: Durability
    lineage: str
    settings: Mapping[str, Any]


def judge(settings: Mapping[str, Any], where: str) -> None:
    """Raise `StoreRefused` for a server that cannot hold what we keep."""
    if settings["version"] < VERSION_MIN:
        raise StoreRefused(
            f"{where} is PostgreSQL {settings['server_version']}: at least {VERSION_MIN} is needed"
        )
    if settings["standby"]:
        raise StoreRefused(
            f"{where} is a standby, and lags behind: name the primary, or all servers with "
            "?target_session_attrs=primary"
        )
    if settings["transaction_read_only"] == "on":
        raise StoreRefused(f"{where} takes no writes (default_transaction_read_only is on)")
    if settings["server_encoding"] != "UTF8":
        raise StoreRefused(
            f"{where} has the encoding {settings['server_encoding']}: "
            "create the database with ENCODING 'UTF8'"
        )


def durability(settings: Mapping[str, Any]) -> Durability:
    """Return what a commit is worth, with these settings, once the server has acknowledged it."""
    if settings["synchronous_commit"] == "off":
        return "memory"
    if settings["fsync"] == "off" or settings["full_page_writes"] == "off":
        return "os"
    awaits = settings["synchronous_commit"] in {"on", "remote_apply"}
    return replicated(1 + (standbys(settings["synchronous_standby_names"]) if awaits else 0))


def standbys(names: str) -> int:
    """Return how many standbys a commit waits for, from `synchronous_standby_names`."""
    names = names.strip()
    if not names:
        return 0
    counted = re.match(r"(?:(?:FIRST|ANY)\s+)?(\d+)\s*\(", names, re.IGNORECASE)
    return int(counted[1]) if counted else 1
