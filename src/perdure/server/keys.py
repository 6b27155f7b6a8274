"""Who is asking, and what they may: API keys over a catalog.

What is stored of a key is its id and a keyed hash. The key that the hash is made with, the pepper,
is not in the catalog, so that whoever has the catalog's file has no key, and cannot make one.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Literal, NamedTuple

import msgspec

from perdure.core.errors import InvalidInput, Refused
from perdure.ports.catalog import Catalog, NameTaken, TenantCatalog
from perdure.ports.entries import Capability, Key, Scope, Tenant
from perdure.server.tokens import (
    FOREIGN_CHARS_MIN,
    TOKEN_CHARS_MAX,
    Fresh,
    key_id,
    keyed_hash,
    make_token,
)

Operation = Literal["read", "run", "manage", "keys", "work"]

SCOPES: Final[dict[Scope, frozenset[Operation]]] = {
    "admin": frozenset({"read", "run", "manage", "keys", "work"}),
    "run": frozenset({"read", "run"}),
    "read": frozenset({"read"}),
    "worker": frozenset({"work"}),
}
"""What each scope may do.

- `read`: look at anything, follow events
- `run`: send messages, reply, cancel, retry, fork
- `manage`: create, change and delete agents, triggers, hooks and gards
- `keys`: make, list and revoke API keys
- `work`: join as a worker
"""

EVERY_CAPABILITY: Final[tuple[Capability, ...]] = ("llm", "tools")
CACHE_MS: Final = 1_000
CACHED_KEYS_MAX: Final = 10_000
USE_NOTED_EVERY_MS: Final = 60_000


class Principal(msgspec.Struct, frozen=True):
    """Whoever holds a key: its tenant, and what it may do there."""

    tenant: str
    scope: Scope
    key_id: str
    gard: int | None = None
    capabilities: tuple[Capability, ...] = EVERY_CAPABILITY
    expires_at: int | None = None
    label: str | None = None
    roles: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Who decides with this key: its name, or its id if it has none."""
        return self.label or f"key {self.key_id}"

    def may(self, operation: Operation) -> bool:
        """Say whether the key is good for this."""
        return operation in SCOPES[self.scope]

    def why_not_join(self, gard: int | None, capabilities: Collection[str]) -> str | None:
        """Say why a worker with this key may not join like this; None if it may."""
        if not self.may("work"):
            return f"a key with the scope {self.scope} cannot be used by a worker"
        if self.gard is not None and gard != self.gard:
            return f"the key is bound to the gard {self.gard}"
        if beyond := sorted(set(capabilities) - set(self.capabilities)):
            return f"the key does not allow the capability {', '.join(beyond)}"
        return None


def refusal(principal: Principal | None, operation: Operation) -> Literal[401, 403] | None:
    """Return the HTTP status that answers a request; None if it may go on.

    A worker's key is no key at all where workers have no business.
    """
    if principal is None or (principal.scope == "worker" and operation != "work"):
        return 401
    return None if principal.may(operation) else 403


class Issued(NamedTuple):
    """A new key, and the only copy of its text."""

    key: Key
    token: str

    def __repr__(self) -> str:
        return f"Issued({self.key.key_id})"


class _Cached(NamedTuple):
    since_ms: int
    principal: Principal | None


class _Use(NamedTuple):
    tenant: str
    id: int
    noted_at: int | None
    expires_at: int | None


