"""Two tenants on one server: of what the other one has, there is nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from perdure.api.operations import EVENT_STREAM, OPERATIONS
from tests.server.house import House, Things, approve_ahead, furnished, house

MARK = "zeta-only"
MISSING = 10**9
LISTS = [
    one for one in OPERATIONS
    if one.methods == ("GET",) and not one.path_parameters and one.scope is not None
    and not one.operators
]  # fmt: skip
NAMED = [one for one in OPERATIONS if one.integers]


@asynccontextmanager
async def two() -> AsyncIterator[tuple[House, Things, Things]]:
    """Open a house in which both tenants have one of each thing; all texts of zeta say so."""
    async with house() as h:
        ours, theirs = await furnished(h), await furnished(h, "zeta")
        agent = theirs["agents"]
        for path, body in (
            (f"/agents/{agent}", {"name": MARK, "system_prompt": MARK, "purpose": MARK}),
            (f"/gards/{theirs['gards']}", {"name": MARK, "metadata": {"x": MARK}}),
            (f"/triggers/{theirs['triggers']}", {"name": MARK, "message": MARK}),
            (f"/hooks/{theirs['hooks']}", {"name": MARK}),
            (f"/sessions/{theirs['sessions']}", {"title": MARK}),
        ):
            answer = await h.ask("PUT", path, body, tenant="zeta")
            assert answer.status_code == 200, answer.text
        await h.run(agent, MARK, tenant="zeta", conversation_key=MARK)
        h.worker(lambda task: None, "zeta", MARK)
        yield h, ours, theirs


async def test_every_operation_on_a_foreign_id_is_as_on_a_missing_one() -> None:
    """The same status, the same words, the same headers; and nothing happened to it."""
    async with two() as (h, ours, theirs):
        before = await shown(h, "zeta")
        for operation in NAMED:
            noun = operation.path.split("/")[3]
            kept = "asking" if operation.id == "reply_to_run" else noun
            assert ours[kept] != theirs[kept]
            for method in operation.methods:
                said = []
                for foreign in (theirs[kept], MISSING):
                    path, body = Things({**ours, kept: foreign}).request(operation)
                    answer = await h.ask(method, path, body, headers={"Idempotency-Key": "k"})
                    said.append((answer.status_code, answer.text, answer.headers))
                assert said[0] == said[1], operation.id
                assert said[0][0] == 404, operation.id
        assert await shown(h, "zeta") == before


async def shown(h: House, tenant: str) -> dict[str, Any]:
    """Return everything that a tenant's lists show."""
    found = {}
    for operation in LISTS:
        answer = await h.ask("GET", operation.path.removeprefix("/api/v1"), tenant=tenant)
        assert answer.status_code == 200
        found[operation.id] = answer.json()
    return found


async def test_no_list_shows_anything_of_another_tenant() -> None:
    """And what is planted is seen by who may see it, so that this test can fail."""
    async with two() as (h, _, _):
        ours, theirs = await shown(h, "acme"), await shown(h, "zeta")
        assert MARK not in json.dumps(ours)
        seen = {one for one, answer in theirs.items() if MARK in json.dumps(answer)}
        assert seen >= {
            "list_agents", "list_runs", "list_sessions", "list_triggers", "list_gards",
            "list_hooks", "list_workers", "list_tools",
        }  # fmt: skip
        assert ours["tenant_usage"]["data"]["runs"] == 2
        assert theirs["tenant_usage"]["data"]["runs"] == 3


async def test_a_foreign_id_in_a_query_or_a_body_is_a_missing_one() -> None:
    """A filter finds nothing; a reference does not exist, in the same words."""
    async with two() as (h, ours, theirs):
        for path in ("/runs", "/triggers"):
            for agent in (theirs["agents"], MISSING):
                assert await h.get(path, agent_id=agent) == []
        bodies: list[tuple[str, dict[str, Any], str]] = [
            ("/triggers", {"name": "x", "cron": "* * * * *", "message": "m"}, "agent_id"),
            ("/hooks", {"name": "x"}, "agent_id"),
            ("/api_keys", {}, "gard_id"),
            (f"/agents/{ours['agents']}/messages", {"content": "x"}, "gard_id"),
        ]
        for path, body, field in bodies:
            noun = {"agent_id": "agents", "gard_id": "gards"}[field]
            said = {
                (
                    answer := await h.ask("POST", path, {**body, field: foreign})
                ).status_code: answer.text
                for foreign in (theirs[noun], MISSING)
            }
            assert set(said) <= {404, 422}
            assert len(said) == 1, said


async def test_a_conversation_of_the_same_key_is_another_one() -> None:
    """Keys are chosen by clients, and two may choose the same."""
    async with two() as (h, ours, theirs):
        mine = await h.get(f"/agents/{ours['agents']}/conversations/talk")
        other = await h.get(f"/agents/{theirs['agents']}/conversations/talk", tenant="zeta")
        assert mine["id"] != other["id"]
        await h.ask("DELETE", f"/agents/{ours['agents']}/conversations/talk")
        assert await h.get(f"/agents/{theirs['agents']}/conversations/talk", tenant="zeta") == other


async def test_a_stream_of_a_foreign_run_is_not_there() -> None:
    """As JSON, like any other missing run."""
    async with two() as (h, _, theirs):
        answers = [
            await h.ask("GET", f"/runs/{run}/events", headers={"Accept": EVENT_STREAM})
            for run in (theirs["runs"], MISSING)
        ]
        assert {(one.status_code, one.text) for one in answers} == {(404, '{"error":"not found"}')}


async def test_a_cursor_of_another_tenant_shows_nothing_of_it() -> None:
    """It is a place in an order, and no name of anything."""
    async with two() as (h, _, _):
        for path in ("/runs", "/sessions", "/agents", "/gards"):
            answer = await h.ask("GET", path, tenant="zeta", limit=1, after="")
            at = answer.json()["next"]
            if at is not None:
                assert MARK not in (await h.ask("GET", path, after=at)).text


async def test_every_list_is_the_same_page_by_page() -> None:
    """And whole, or as long as Norns has it, for who asks for no page."""
    async with house() as h:
        things = await furnished(h)
        for number in range(7):
            await h.run(things["agents"], "ask", conversation_key=f"a{number}")
        for number in range(7):
            await h.make("/agents", {"name": f"a{number}", "system_prompt": "x"})
            await h.make("/gards", {"name": "g"})
            await approve_ahead(h)
            await h.make("/api_keys", {"scope": "read"})
            await h.make("/endpoints", {"name": f"e{number}", "url": "https://e.example"})
            body = {"agent_id": things["agents"], "name": f"n{number}"}
            await h.make("/hooks", body)
            await h.make("/triggers", {**body, "cron": "* * * * *", "message": "m"})
            await h.run(things["agents"], "hi", conversation_key=f"c{number}")
            h.worker(lambda task: None, worker_id=f"w{number}")
        lists = [one.path.removeprefix("/api/v1") for one in LISTS if one.query is not None]
        lists = [path for path in lists if "usage" not in path]
        lists += [f"/agents/{things['agents']}/{noun}" for noun in ("runs", "conversations")]
        for path in lists:
            whole, found, at = await h.ask("GET", path), [], ""
            assert list(whole.json()) == ["data"], path
            while at is not None:
                part = (await h.ask("GET", path, limit=3, after=at)).json()
                found += part["data"]
                at = part["next"]
            assert found == whole.json()["data"], path
            assert len(found) >= 7, path
