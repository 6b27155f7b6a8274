"""Keys as requests meet them: what ends with one, and what cannot be asked of one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.api.operations import PREFIX
from perdure.ports.entries import Tenant
from tests.server.house import furnished, house


async def test_who_waits_for_a_run_is_let_go_when_the_key_ends() -> None:
    """401, although nothing happens in the run; who waits with another key goes on waiting."""
    async with house() as h:
        things = await furnished(h)
        run = await h.run(things["agents"], "be silent")
        made = await h.make("/api_keys", {"scope": "read"})
        url = f"{PREFIX}/runs/{run}/wait"
        asking = [
            asyncio.ensure_future(h.http.get(url, headers={"Authorization": f"Bearer {key}"}))
            for key in (made["key"], h.keys["acme", "read"])
        ]
        await h.settle()
        assert (await h.ask("DELETE", f"/api_keys/{made['id']}")).status_code == 204
        ended = await asyncio.wait_for(asking[0], 1)
        assert (ended.status_code, ended.json()) == (401, {"error": "unauthorized"})
        await h.settle()
        assert not asking[1].done()
        await h.ask("POST", f"/runs/{run}/cancel")
        assert (await asyncio.wait_for(asking[1], 5)).json()["data"]["status"] == "failed"


async def test_a_key_that_expires_ends_what_waits_within_a_second() -> None:
    """Found by the look at keys that comes every second."""
    async with house() as h:
        things = await furnished(h)
        run = await h.run(things["agents"], "be silent")
        made = await h.make("/api_keys", {"scope": "read", "expires_in_s": 5})
        h.keys["acme", "brief"] = made["key"]
        waiting = asyncio.ensure_future(h.ask("GET", f"/runs/{run}/wait", scope="brief"))
        await h.pass_time(4)
        assert not waiting.done()
        await h.pass_time(2)
        assert (await asyncio.wait_for(waiting, 5)).status_code == 401


async def test_the_last_admin_key_cannot_be_revoked() -> None:
    """409 with what to do; after that has been done it can, with the other one."""
    async with house() as h:
        [last] = [key["id"] for key in await h.get("/api_keys") if key["scope"] == "admin"]
        answer = await h.ask("DELETE", f"/api_keys/{last}")
        assert answer.status_code == 409
        assert "make another one first" in answer.json()["error"]
        h.keys["acme", "second"] = (await h.make("/api_keys", {"scope": "admin"}))["key"]
        answer = await h.ask("DELETE", f"/api_keys/{last}", scope="second")
        assert answer.status_code == 204
        assert (await h.ask("GET", "/agents")).status_code == 401


async def test_of_a_tenant_that_was_put_away_nothing_is_asked() -> None:
    """Its keys are none within a second, and its hooks are not there."""
    async with house() as h:
        things = await furnished(h)
        hook = f"/hooks/{things['token']}"
        assert (await h.ask("POST", hook, {"text": "x"}, scope=None)).status_code == 202
        assert (await h.ask("GET", "/agents")).status_code == 200
        located = await h.catalog.locate(Tenant, "acme")
        assert located is not None
        await h.catalog.update("acme", replace(located[1], archived_at=1))
        await h.pass_time(1)
        assert (await h.ask("GET", "/agents")).status_code == 401
        assert (await h.ask("POST", hook, {"text": "x"}, scope=None)).status_code == 404
        assert (await h.ask("GET", "/agents", tenant="zeta")).status_code == 200


GARDS: list[tuple[str, Any, str]] = [
    ("none", 10**9, "does not exist"),
    ("destroyed", None, "does not exist"),
    ("no number", "x", "is invalid: expected an integer or null"),
    ("zero", 0, "must be greater than or equal to 1"),
]


@pytest.mark.parametrize(
    ("gard", "said"), [row[1:] for row in GARDS], ids=[row[0] for row in GARDS]
)
async def test_a_key_for_a_gard_that_is_not_there(gard: Any, said: str) -> None:
    """422 with the field."""
    async with house() as h:
        if gard is None:
            gard = (await h.make("/gards", {"name": "g"}))["id"]
            await h.ask("DELETE", f"/gards/{gard}")
        answer = await h.ask("POST", "/api_keys", {"gard_id": gard})
        assert (answer.status_code, answer.json()["error"]) == (422, {"gard_id": [said]})
