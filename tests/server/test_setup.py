"""The first start: one link, one code, one key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.core.errors import InvalidInput, Refused
from perdure.ports.catalog import TenantCatalog
from perdure.ports.entries import Key
from perdure.server.keys import Issued, Keyring, Principal
from perdure.server.setup import LIFE_MS, TRIED_EVERY_MS, WRONG_CODES_MAX, SetupLink, ensure_tenant
from perdure.testing.clock import FakeClock
from tests.server.chance import fresh
from tests.server.house import House


class First:
    """A first start: an empty catalog, and the link that is offered."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.catalog = MemoryCatalog(self.clock.now_ms)
        self.ring = Keyring(self.catalog, b"p" * 32, fresh)

    async def tenant(self) -> TenantCatalog:
        """Return the tenant whose first key it is."""
        return await ensure_tenant(self.catalog, "acme")

    async def offer(self) -> SetupLink | None:
        """Return what a start offers."""
        return await SetupLink.offer(
            await self.tenant(), self.catalog, self.ring, self.clock, fresh
        )

    async def link(self) -> SetupLink:
        """Return the link, which has to be offered."""
        link = await self.offer()
        assert link is not None
        return link

    async def gone(self, link: SetupLink) -> bool:
        """Say whether a link is no longer good, also with the right code."""
        self.clock.advance(TRIED_EVERY_MS)
        try:
            await link.check()
        except Refused as refused:
            with pytest.raises(Refused, match="was used, or is too old"):
                await link.use(link.code)
            return refused.code == "gone"
        return False


@pytest.mark.parametrize("typed", ["{}", " {}\n", "{lower}", "{plain}"])
async def test_it_makes_the_first_admin_key(typed: str) -> None:
    first = First()
    link = await first.link()
    code = typed.format(link.code, lower=link.code.lower(), plain=link.code.replace("-", " "))
    issued = await link.use(code)
    found = await first.ring.authenticate(issued.token, 0)
    assert found == Principal("acme", "admin", issued.key.key_id, label="setup")
    assert await first.gone(link)
    assert await first.offer() is None


