"""A server's service, on whatever stores its URLs name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from perdure.adapters.clock import SystemClock, secret_bytes
from perdure.adapters.telemetry.logs import LogTelemetry
from perdure.bootstrap.opening import (
    OpenStore,
    beside,
    is_shared,
    open_catalog,
    open_cluster,
    open_store,
)
from perdure.bootstrap.prices import prices_of
from perdure.core.errors import InvalidInput, StoreRefused, Unavailable
from perdure.ports.catalog import Catalog, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.entries import Key
from perdure.runtime.settings import NodeSettings, served

if TYPE_CHECKING:
    from perdure.policy.policy import Policy
    from perdure.server.keys import Keyring
    from perdure.server.service import Service

DEFAULT_TENANT = "default"
OPENED_EVERY_MS = 1_000
"""How often a server tries to open a store that does not answer."""
KEY_VARIABLES = ("PERDURE_BOOTSTRAP_KEY", "NORNS_DEFAULT_TENANT_KEY")


@asynccontextmanager
async def open_service(
    folder: Path,
    store: str,
    environment: Mapping[str, str],
    *,
    offers_setup: bool = False,
    catalog: str | None = None,
    cluster: str | None = None,
    name: str = "",
    url: str | None = None,
    policy: Policy | None = None,
    patience_s: float = 0,
    on_waiting: Callable[[str], None] = lambda why: None,
) -> AsyncIterator[tuple[Service, str | None]]:
    """Open a server's stores, and give the service with a new admin key if there was none.

    If it `offers_setup`, no key is made: the service has a link then, by which a person makes it.

    The catalog and the cluster are where the store is, if they are not named and others may share
    it; then `PERDURE_KEY_PEPPER` has to be the same for all, who know this server by `name` and
    `url`. Else the catalog and the pepper are in `folder`. A key that `environment` names
    (`PERDURE_BOOTSTRAP_KEY` or `NORNS_DEFAULT_TENANT_KEY`) becomes an admin key of the default
    tenant instead of a new one. A `policy` becomes that tenant's. A store that does not answer is
    waited for `patience_s` seconds, and `on_waiting` told why. Raises `StoreLocked`,
    `StoreRefused`, `InvalidInput`, and `Unavailable` for a store that does not answer then.
    """
    from perdure.server.egress import egress_for
    from perdure.server.keys import Keyring
    from perdure.server.policies import put_policy
    from perdure.server.sealing import Seal
    from perdure.server.service import Service
    from perdure.server.setup import SetupLink, ensure_tenant

    clock, fresh = SystemClock(), secret_bytes
    catalog, cluster = beside(folder, store, catalog, cluster)
    given_pepper = _given_pepper(environment, is_shared(catalog))
    if not is_shared(catalog):
        await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        opened = await _open_patiently(store, clock, patience_s, on_waiting)
        stack.push_async_callback(opened.close)
        entries = await open_catalog(catalog, clock)
        stack.push_async_callback(entries.close)
        pepper = await _pepper(folder, given_pepper, entries, shared=is_shared(catalog))
        keys = Keyring(entries, pepper, fresh)
        tenant = await ensure_tenant(entries, DEFAULT_TENANT)
        if policy is not None:
            await put_policy(tenant, policy)
        made = await _first_key(keys, tenant, environment, offers_setup)
        together = await open_cluster(cluster, clock)
        if together is not None:
            stack.push_async_callback(together.leave)
        service = Service(
            opened,
            entries,
            keys,
            Seal(pepper, fresh),
            clock,
            LogTelemetry(),
            fresh,
            settings=_settings(environment, alone=together is None),
            egress=egress_for(environment),
            cluster=together,
            name=name,
            url=url,
            operator=DEFAULT_TENANT,
        )
        if offers_setup:
            service.setup = await SetupLink.offer(tenant, entries, keys, clock, fresh)
        yield service, made


def _settings(environment: Mapping[str, str], *, alone: bool) -> NodeSettings:
    return msgspec.structs.replace(served(alone=alone), prices=prices_of(environment))


def _given_pepper(environment: Mapping[str, str], shared: bool) -> str | None:
    given = environment.get("PERDURE_KEY_PEPPER")
    if shared and not given:
        raise InvalidInput(
            "servers that share a catalog need the same pepper, with which it keeps keys and "
            "secrets: set PERDURE_KEY_PEPPER to one text of 32 characters or more for all of them"
        )
    return given


async def _open_patiently(
    store: str, clock: Clock, patience_s: float, on_waiting: Callable[[str], None]
) -> OpenStore:
    end_ms = clock.monotonic_ms() + patience_s * 1000
    while True:
        try:
            return await open_store(store, clock)
        except Unavailable as why:
            if not is_shared(store) or clock.monotonic_ms() >= end_ms:
                raise
            on_waiting(str(why))
        passed = asyncio.Event()
        clock.call_later(OPENED_EVERY_MS, passed.set)
        await passed.wait()


async def _first_key(
    keys: Keyring, tenant: TenantCatalog, environment: Mapping[str, str], offers_setup: bool
) -> str | None:
    """Adopt the key that the environment names, or make one if there is none and return it."""
    given = next((environment[name] for name in KEY_VARIABLES if environment.get(name)), None)
    if given is not None:
        await keys.adopt(tenant, given)
    elif not offers_setup and not await tenant.list(Key, limit=1):
        return (await keys.issue(tenant, "admin", name="first start")).token
    return None


async def _pepper(folder: Path, given: str | None, catalog: Catalog, *, shared: bool) -> bytes:
    """Return what keys are hashed and secrets sealed with, if it is what the catalog's were."""
    from perdure.adapters.catalog.pepper import open_pepper
    from perdure.server.sealing import check_pepper
    from perdure.server.setup import has_keys

    if not shared:
        if not given and not (folder / "pepper").exists() and await has_keys(catalog):
            raise StoreRefused(
                f"{folder / 'pepper'} is missing, and without it none of the keys in the catalog "
                "is known: restore it from a backup, or give it in PERDURE_KEY_PEPPER"
            )
        return open_pepper(folder / "pepper", given, secret_bytes)
    pepper = open_pepper(folder / "pepper", given, secret_bytes)
    await check_pepper(catalog, pepper)
    return pepper