class Keyring:
    """Issues keys, knows them again, and tells who watches one when it is no longer good.

    `pepper` is what hashes are made with: with another one no key is known. `fresh` returns random
    bytes.
    """

    def __init__(self, catalog: Catalog, pepper: bytes, fresh: Fresh) -> None:
        self.on_changed: Callable[[str], Awaitable[None]] = _nobody
        """Awaited with the id of a key that ends sooner than it did: other processes know it."""
        self._catalog = catalog
        self._pepper = pepper
        self._fresh = fresh
        self._cache: dict[str, _Cached] = {}
        self._revocations = 0
        self._revoking = asyncio.Lock()
        self._watchers: dict[str, dict[object, Callable[[], None]]] = {}
        self._revoked: set[str] = set()
        self._kept: dict[str, _Use] = {}
        self._used: dict[str, int] = {}
        self._turn: list[str] = []

    async def authenticate(self, token: str, now_ms: int) -> Principal | None:
        """Return who holds this key; None if it is not, or no longer, a good one.

        What cannot be a key is refused without a lookup. An answer is remembered for a second at
        most, and for no time at all once the key is revoked in this process. Raises `Unavailable`.
        """
        found = key_id(token, self._pepper)
        if found is None:
            return None
        digest = keyed_hash(self._pepper, "key", token)
        cached = self._cache.get(digest)
        if cached is None or not cached.since_ms <= now_ms < cached.since_ms + CACHE_MS:
            cached = await self._look_up(found, digest, now_ms)
        principal = cached.principal
        if principal is None or _is_over(principal.expires_at, now_ms):
            return None
        self._used[principal.key_id] = now_ms
        return principal

    async def issue(
        self,
        tenant: TenantCatalog,
        scope: Scope,
        *,
        name: str | None = None,
        gard: int | None = None,
        capabilities: Collection[Capability] | None = None,
        expires_at: int | None = None,
        roles: Collection[str] = (),
    ) -> Issued:
        """Make a key. A gard and capabilities bind a worker's key; without them it may do all.

        `roles` are those of whoever approves calls with it.

        Raises `InvalidInput` for a gard or capabilities with another scope.
        """
        if scope != "worker" and (gard is not None or capabilities is not None):
            raise InvalidInput(
                "only a key with the scope worker is bound to a gard or to capabilities"
            )
        token = make_token(scope, self._fresh)
        bound = EVERY_CAPABILITY if capabilities is None else tuple(sorted(set(capabilities)))
        entry = self._entry(token, scope)
        entry = msgspec.structs.replace(
            entry,
            name=name,
            gard=gard,
            capabilities=bound,
            expires_at=expires_at,
            roles=tuple(sorted(set(roles))),
        )
        return Issued(await tenant.create(entry), token)

    async def rotate(
        self, tenant: TenantCatalog, id: int, now_ms: int, grace_ms: int
    ) -> Issued | None:
        """Make a key that may do what another one may, which is good for `grace_ms` more.

        None if the tenant has no such key, or it is revoked or expired.
        """
        old = await tenant.get(Key, id)
        if old is None or old.archived_at is not None or _is_over(old.expires_at, now_ms):
            return None
        token = make_token(old.scope, self._fresh)
        entry = msgspec.structs.replace(
            self._entry(token, old.scope),
            name=old.name,
            gard=old.gard,
            capabilities=old.capabilities,
            roles=old.roles,
        )
        issued = Issued(await tenant.create(entry), token)
        until = now_ms + grace_ms

        def ending(key: Key) -> Key:
            earlier = until if key.expires_at is None else min(until, key.expires_at)
            return msgspec.structs.replace(key, expires_at=earlier)

        await tenant.change(Key, id, ending)
        self._forget()
        await self.on_changed(old.key_id)
        return issued

    async def adopt(self, tenant: TenantCatalog, token: str) -> Key:
        """Keep a key that somebody else made, as an admin's; safe to call at every start.

        One that was revoked stays so. Raises `InvalidInput` for what cannot be a key, and for the
        key of another tenant.
        """
        found = key_id(token, self._pepper)
        if found is None:
            raise InvalidInput(
                f"the key has to be {FOREIGN_CHARS_MIN} to {TOKEN_CHARS_MAX} ASCII characters, "
                "and if it begins like one of ours, one of ours"
            )
        entry = msgspec.structs.replace(self._entry(token, "admin"), name="bootstrap")
        try:
            return await tenant.create(entry)
        except NameTaken:
            known = await self._catalog.locate(Key, found)
            if known is None or known[0] != tenant.tenant:
                raise InvalidInput(
                    "the key belongs to another tenant: choose another one"
                ) from None
            return known[1]
        finally:
            self._forget()

    async def revoke(self, tenant: TenantCatalog, id: int, now_ms: int) -> bool:
        """End a key for ever, and tell who watches it; False if the tenant has none to revoke.

        Raises `Refused` for the last admin key that a tenant has: no other one is good as long.
        """
        async with self._revoking:
            ended = await self._revoke(tenant, id, now_ms)
        if ended is not None:
            await self.on_changed(ended)
        return ended is not None

    async def _revoke(self, tenant: TenantCatalog, id: int, now_ms: int) -> str | None:
        key = await tenant.get(Key, id)
        if key is None or key.archived_at is not None:
            return None
        await self._check_not_last(tenant, key, now_ms)
        was_good = False

        def ended(key: Key) -> Key:
            nonlocal was_good
            was_good = key.archived_at is None
            return msgspec.structs.replace(key, archived_at=now_ms) if was_good else key

        if await tenant.change(Key, id, ended) is None or not was_good:
            return None
        try:  # another server may have revoked the other one at the same moment
            await self._check_not_last(tenant, key, now_ms)
        except Refused:
            await tenant.change(Key, id, lambda key: msgspec.structs.replace(key, archived_at=None))
            raise
        self._end(key.key_id)
        return key.key_id

    @staticmethod
    async def _check_not_last(tenant: TenantCatalog, key: Key, now_ms: int) -> None:
        if key.scope != "admin" or not _is_good(key, now_ms):
            return
        others = [one for one in await tenant.list(Key) if one.id != key.id]
        lasting = [_lasts(one) for one in others if one.scope == "admin" and _is_good(one, now_ms)]
        if all(other < _lasts(key) for other in lasting):
            raise Refused(
                "no other admin key of this tenant is good as long as this one: make another one "
                "first (POST /api/v1/api_keys with the scope admin), then revoke this one",
                "last_admin_key",
            )

    def watch(self, key_id: str, gone: Callable[[], None]) -> Callable[[], None]:
        """Call `gone` once when a key is revoked, or at once if it has been; return how to stop.

        Keys that expire, or that another process revokes, are found by `tick` and `look_at`.
        """
        if key_id in self._revoked:
            gone()
            return lambda: None
        watcher = object()
        self._watchers.setdefault(key_id, {})[watcher] = gone

        def stop() -> None:
            watchers = self._watchers.get(key_id, {})
            watchers.pop(watcher, None)
            if not watchers:
                self._watchers.pop(key_id, None)

        return stop

    async def look_at(self, key_id: str, now_ms: int) -> None:
        """Look at a key again that another process has changed."""
        self._forget()
        if key_id in self._watchers and await self._good(key_id, now_ms) is None:
            self._end(key_id)

    async def tick(self, now_ms: int, turns: int = 1) -> None:
        """Look at watched keys again, and note when keys were used; call it every second.

        With `turns` it looks at each of them once in so many calls, besides those that expire.
        Raises `Unavailable`; then nothing is lost and the next call does the rest.
        """
        self._turn = self._turn or list(self._watchers)
        share = -(-len(self._watchers) // turns)
        in_turn, self._turn = self._turn[:share], self._turn[share:]
        expired = [
            watched
            for watched in self._watchers
            if (use := self._kept.get(watched)) is not None and _is_over(use.expires_at, now_ms)
        ]
        for watched in dict.fromkeys((*in_turn, *expired)):
            if watched in self._watchers and await self._good(watched, now_ms) is None:
                self._end(watched)
        for used in list(self._used):
            await self._note_use(used, self._used[used])
            del self._used[used]

    async def _good(self, wanted: str, now_ms: int) -> tuple[str, Key] | None:
        """Return a key and its tenant; None if it is over, or the tenant was put away."""
        found = await self._catalog.locate(Key, wanted)
        if found is None or not _is_good(found[1], now_ms):
            return None
        return found if await tenant_is_good(self._catalog, found[0]) else None

    async def _look_up(self, wanted: str, digest: str, now_ms: int) -> _Cached:
        while True:
            seen = self._revocations
            found = await self._good(wanted, now_ms)
            # What was read before a revocation says nothing of the time after it.
            if seen == self._revocations:
                break
        principal = None
        if found is not None:
            tenant, key = found
            if hmac.compare_digest(key.digest, digest):
                principal = _principal(tenant, key)
                self._revoked.discard(key.key_id)
                self._kept[key.key_id] = _Use(tenant, key.id, key.last_used_at, key.expires_at)
        cached = self._cache[digest] = _Cached(now_ms, principal)
        while len(self._cache) > CACHED_KEYS_MAX:
            del self._cache[next(iter(self._cache))]
        return cached

    async def _note_use(self, used: str, at_ms: int) -> None:
        use = self._kept[used]
        if use.noted_at is None or at_ms >= use.noted_at + USE_NOTED_EVERY_MS:
            await TenantCatalog(self._catalog, use.tenant).change(
                Key, use.id, lambda key: msgspec.structs.replace(key, last_used_at=at_ms)
            )
            self._kept[used] = use._replace(noted_at=at_ms)

    def _entry(self, token: str, scope: Scope) -> Key:
        found = key_id(token, self._pepper)
        assert found is not None
        return Key(
            key_id=found,
            digest=keyed_hash(self._pepper, "key", token),
            scope=scope,
            capabilities=EVERY_CAPABILITY,
        )

    def _end(self, ended: str) -> None:
        self._revoked.add(ended)
        self._forget()
        for gone in self._watchers.pop(ended, {}).values():
            gone()

    def _forget(self) -> None:
        self._revocations += 1
        self._cache.clear()


async def tenant_is_good(catalog: Catalog, tenant: str) -> bool:
    """Say whether there is such a tenant, and it was not put away."""
    found = await catalog.locate(Tenant, tenant)
    return found is not None and found[1].archived_at is None


async def _nobody(key_id: str) -> None:
    """Tell nobody: this process is the only one."""


def _principal(tenant: str, key: Key) -> Principal:
    return Principal(
        tenant=tenant,
        scope=key.scope,
        key_id=key.key_id,
        gard=key.gard,
        capabilities=key.capabilities,
        label=key.name,
        roles=key.roles,
        expires_at=key.expires_at,
    )


def _lasts(key: Key) -> float:
    return math.inf if key.expires_at is None else key.expires_at


def _is_good(key: Key, now_ms: int) -> bool:
    return key.archived_at is None and not _is_over(key.expires_at, now_ms)


def _is_over(expires_at: int | None, now_ms: int) -> bool:
    return expires_at is not None and now_ms >= expires_at
