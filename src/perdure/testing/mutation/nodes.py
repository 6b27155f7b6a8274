"""Nodes that are broken in how they share a store: what they renew, scan for, and keep."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from perdure.core.errors import InvalidInput, PerdureError
from perdure.runtime.heartbeat import Heartbeat
from perdure.runtime.recovery import Recovery
from perdure.testing.mutation.patches import Patches

STORE_VARIABLE = "PERDURE_STORE"
"""The URL of the store at which a thread renews a lease."""
RENEWALS_PER_LEASE = 4
TTL_MS = 60


def renewal_from_thread(patches: Patches) -> None:
    """Renew the lease from a thread, whatever the loop does that runs the sessions."""

    def start(original: Any) -> Any:
        async def starting(self: Heartbeat) -> None:
            await original(self)
            lease_ms = self._lease_ms
            renewing = _renew_for_ever(os.environ[STORE_VARIABLE], self._owner, lease_ms)
            threading.Thread(target=asyncio.run, args=(renewing,), daemon=True).start()

        return starting

    patches.method(Heartbeat, "start", start)


async def _renew_for_ever(url: str, owner: str, lease_ms: int) -> None:
    from perdure.adapters.clock import SystemClock
    from perdure.bootstrap import open_store

    store = await open_store(url, SystemClock())
    while True:
        try:
            await store.renew(owner, lease_ms)
        except PerdureError:
            continue
        finally:
            await asyncio.sleep(lease_ms / 1_000 / RENEWALS_PER_LEASE)


def notify_as_truth(patches: Patches) -> None:
    """Look for due sessions at the start and when somebody says so, and never otherwise."""

    def run_once(original: Any) -> Any:
        async def once(self: Recovery) -> int:
            found: int = await original(self)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return found

        return once

    patches.method(Recovery, "run_once", run_once)


def ttl_on_token(patches: Patches) -> None:
    """Let the key in Redis that holds the token go when the lease does."""
    from perdure.adapters.redis.script import Script

    claimed = "  return {'claimed', epoch}\n"

    def init(original: Any) -> Any:
        def expiring(self: Script, line: Any, text: str, *more: Any, **named: Any) -> None:
            if "local function claim(" in text and claimed not in text:
                raise InvalidInput("the claim of Redis ends otherwise: mend the mutant")
            expire = f"  call('PEXPIRE', key, {TTL_MS})\n"
            original(self, line, text.replace(claimed, expire + claimed), *more, **named)

        return expiring

    patches.method(Script, "__init__", init)
