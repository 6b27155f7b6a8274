"""What one tenant may take from all others: requests per second, sockets, parked runs.

Requests and sockets are what one node can bear, and are counted by each node for itself. Runs are
kept by all nodes together, so they share their limit; nodes that begin some at the same moment may
exceed it by what each of them took of the last room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

TENANTS_FORGOTTEN_FROM: Final = 10_000
"""As many tenants are remembered; beyond that, those that owe no wait are forgotten."""

RECOUNTED_EVERY_MS: Final = 10_000


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one tenant, with their units in their names."""

    requests_per_second: float = 200
    requests_at_once: int = 1_000
    """So many may come at one moment, if few came before."""
    client_sockets_max: int = 5_000
    """Streams of events are counted as well."""
    worker_sockets_max: int = 1_000
    parked_runs_max: int = 100_000
    """Runs that have not ended, most of which wait for somebody, a time or a worker."""
    body_bytes_max: int = 1024 * 1024


class RequestLimit:
    """A token bucket for each tenant.

    What is kept of one is a single time: when its bucket will be full again.
    """

    def __init__(self, limits: Callable[[str], TenantLimits]) -> None:
        self._limits = limits
        self._full_at_us: dict[str, int] = {}

    def wait_ms(self, tenant: str, now_ms: int) -> int:
        """Take one request; 0 if it may go on, else in how many milliseconds to come back.

        A request that may not go on takes nothing. `now_ms` is of a clock that never goes back.
        """
        limits, now_us = self._limits(tenant), now_ms * 1_000
        cost_us = round(1_000_000 / limits.requests_per_second)
        full_at_us = max(self._full_at_us.get(tenant, 0), now_us) + cost_us
        early_us = full_at_us - now_us - limits.requests_at_once * cost_us
        if early_us > 0:
            return -(-early_us // 1_000)
        self._full_at_us[tenant] = full_at_us
        if len(self._full_at_us) > TENANTS_FORGOTTEN_FROM:
            self._full_at_us = {
                one: at_us for one, at_us in self._full_at_us.items() if at_us > now_us
            }
        return 0


class RunLimit:
    """How many more runs each tenant may begin before somebody has to look how many have ended.

    To count them takes longer than to begin one, so they are counted when there may be no room, and
    while there is none not more often than every `RECOUNTED_EVERY_MS`. Of `nodes` that begin runs
    of the same tenants each takes its part of the room that it finds.
    """

    def __init__(self, runs_max: Callable[[str], int]) -> None:
        self.nodes = 1
        self._runs_max = runs_max
        self._room: dict[str, int] = {}
        self._counted_at_ms: dict[str, int] = {}

    async def begin(self, tenant: str, now_ms: int, count: Callable[[int], Awaitable[int]]) -> bool:
        """Take room for a run; False if there is none.

        `count` returns how many runs have not ended, up to so many. `now_ms` is of a clock that
        never goes back.
        """
        room = self._room.get(tenant, 0)
        if room == 0:
            counted_at_ms = self._counted_at_ms.get(tenant)
            if counted_at_ms is not None and now_ms < counted_at_ms + RECOUNTED_EVERY_MS:
                return False
            most = self._runs_max(tenant)
            left = max(0, most - await count(most))
            room = -(-left // self.nodes)
            if room == 0:
                self._counted_at_ms[tenant] = now_ms
        self._room[tenant] = max(0, room - 1)
        return room > 0


class SocketLimit:
    """How many sockets each tenant has open, and whether it may open another."""

    def __init__(self, sockets_max: Callable[[str], int]) -> None:
        self._sockets_max = sockets_max
        self._open: Counter[str] = Counter()

    def open(self, tenant: str) -> bool:
        """Count a socket that is opened; False, and nothing is counted, if there are too many."""
        if self.is_reached(tenant):
            return False
        self._open[tenant] += 1
        return True

    def is_reached(self, tenant: str) -> bool:
        """Say whether another one would be refused."""
        return self._open.get(tenant, 0) >= self._sockets_max(tenant)

    def close(self, tenant: str) -> None:
        """Count a socket that is closed."""
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]

    def count(self, tenant: str) -> int:
        """Return how many sockets the tenant has open."""
        return self._open.get(tenant, 0)
