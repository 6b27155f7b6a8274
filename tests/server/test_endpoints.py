"""Endpoints over HTTP: made, checked, paused, tried out, and what they were told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.api.limits import ENDPOINTS_MAX
from perdure.server.egress import Egress, egress_for
from perdure.server.signatures import verify
from tests.server.house import House, house
from tests.server.listeners import Listener, listening, parts, status

LOOPBACK = Egress(allowed=["127.0.0.0/8"], ports=range(1, 65_536))
CI = {"name": "ci", "url": "https://ci.example/hook"}

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"url": None}, "url", "can't be blank"),
    ({"url": "ftp://ci.example/"}, "url", "expected https or http"),
    ({"url": "https://ci.example:22/"}, "url", "expected one of 80, 443"),
    ({"url": "https://u:p@ci.example/"}, "url", "user name or password"),
    ({"url": "http://127.0.0.1/"}, "url", "not public"),
    ({"url": "http://2130706433/"}, "url", "no address of the form"),
    ({"url": "http://169.254.169.254/latest"}, "url", "not public"),
    ({"url": "http://[::1]/"}, "url", "not public"),
    ({"url": "http://10.0.0.7/"}, "url", "not public"),
    ({"url": "https://ci.example/" + "x" * 2_000}, "url", "at most 2000"),
    ({"events": ["run.complete"]}, "events", "is invalid"),
    ({"agent_id": 10**9}, "agent_id", "does not exist"),
    ({"event": ["run.failed"]}, "event", "is not known; expected name, url, events"),
]


@pytest.mark.parametrize(("changed", "field", "said"), WRONG)
async def test_what_no_endpoint_can_be(changed: dict[str, Any], field: str, said: str) -> None:
    """422 with the field, whether it is made or changed."""
    async with house() as h:
        made = await h.make("/endpoints", {**CI, "name": "other"})
        answers = [
            await h.ask("POST", "/endpoints", {**CI, **changed}),
            await h.ask("PATCH", f"/endpoints/{made['id']}", changed),
        ]
        for answer in answers:
            assert answer.status_code == 422, answer.text
            assert list(answer.json()["error"]) == [field]
            assert said in answer.json()["error"][field][0]


async def test_a_tenant_has_so_many_endpoints() -> None:
    """409 after that, until one is deleted; names are taken once."""
    async with house() as h:
        made = [await h.make("/endpoints", {**CI, "name": f"e{n}"}) for n in range(ENDPOINTS_MAX)]
        answer = await h.ask("POST", "/endpoints", CI)
        assert (answer.status_code, "delete one first" in answer.text) == (409, True)
        await h.ask("DELETE", f"/endpoints/{made[0]['id']}")
        answer = await h.ask("POST", "/endpoints", {**CI, "name": "e1"})
        assert answer.json() == {"error": {"name": ["has already been taken"]}}
        await h.make("/endpoints", CI)


async def test_a_secret_is_shown_once() -> None:
    """When it is made, and when it is rotated; never in clear on record."""
    async with house() as h:
        made = await h.make("/endpoints", CI)
        path = f"/endpoints/{made['id']}"
        again = await h.make(f"{path}/rotate", None)
        secrets = {made["signing_secret"], again["signing_secret"]}
        assert len(secrets) == 2
        kept = str(h.catalog._entries)
        for shown in (
            (await h.ask("GET", path)).text,
            (await h.ask("GET", "/endpoints")).text,
            kept,
        ):
            assert not any(secret in shown for secret in secrets)


async def tried(h: House, path: str, listener: Listener) -> bytes:
    """Have an endpoint tried out; return what came."""
    listener.requests.clear()
    answer = await h.ask("POST", f"{path}/test")
    assert answer.status_code == 202
    async with asyncio.timeout(5):
        while not listener.requests:
            h.clock.advance(1)
            await asyncio.sleep(0.001)
    await h.settle()
    return listener.requests[0]


async def test_an_endpoint_is_tried_out_and_its_secret_rotated() -> None:
    """Signed with the new secret and the one before, and with no older one."""
    async with listening() as listener, house(egress=LOOPBACK) as h:
        url = f"http://127.0.0.1:{listener.port}/hook"
        made = await h.make("/endpoints", {"name": "ci", "url": url, "events": ["run.failed"]})
        path, secrets = f"/endpoints/{made['id']}", [made["signing_secret"]]
        for _ in range(3):
            headers, body = parts(await tried(h, path, listener))
            assert b'"type":"endpoint.test"' in body
            for secret in secrets[-2:]:
                verify("standard", secret, headers, body, h.clock.now_ms())
            signatures = dict(headers)[b"webhook-signature"].split()
            assert len(signatures) == min(2, len(secrets))
            secrets.append((await h.make(f"{path}/rotate", None))["signing_secret"])


async def test_what_an_endpoint_was_told_is_listed_and_told_again() -> None:
    """Newest first, page by page; what failed says why, and may be owed again."""
    codes = [500]
    async with listening(lambda _: status(codes[0])) as listener, house(egress=LOOPBACK) as h:
        made = await h.make(
            "/endpoints", {"name": "ci", "url": f"http://127.0.0.1:{listener.port}/"}
        )
        path = f"/endpoints/{made['id']}"
        await tried(h, path, listener)
        [failed] = await until_told(h, path, "pending", "the endpoint answered 500")
        assert (failed["attempts"], failed["event"]) == (1, "endpoint.test")
        answer = await h.ask("POST", f"/deliveries/{failed['id']}/retry")
        assert answer.json()["data"] == failed, "it is owed already"
        codes[0] = 410
        await h.pass_time(10)
        [gone] = await until_told(h, path, "failed", "the endpoint answered 410")
        shown = await h.get(path)
        assert (shown["enabled"], shown["disabled_because"]) == (False, "the endpoint answered 410")
        assert (await h.ask("POST", f"{path}/test")).status_code == 409
        codes[0] = 204
        shown = (await h.ask("PATCH", path, {"enabled": True})).json()["data"]
        assert (shown["enabled"], shown["disabled_because"], shown["failures"]) == (True, None, 0)
        await h.ask("POST", f"/deliveries/{gone['id']}/retry")
        [told] = await until_told(h, path, "delivered", None)
        assert (told["webhook_id"], told["attempts"]) == (failed["webhook_id"], 1)
        ids = {dict(parts(one)[0])[b"webhook-id"].decode() for one in listener.requests}
        assert ids == {told["webhook_id"]}
        for _ in range(4):
            await tried(h, path, listener)
        page = (await h.ask("GET", f"{path}/deliveries", limit=3)).json()
        rest = (await h.ask("GET", f"{path}/deliveries", after=page["next"])).json()
        listed = [one["id"] for one in (*page["data"], *rest["data"])]
        assert (len(listed), listed, rest["next"]) == (5, sorted(listed, reverse=True), None)


async def until_told(h: House, path: str, state: str, error: str | None) -> list[dict[str, Any]]:
    """Return the deliveries of an endpoint once the newest has come to this."""
    async with asyncio.timeout(5):
        while True:
            found: list[dict[str, Any]] = await h.get(f"{path}/deliveries")
            if (found[0]["status"], found[0]["last_error"]) == (state, error):
                return found
            await asyncio.sleep(0.001)


ENVIRONMENTS: list[tuple[dict[str, str], str, str]] = [
    ({}, "http://127.0.0.1/", "not public"),
    ({}, "https://ci.example:8443/", "the port 8443"),
    ({"PERDURE_WEBHOOK_NETWORKS": "10.0.0.0/8, 127.0.0.1/32"}, "http://127.0.0.1/", ""),
    ({"PERDURE_WEBHOOK_NETWORKS": "10.0.0.0/8, 127.0.0.1/32"}, "http://127.0.0.2/", "not public"),
    ({"PERDURE_WEBHOOK_PORTS": "8443"}, "https://ci.example:8443/", ""),
    ({"PERDURE_WEBHOOK_PORTS": "8443"}, "https://ci.example/", "expected one of 8443"),
    ({"PERDURE_WEBHOOK_PORTS": "*"}, "https://ci.example:1/", ""),
]


@pytest.mark.parametrize(("environment", "url", "said"), ENVIRONMENTS)
async def test_where_webhooks_may_go_is_the_operators_to_say(
    environment: dict[str, str], url: str, said: str
) -> None:
    """To public addresses at the usual ports if he says nothing."""
    async with house(egress=egress_for(environment)) as h:
        answer = await h.ask("POST", "/endpoints", {"name": "ci", "url": url})
        assert answer.status_code == (422 if said else 201)
        assert said in answer.text


async def test_an_endpoint_that_is_made_while_the_last_one_is_deleted_is_told() -> None:
    """Whoever has just seen that there is none does not overlook it."""
    async with house() as h:
        webhooks, real = h.service.webhooks, h.catalog.list

        async def slow(*args: Any, **query: Any) -> Any:
            found = await real(*args, **query)
            h.catalog.list = real  # type: ignore[method-assign]
            await h.make("/endpoints", {"name": "ci", "url": "https://ci.example/hook"})
            return found

        h.catalog.list = slow  # type: ignore[method-assign]
        await webhooks.load("acme")
        assert webhooks.listens("acme")
