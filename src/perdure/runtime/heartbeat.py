"""One heartbeat a node: it renews the lease of all the node's sessions.

It is sent by the loop that runs the sessions, so a loop that is stuck loses its lease. A node whose
renewal was refused, or not confirmed in time on its own monotonic clock, fences itself: it drops
its sessions, and takes a new lease to begin again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.core.errors import Fenced, StoreError
from perdure.ports.clock import Clock, Timer
from perdure.ports.session_store import SessionStore

MARGIN_PART = 5
"""A node stops a fifth of the lease before it runs out."""


class Heartbeat:
    """Renews the lease three times in its length."""

    def __init__(
        self,
        store: SessionStore,
        clock: Clock,
        owner: str,
        lease_ms: int,
        on_lost: Callable[[StoreError], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._owner = owner
        self._lease_ms = lease_ms
        self._on_lost = on_lost
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._confirmed_ms = 0
        self._stopped = False

    async def start(self) -> None:
        """Take the lease and keep it."""
        await self._renew()
        self._arm()

    async def stop(self) -> None:
        """Renew no more; the lease runs out by itself."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _renew(self) -> None:
        sent_ms = self._clock.monotonic_ms()
        alive = await self._store.renew(self._owner, self._lease_ms)
        late_ms = sent_ms - self._confirmed_ms - self._lease_ms * (MARGIN_PART - 1) // MARGIN_PART
        if self._confirmed_ms and (not alive or late_ms > 0):
            raise Fenced("the node's lease ran out before it was renewed: it runs nothing any more")
        self._confirmed_ms = sent_ms

    def _arm(self) -> None:
        if not self._stopped:
            self._timer = self._clock.call_later(self._lease_ms // 3, self._beat)

    def _beat(self) -> None:
        self._task = asyncio.ensure_future(self._beat_once())

    async def _beat_once(self) -> None:
        try:
            await self._renew()
        except Fenced as error:
            self._confirmed_ms = 0
            self._on_lost(error)
            self._arm()
        except StoreError as error:
            self._on_lost(error)
        else:
            self._arm()
