"""One heartbeat a node: it renews the lease of all the node's sessions.

It is sent by the loop that runs the sessions, so a loop that is stuck loses its lease. While the
last confirmed renewal is too old on the node's own monotonic clock, the node starts nothing new. A
renewal that finds the lease alive ends that; one that comes too late means that others may have
taken the sessions: the node drops them, and begins again with a new lease. While the store does not
answer it is asked again and again.

A renewal whose answer was lost may have come too late, and made the lease anew: the next one finds
it alive. So an answer that comes a whole lease after the last confirmed renewal proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.core.errors import Broken, Fenced, StoreError
from perdure.ports.clock import Clock, Timer
from perdure.ports.session_store import SessionStore

MARGIN_PART = 5
"""A node stops a fifth of the lease before it runs out."""
AGAIN_PART = 10
"""A renewal that was not answered is tried again after a tenth of the lease."""


class Heartbeat:
    """Renews the lease three times in its length."""

    def __init__(
        self,
        store: SessionStore,
        clock: Clock,
        owner: str,
        lease_ms: int,
        on_lost: Callable[[StoreError], None],
        on_renewed_late: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._owner = owner
        self._lease_ms = lease_ms
        self._on_lost = on_lost
        self._on_renewed_late = on_renewed_late
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._sent_ms = 0
        self._confirmed_ms = 0
        self._started = False
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

    def holds(self) -> bool:
        """Say whether the lease is certainly alive, with a margin."""
        age_ms = self._clock.monotonic_ms() - self._confirmed_ms
        return age_ms < self._lease_ms * (MARGIN_PART - 1) // MARGIN_PART

    async def _renew(self) -> None:
        self._sent_ms = self._clock.monotonic_ms()
        alive = await self._store.renew(self._owner, self._lease_ms)
        late = self._started and not self.holds()
        unsure = self._clock.monotonic_ms() - self._confirmed_ms >= self._lease_ms
        self._confirmed_ms = self._sent_ms
        if self._started and (unsure or not alive):
            raise Fenced("the node's lease ran out before it was renewed: it drops its sessions")
        self._started = True
        if late:
            self._on_renewed_late()

    def _arm(self) -> None:
        """Beat a third of the lease after the last beat was sent, however slow its answer was."""
        if not self._stopped:
            passed_ms = self._clock.monotonic_ms() - self._sent_ms
            delay_ms = max(0, self._lease_ms // 3 - passed_ms)
            self._timer = self._clock.call_later(delay_ms, self._beat)

    def _beat(self) -> None:
        self._task = asyncio.ensure_future(self._beat_once())

    async def _beat_once(self) -> None:
        try:
            await self._renew()
        except Broken as error:
            self._on_lost(error)
            return
        except Fenced as error:
            self._on_lost(error)
        except StoreError as error:
            self._on_lost(error)
            if not self._stopped:
                self._timer = self._clock.call_later(self._lease_ms // AGAIN_PART, self._beat)
            return
        except Exception as error:  # noqa: BLE001  nobody else would see it
            self._on_lost(Broken(f"the lease could not be renewed: {error!r}"))
            return
        self._arm()
