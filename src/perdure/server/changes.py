"""What one server changes in a catalog that others share, so that they come to know of it.

Definitions, endpoints and keys are kept in memory, because they are asked for before every call.
Whoever changes some adds to a list in the catalog what it was, before the change is answered. All
servers read that list once in a second, so a change that was answered is known to all of them
`KNOWN_WITHIN_MS` later, as long as they reach the catalog. A hint over the cluster's bus has them
read at once; nothing depends on it.

A server that dies between a change and the list has answered nobody. What it did is found when all
is read again, a little with every look and everything within `ALL_WITHIN_MS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import ClassVar, Final, Literal

import msgspec
from msgspec.structs import replace

from perdure.core.errors import StoreError
from perdure.ports.catalog import Catalog, NameTaken, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.entries import Entry
from perdure.ports.telemetry import Telemetry
from perdure.runtime.bus import Message
from perdure.server.pulse import Pulse

SERVERS: Final = "~servers"
"""Where the catalog keeps what belongs to no tenant: no slug begins like this."""
CHANGES_KEPT: Final = 256
LOOK_EVERY_MS: Final = 1_000
KNOWN_WITHIN_MS: Final = 2_000
ALL_WITHIN_MS: Final = 600_000

What = Literal["agents", "endpoints", "gards", "key", "drain"]
"""Of a tenant its agents and tools, whether it has endpoints, or its gards; a key, by its id; or
that a node is to hand over what it has, by the node's id."""


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What was changed. A server that does not know `what` lets it be: a newer one said it."""

    what: str
    name: str


class Hint(Message, frozen=True, tag="changed"):
    """There is something new on the list of changes: look at once."""


class Changed(Entry, frozen=True, kw_only=True):
    """The last changes of all tenants: `count` is how many there ever were."""

    kind: ClassVar[str] = "changed"

    name: str = "catalog"
    count: int = 0
    last: tuple[Change, ...] = ()


class Changes:
    """One server's part: it tells the others, and does what they say.

    A server that is not `shared` has nobody to tell. `acts` says what is to be done about each kind
    of change, and `reread` does it all for a tenant. `hint` has the others look at once.
    """

    def __init__(self, catalog: Catalog, clock: Clock, telemetry: Telemetry, shared: bool) -> None:
        self.shared = shared
        self.acts: Mapping[str, Callable[[str], Awaitable[None]]] = {}
        self.reread: Callable[[str], Awaitable[None]] = _nothing
        self.hint: Callable[[], None] = lambda: None
        self._catalog = catalog
        self._mine = TenantCatalog(catalog, SERVERS)
        self._clock = clock
        self._telemetry = telemetry
        self._pulse = Pulse("changes", self._beat, clock, telemetry)
        self._id = 0
        self._seen = 0
        self._looked_ms = 0
        self._told: set[int] = set()
        self._round: list[str] = []
        self._at_once = 1
        self._next_round_ms = 0
        self._failing = False

    async def open(self) -> None:
        """Find the list: what is read of the catalog from now on is no older than it."""
        if not self.shared:
            return
        with suppress(NameTaken):
            await self._mine.create(Changed())
        now = self._clock.monotonic_ms()
        found = await self._mine.find(Changed, Changed().name)
        assert found is not None
        self._id, self._seen, self._looked_ms = found.id, found.count, now
        self._next_round_ms = now + ALL_WITHIN_MS // 2

    def start(self) -> None:
        """Look from now on."""
        if self.shared:
            self._pulse.start()

    async def stop(self) -> None:
        """Look no more."""
        await self._pulse.stop()

    def look_soon(self) -> None:
        """Look at once: somebody says that there is something."""
        if self.shared:
            self._pulse.nudge(self._clock.now_ms())

    def is_current(self) -> bool:
        """Say whether what others changed `KNOWN_WITHIN_MS` ago is certainly known here."""
        return not self.shared or self._clock.monotonic_ms() < self._looked_ms + KNOWN_WITHIN_MS

    async def tell(self, what: What, name: str) -> None:
        """Tell the others what this server has changed, and has seen to itself."""
        if not self.shared:
            return

        def added(found: Changed) -> Changed:
            last = (*found.last, Change(what, name))[-CHANGES_KEPT:]
            return replace(found, count=found.count + 1, last=last)

        told = await self._mine.change(Changed, self._id, added)
        assert told is not None
        self._told.add(told.count)
        self.hint()

    async def known(self) -> None:
        """Wait until what was told is known to all servers that reach the catalog."""
        if self.shared:
            passed = asyncio.Event()
            self._clock.call_later(KNOWN_WITHIN_MS, passed.set)
            await passed.wait()

    async def look(self) -> None:
        """Do what is to be done about what others changed since the last look."""
        now = self._clock.monotonic_ms()
        found = await self._mine.get(Changed, self._id)
        assert found is not None
        missed = found.count - self._seen
        if missed > len(found.last):
            await self._reread(await self._tenants())
        first = found.count - len(found.last) + 1
        news = [
            change
            for count, change in enumerate(found.last, first)
            if count > self._seen and count not in self._told
        ]
        for change in dict.fromkeys(news):
            if (act := self.acts.get(change.what)) is not None:
                await act(change.name)
        self._seen = found.count
        self._told = {count for count in self._told if count > self._seen}
        self._looked_ms = now

    async def _beat(self) -> int:
        try:
            await self.look()
            await self._go_round()
            self._failing = False
        except StoreError as error:  # the next look is not later for it
            if not self._failing:
                self._telemetry.emit("service.failed", service="changes", error=repr(error))
            self._failing = True
        return self._clock.now_ms() + LOOK_EVERY_MS

    async def _go_round(self) -> None:
        """Read a few tenants' definitions again, so that all are read in due time."""
        now = self._clock.monotonic_ms()
        if not self._round:
            if now < self._next_round_ms:
                return
            self._round = await self._tenants()
            self._at_once = 1 + len(self._round) * 2 * LOOK_EVERY_MS // ALL_WITHIN_MS
            self._next_round_ms = now + ALL_WITHIN_MS // 2
        now_due = self._round[: self._at_once]
        await self._reread(now_due)
        del self._round[: len(now_due)]

    async def _reread(self, tenants: list[str]) -> None:
        for tenant in tenants:
            await self.reread(tenant)

    async def _tenants(self) -> list[str]:
        return [tenant.slug for tenant in await self._catalog.tenants()]


async def _nothing(tenant: str) -> None:
    """Read nothing."""