async def test_of_all_that_use_it_at_once_one_gets_a_key() -> None:
    first = First()
    link = await first.link()
    done = await asyncio.gather(*(link.use(link.code) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(one, Issued) for one in done) == 1
    assert len(await (await first.tenant()).list(Key)) == 1


async def test_it_is_gone_when_somebody_has_a_key() -> None:
    """Of whichever tenant; also if that one was revoked since."""
    first = First()
    link = await first.link()
    other = await ensure_tenant(first.catalog, "other")
    issued = await first.ring.issue(other, "run")
    assert await first.gone(link)
    await first.ring.revoke(other, issued.key.id, 0)
    assert await first.gone(link)
    assert await first.offer() is None


async def test_it_is_gone_after_an_hour() -> None:
    """The next start offers another one, with another code."""
    first = First()
    link = await first.link()
    first.clock.advance(LIFE_MS - 2 * TRIED_EVERY_MS)
    assert not await first.gone(link)
    first.clock.advance(TRIED_EVERY_MS)
    assert await first.gone(link)
    again = await first.link()
    assert (again.token, again.code) != (link.token, link.code)
    await again.use(again.code)


async def test_codes_cannot_be_tried_for_long() -> None:
    """Once in a second, and five times altogether."""
    first = First()
    link = await first.link()
    for left in reversed(range(WRONG_CODES_MAX)):
        first.clock.advance(TRIED_EVERY_MS)
        with pytest.raises(Refused, match=f"{left} more may be tried"):
            await link.use("AAAA-AAAA")
    assert await first.gone(link)


@pytest.mark.parametrize("token", ["", "\ud800", "0" * 64])
async def test_a_wrong_token_leads_nowhere(token: str) -> None:
    link = await First().link()
    assert not link.leads_here(token)
    assert link.leads_here(link.token)


@pytest.mark.parametrize("slug", ["", "Acme", "-a", "a b", "a/b", "a" * 64, "\u00e9"])
async def test_a_slug_that_is_none_is_refused(slug: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a tenant"):
        await ensure_tenant(First().catalog, slug)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[House, SetupLink, str]]:
    """A server at its first start: its link, and the path of it."""
    h = House(None)
    tenant = await ensure_tenant(h.catalog, "acme")
    h.service.setup = await SetupLink.offer(tenant, h.catalog, h.ring, h.clock, fresh)
    assert h.service.setup is not None
    try:
        yield h, h.service.setup, f"/setup/{h.service.setup.token}"
    finally:
        await h.http.aclose()


async def enter(h: House, path: str, code: str, **headers: str) -> httpx2.Response:
    """Send the form of the page."""
    h.clock.advance(TRIED_EVERY_MS)
    return await h.http.post(path, data={"code": code}, headers=headers)


async def test_the_page_leads_to_a_key_that_works() -> None:
    """A form, then the key, once; what comes after says that there is nothing left to do."""
    async with opened() as (h, link, path):
        page = await h.http.get(path)
        assert (page.status_code, '<form method="post">' in page.text) == (200, True)
        made = await enter(h, path, link.code)
        assert made.status_code == 201
        [key] = re.findall(r'<code class="key">(\w+)</code>', made.text)
        h.keys["acme", "admin"] = key
        assert (await h.ask("GET", "/api_keys")).status_code == 200
        for after in (await h.http.get(path), await enter(h, path, link.code)):
            assert after.status_code == 410
            assert "<form" not in after.text
            assert key not in after.text


async def test_the_page_needs_nothing_but_itself() -> None:
    """No script, no file, no frame around it, nothing kept by anybody, and no word to others."""
    async with opened() as (h, link, path):
        wrong = await enter(h, path, "<script>")
        for page in (await h.http.get(path), wrong, await enter(h, path, link.code)):
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert not re.search(r"<script|src=|href=|@import|url\(|http", page.text)
            policy = page.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; style-src 'sha256-")
            assert "form-action 'self'; base-uri 'none'; frame-ancestors 'none'" in policy
            assert page.headers["Cache-Control"] == "no-store"
            assert page.headers["Referrer-Policy"] == "no-referrer"


async def test_it_can_be_done_without_a_browser() -> None:
    """Whoever asks for JSON gets it, errors too."""
    async with opened() as (h, link, path):
        json = {"Accept": "application/json"}
        assert (await h.http.get(path, headers=json)).json() == {"takes": "code"}
        wrong = await enter(h, path, "AAAA-AAAA", **json)
        assert wrong.status_code == 403
        assert "4 more may be tried" in wrong.json()["error"]
        soon = await h.http.post(path, data={"code": link.code}, headers=json)
        assert (soon.status_code, soon.headers["Retry-After"]) == (429, "1")
        h.keys["acme", "admin"] = (await enter(h, path, link.code, **json)).json()["data"]["key"]
        assert (await h.ask("GET", "/agents")).status_code == 200
        assert (await h.http.get(path, headers=json)).status_code == 410


BODIES: list[tuple[bytes, str, int]] = [
    (b"", "application/x-www-form-urlencoded", 403),
    (b"code", "application/x-www-form-urlencoded", 403),
    (b"code=%ff&code=x", "application/x-www-form-urlencoded", 403),
    (b"&".join([b"a=b"] * 99), "application/x-www-form-urlencoded", 403),
    (b"x" * 5_000, "application/x-www-form-urlencoded", 413),
    (b'{"code": "x"}', "application/json", 415),
]


@pytest.mark.parametrize(("content", "media", "status"), BODIES)
async def test_a_form_that_is_none(content: bytes, media: str, status: int) -> None:
    """A page that says what is wrong."""
    async with opened() as (h, _, path):
        headers = {"Content-Type": media}
        answer = await h.http.post(path, content=content, headers=headers)
        assert (answer.status_code, '<p class="bad"' in answer.text) == (status, True)


async def test_without_the_token_there_is_no_page() -> None:
    """As for any path that leads nowhere, whether a setup is offered or not."""
    async with opened() as (h, link, path):
        for setup in (link, None):
            h.service.setup = setup
            paths = ["/setup/x", "/setup/" + "0" * 64] + ([path] if setup is None else [])
            for wrong in paths:
                for answer in (await h.http.get(wrong), await enter(h, wrong, link.code)):
                    assert (answer.status_code, answer.json()) == (404, {"error": "not found"})
        assert (await h.http.put(path)).status_code == 405
