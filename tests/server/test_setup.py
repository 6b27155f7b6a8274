"""The first start: one link, one code, one tenant."""

from __future__ import annotations

import asyncio

import pytest

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.core.errors import InvalidInput, Refused
from perdure.ports.entries import Key
from perdure.server.keys import Issued, Keyring, Principal
from perdure.server.setup import WRONG_CODES_MAX, SetupLink, ensure_tenant
from perdure.testing.clock import FakeClock
from tests.server.chance import fresh


@pytest.fixture
def catalog() -> MemoryCatalog:
    """Return an empty catalog."""
    return MemoryCatalog(FakeClock().now_ms)


@pytest.fixture
def keyring(catalog: MemoryCatalog) -> Keyring:
    """Return the keyring over it."""
    return Keyring(catalog, b"p" * 32, fresh)


@pytest.fixture
async def link(catalog: MemoryCatalog, keyring: Keyring) -> SetupLink:
    """Return the link of the first start."""
    link = await SetupLink.offer(catalog, keyring, fresh)
    assert link is not None
    return link


async def test_it_makes_the_first_tenant_and_its_admin(
    catalog: MemoryCatalog, keyring: Keyring, link: SetupLink
) -> None:
    assert link.leads_here(link.token)
    issued = await link.use(link.token, f" {link.code.upper()} ", "acme", "Acme")
    found = await keyring.authenticate(issued.token, 0)
    assert found == Principal("acme", "admin", issued.key.key_id)
    assert [tenant.name for tenant in await catalog.tenants()] == ["Acme"]


async def test_after_that_it_is_gone(
    catalog: MemoryCatalog, keyring: Keyring, link: SetupLink
) -> None:
    issued = await link.use(link.token, link.code, "acme")
    assert not link.leads_here(link.token)
    with pytest.raises(Refused, match="no setup"):
        await link.use(link.token, link.code, "other")
    tenant = await ensure_tenant(catalog, "acme")
    await keyring.issue(tenant, "admin")
    await keyring.revoke(tenant, issued.key.id, 0)
    assert await SetupLink.offer(catalog, keyring, fresh) is None


async def test_of_all_that_use_it_at_once_one_gets_a_key(
    catalog: MemoryCatalog, link: SetupLink
) -> None:
    tries = [link.use(link.token, link.code, f"tenant{n}") for n in range(10)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(one, Issued) for one in done) == 1
    assert len(await catalog.tenants()) == 1


@pytest.mark.parametrize("token", ["", "\ud800", "0" * 64])
async def test_a_wrong_token_is_like_no_link(link: SetupLink, token: str) -> None:
    assert not link.leads_here(token)
    with pytest.raises(Refused) as refused:
        await link.use(token, link.code, "acme")
    assert refused.value.code == "gone"


async def test_codes_cannot_be_tried_for_long(catalog: MemoryCatalog, link: SetupLink) -> None:
    said = []
    for _ in range(WRONG_CODES_MAX + 1):
        with pytest.raises(Refused) as refused:
            await link.use(link.token, "00000000", "acme")
        said.append(refused.value.code)
    assert said == ["wrong_code"] * WRONG_CODES_MAX + ["gone"]
    with pytest.raises(Refused):
        await link.use(link.token, link.code, "acme")
    assert await catalog.tenants() == []


@pytest.mark.parametrize("slug", ["", "Acme", "-a", "a b", "a/b", "a" * 64, "\u00e9"])
async def test_a_slug_that_is_none_may_be_mended(link: SetupLink, slug: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a tenant"):
        await link.use(link.token, link.code, slug)
    assert (await link.use(link.token, link.code, "a" * 63)).key.scope == "admin"


async def test_a_start_that_broke_off_between_tenant_and_key_is_offered_it_again(
    catalog: MemoryCatalog, keyring: Keyring
) -> None:
    tenant = await ensure_tenant(catalog, "acme")
    link = await SetupLink.offer(catalog, keyring, fresh)
    assert link is not None
    await link.use(link.token, link.code, "acme")
    assert len(await tenant.list(Key)) == 1
