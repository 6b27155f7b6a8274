"""Gards: places that one worker holds at a time.

Whoever has the claim token may hold a gard that nobody holds. A gard is freed when its worker's
connection ends, and at the start of a node for whatever an earlier life of it held: the rightful
worker always gets back in.
"""

from __future__ import annotations

import hashlib
import hmac

from msgspec.structs import replace

from perdure.ports.catalog import Catalog, TenantCatalog
from perdure.ports.entries import Gard

TOKEN_BYTES = 32


class NotClaimed(Exception):
    """Why a worker may not hold a gard, in the word that workers know."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def claim_digest(token: str) -> str:
    """Return what is kept of a claim token."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


async def claim(
    catalog: TenantCatalog, gard: str, token: str | None, worker_id: str, place: str
) -> Gard:
    """Hold a gard for a worker. Raises `NotClaimed`; of several that try at once, one gets it.

    `place` is like no other claim's. A worker that comes back takes over what it held before, and
    `free` does nothing when its old connection ends at last.
    """
    if not (gard.isascii() and gard.isdigit() and len(gard) < 19):
        raise NotClaimed("not_found")

    def held(found: Gard) -> Gard:
        if found.status == "destroyed" or found.archived_at is not None:
            raise NotClaimed("gard_destroyed")
        same = hmac.compare_digest(claim_digest(token or ""), found.claim_digest)
        if found.status == "ready" and not (same and found.worker_id == worker_id):
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


async def free_all(catalog: Catalog) -> None:
    """Free what earlier lives of this server held: no worker is connected when it starts."""
    for tenant in await catalog.tenants():
        mine = TenantCatalog(catalog, tenant.slug)
        for gard in await mine.list(Gard):
            if gard.status == "ready":
                await mine.change(Gard, gard.id, _freed)


def _freed(found: Gard) -> Gard:
    if found.status != "ready":
        return found
    return replace(found, status="disconnected", worker_id=None, node=None)
