"""Recovery is a scan: sessions that are due and that nobody runs are claimed, at start and on.

It is the only thing that wakes parked sessions. Whoever parks one says when it is due, so that the
next scan comes in time; without that hint the interval still finds it. The same scan finds what
other nodes accepted for sessions that this one runs.

Of several nodes that find the same session one is preferred, by a rule that they share. The others
leave it alone for a moment; if nobody has taken it by then the next one may, and so on. If all of
them might at once, every session of a dead node could be claimed by everybody who is left. For the
same reason the time of the next due session makes nodes scan the less often, the more there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.core.codec import GENERATION
from perdure.core.errors import Broken, StoreError
from perdure.core.ids import SessionId
from perdure.ports import faults
from perdure.ports.clock import Clock, Timer
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.runtime.agents import Agents
from perdure.runtime.probation import Probation
from perdure.runtime.settings import NodeSettings
from perdure.runtime.unlike import Unlike

LEASE_AGAIN_MS = 100
"""When a node whose lease is in doubt looks again whether it may scan."""
NEVER = 1 << 62
SCAN_GAP_MS = 10
"""All nodes together scan at most once in so long because something else falls due."""


class Recovery:
    """A bounded, repeated scan for due sessions."""

    def __init__(
        self,
        store: SessionStore,
        agents: Agents,
        activate: Callable[[SessionId], None],
        active: Callable[[], int],
        probation: Probation,
        clock: Clock,
        telemetry: Telemetry,
        settings: NodeSettings,
        owner: str,
        look: Callable[[SessionId], None],
    ) -> None:
        self._owner = owner
        self._look = look
        self._left_since_ms: dict[SessionId, int] = {}
        self.place: Callable[[SessionId], int] | None = None
        """Says how many nodes should rather take a session than this one; None for a node alone."""
        self.peers: Callable[[], int] = lambda: 1
        """Says how many nodes scan, this one included."""
        self.unlike: Unlike | None = None
        """Knows the sessions that are left to other nodes: they are due, and not for this one."""
        self.holds: Callable[[], bool] = lambda: True
        """Says whether the node's lease is alive: what it claims without one is not its own."""
        self._store = store
        self._agents = agents
        self._activate = activate
        self._active = active
        self._probation = probation
        self._clock = clock
        self._telemetry = telemetry
        self._settings = settings
        self._timer: Timer | None = None
        self._at = 0
        self._nudged_at = NEVER
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self.on_store_failure: Callable[[StoreError], None] = lambda error: None

    async def run_once(self) -> int:
        """Wake what is due, and set the time of the next scan; return how many were due."""
        now, batch = self._clock.now_ms(), self._settings.scan_batch_sessions
        limit = batch + self._probation.count() + (self.unlike.count() if self.unlike else 0)
        self._nudged_at = NEVER
        due, next_at = await self._store.due(now, limit, self._agents.served(), GENERATION)
        sessions = [session for session in due if session not in self._probation.waiting]
        if self.unlike is not None:
            sessions = [one for one in sessions if not self.unlike.is_left(one)]
        if self.place is not None:
            sessions = self._mine(sessions)
            for session in await self._store.unread(self._owner, batch):
                self._look(session)
        if sessions:
            faults.reach("recovery.scanned")
            self._telemetry.emit("recovery.scanned", due=len(sessions))
        for session in sessions:
            self._activate(session)
        interval_ms = int(self._settings.scan_interval_ms * (0.9 + 0.2 * self._clock.chance()))
        later = now + interval_ms
        if len(due) == limit:
            later = now + SCAN_GAP_MS if self._active() < 2 * batch else now + 50
        if self._left_since_ms:
            later = min(later, now + self._settings.prefer_ms)
        if next_at is not None:
            later = min(later, max(next_at, now + SCAN_GAP_MS * self.peers()))
        # Whoever nudged meanwhile may have come too late for this scan.
        self._set(min(later, self._nudged_at))
        return len(sessions)

    def _mine(self, due: list[SessionId]) -> list[SessionId]:
        """Return those that this node should take: its own, and those that nobody took."""
        assert self.place is not None
        now_ms, before = self._clock.monotonic_ms(), self._left_since_ms
        self._left_since_ms = {}
        mine = []
        for session in due:
            left_ms = before.get(session, now_ms)
            turns = (now_ms - left_ms) // self._settings.prefer_ms
            if self.place(session) <= turns:
                mine.append(session)
            else:
                self._left_since_ms[session] = left_ms
        return mine

    def nudge(self, at: int) -> None:
        """Have a scan at `at` at the latest."""
        self._nudged_at = min(at, self._nudged_at)
        if not self._stopped and (self._timer is None or at < self._at):
            self._set(at)

    async def stop(self) -> None:
        """Scan no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _set(self, at: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stopped:
            return
        self._at = at
        delay_ms = min(self._settings.scan_interval_ms, max(0, at - self._clock.now_ms()))
        self._timer = self._clock.call_later(delay_ms, self._wake)

    def _wake(self) -> None:
        self._timer = None
        if not self._stopped:
            self._task = asyncio.ensure_future(self._scan())

    async def _scan(self) -> None:
        if not self.holds():
            self._set(self._clock.now_ms() + LEASE_AGAIN_MS)
            return
        try:
            await self.run_once()
        except Broken as error:
            self.on_store_failure(error)
        except StoreError as error:
            self._telemetry.emit("store.unavailable", session="", error=str(error))
            self._set(self._clock.now_ms() + self._settings.scan_interval_ms)
        except Exception as error:  # noqa: BLE001  nobody else would see it
            self.on_store_failure(Broken(f"the scan for due sessions failed: {error!r}"))
