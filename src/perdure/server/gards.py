"""Gards: places that one worker holds at a time.

Whoever has the claim token may hold a gard that nobody holds. A gard is freed when its worker's
connection ends, and at the start of a server for whatever an earlier life of it held: the rightful
worker always gets back in.

Servers that share a catalog cannot know that of each other. So there a claim runs out `CLAIM_MS`
after it was written last, and the server that the worker is connected to writes it again before
that. If it comes too late, and somebody else has the gard, it lets its own worker go.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from perdure.ports.catalog import Catalog, Stale, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.entries import Gard

TOKEN_BYTES = 32
CLAIM_MS = 60_000
RENEWED_EVERY_MS = 15_000
FREED_EVERY_MS = 60_000

Lost = Callable[[bool], None]
"""Called when a gard is held no more: because it was destroyed, or somebody else has it."""


class NotClaimed(Exception):
    """Why a worker may not hold a gard, in the word that workers know."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def claim_digest(token: str) -> str:
    """Return what is kept of a claim token."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


async def claim(
    catalog: TenantCatalog,
    gard: str,
    token: str | None,
    worker_id: str,
    place: str,
    before_ms: int | None = None,
) -> Gard:
    """Hold a gard for a worker. Raises `NotClaimed`; of several that try at once, one gets it.

    `place` is like no other claim's. A worker that comes back takes over what it held before, and
    `free` does nothing when its old connection ends at last. What was claimed last before
    `before_ms` has run out.
    """
    if not (gard.isascii() and gard.isdigit() and len(gard) < 19):
        raise NotClaimed("not_found")

    def held(found: Gard) -> Gard:
        if found.status == "destroyed" or found.archived_at is not None:
            raise NotClaimed("gard_destroyed")
        same = hmac.compare_digest(claim_digest(token or ""), found.claim_digest)
        is_held = found.status == "ready" and not _has_run_out(found, before_ms)
        if is_held and not (same and found.worker_id == worker_id):
            raise NotClaimed("already_claimed")
        if token is None or not same:
            raise NotClaimed("invalid_claim_token")
        return replace(found, status="ready", worker_id=worker_id, node=place)

    claimed = await catalog.change(Gard, int(gard), held)
    if claimed is None:
        raise NotClaimed("not_found")
    return claimed


async def free(catalog: TenantCatalog, claimed: Gard) -> None:
    """Let go of a gard as it was claimed; of one that was claimed anew since, nothing."""

    def freed(found: Gard) -> Gard:
        return _freed(found) if found.node == claimed.node else found

    await catalog.change(Gard, claimed.id, freed)


class _Claim(NamedTuple):
    catalog: TenantCatalog
    gard: Gard
    lost: Lost


class Claims:
    """The gards that workers hold over this server's sockets, in a catalog that may be `shared`."""

    def __init__(self, catalog: Catalog, clock: Clock, shared: bool) -> None:
        self._catalog = catalog
        self._clock = clock
        self._shared = shared
        self._held: dict[str, _Claim] = {}
        self._renew_at = self._free_at = 0

    async def claim(
        self,
        catalog: TenantCatalog,
        gard: str,
        token: str | None,
        worker_id: str,
        place: str,
        lost: Lost,
    ) -> Gard:
        """Hold a gard as `claim` does, until it is freed or `lost`. Raises `NotClaimed`."""
        claimed = await claim(catalog, gard, token, worker_id, place, self._before_ms())
        self._held[place] = _Claim(catalog, claimed, lost)
        return claimed

    async def free(self, catalog: TenantCatalog, claimed: Gard) -> None:
        """Let go of a gard as it was claimed."""
        self._held.pop(claimed.node or "", None)
        await free(catalog, claimed)

    async def free_all(self) -> None:
        """Free what nobody can hold: all gards, or if others hold some, those that ran out."""
        before_ms = self._before_ms()
        for tenant in await self._catalog.tenants():
            mine = TenantCatalog(self._catalog, tenant.slug)
            for gard in await mine.list(Gard):
                if gard.status == "ready" and (before_ms is None or _has_run_out(gard, before_ms)):
                    await mine.change(Gard, gard.id, lambda one: _run_out(one, before_ms))

    async def keep(self) -> None:
        """Write claims again that would run out, and free others' that did; call it every second.

        Raises `Unavailable`; then the next call does the rest.
        """
        now = self._clock.monotonic_ms()
        if self._shared and now >= self._renew_at:
            for claimed in tuple(self._held.values()):
                await self._look(claimed, renews=True)
            self._renew_at = now + RENEWED_EVERY_MS
        if self._shared and now >= self._free_at:
            await self.free_all()
            self._free_at = now + FREED_EVERY_MS + int(FREED_EVERY_MS * self._clock.chance())

    async def look(self, tenant: str) -> None:
        """Look at those of a tenant again: another server changed some."""
        for claimed in tuple(self._held.values()):
            if claimed.catalog.tenant == tenant:
                await self._look(claimed, renews=False)

    async def _look(self, claimed: _Claim, *, renews: bool) -> None:
        catalog, gard, lost = claimed
        while True:
            found = await catalog.get(Gard, gard.id)
            if found is None or found.status != "ready" or found.node != gard.node:
                if self._held.pop(gard.node or "", None) is not None:
                    lost(found is None or found.status == "destroyed")
                return
            if not renews:
                return
            try:
                await catalog.update(found)
            except Stale:
                continue
            return

    def _before_ms(self) -> int | None:
        return self._clock.now_ms() - CLAIM_MS if self._shared else None


def _has_run_out(found: Gard, before_ms: int | None) -> bool:
    return before_ms is not None and found.updated_at <= before_ms


def _run_out(found: Gard, before_ms: int | None) -> Gard:
    return _freed(found) if before_ms is None or _has_run_out(found, before_ms) else found


def _freed(found: Gard) -> Gard:
    if found.status != "ready":
        return found
    return replace(found, status="disconnected", worker_id=None, node=None)
