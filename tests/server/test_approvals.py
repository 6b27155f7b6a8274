"""Approvals and policies over HTTP: who may decide, what is told, and that one decision wins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perdure.core.ids import arguments_digest
from perdure.ports.catalog import TenantCatalog
from perdure.ports.entries import ToolRecord
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.server.house import BOT, House, Street, calls, house, said, says
from tests.server.peers import Peer, registration

PAYMENT = {"cents": 1999, "to": "ann\u200b"}
POLICY: dict[str, Any] = {
    "version": 1,
    "name": "till",
    "rule": [
        {
            "id": "large",
            "verdict": "ask",
            "reason": "more than 10 euros",
            "tools": ["pay"],
            "arguments": [{"path": "cents", "over": 1000}],
        }
    ],
}


def pays(task: LlmTask | ToolTask) -> Result:
    """Play a model that pays once and tells what came of it, and the till."""
    if isinstance(task, ToolTask):
        return says(task, f"paid {task.input}")
    told = said(task)
    return says(task, f"done: {told[-1]}") if len(told) > 1 else calls(task, "pay", **PAYMENT)


@asynccontextmanager
async def till(
    policy: dict[str, Any] = POLICY, does: Callable[[LlmTask | ToolTask], Result] = pays
) -> AsyncIterator[tuple[House, int]]:
    """Open a server with a policy, on which a run has asked for a payment."""
    async with house() as h:
        assert (await h.ask("PUT", "/policy", {"policy": policy})).status_code == 200
        Peer(h.service.pool, registration("w1", "pay"), tenant="acme", does=does)
        known = ToolRecord(name="pay", description="Pay.", input_schema={"type": "object"})
        await h.service.agents.learn("acme", [known])
        agent = await h.make("/agents", BOT)
        yield h, await h.run(agent["id"])


async def key(h: House, name: str, *roles: str) -> None:
    """Make a key of the scope `run`, known by a name."""
    tenant = TenantCatalog(h.catalog, "acme")
    issued = await h.ring.issue(tenant, "run", name=name, roles=roles)
    h.keys["acme", name] = issued.token


async def decide(
    h: House, run: int, decision: str = "approve", scope: str = "run", **more: Any
) -> Any:
    """Decide on the payment, and return the answer once it is carried out."""
    body = {"call": "1.1.t0", "decision": decision, **more}
    answer = await h.ask("POST", f"/runs/{run}/decide", body, scope=scope)
    await h.settle()
    return answer


async def test_what_waits_says_all_that_there_is_to_know() -> None:
    async with till() as (h, run):
        page = (await h.ask("GET", "/waits", scope="read")).json()
        [waiting] = page["data"]
        assert waiting["run_id"] == run
        assert waiting["wait"]["what"] == "approval"
        asked = waiting["wait"]["approval"]
        assert (asked["tool"], asked["arguments"]) == ("pay", PAYMENT)
        assert asked["digest"] == arguments_digest(PAYMENT)
        assert (asked["rule"], asked["reason"]) == ("large", "more than 10 euros")
        assert (await h.get(f"/runs/{run}"))["status"] == "waiting"
        assert (await h.ask("GET", "/waits", what="answer")).json()["data"] == []
        assert (await h.ask("GET", "/waits", tenant="zeta")).json()["data"] == []


async def test_it_is_approved_once_and_the_run_tells_the_story() -> None:
    async with till() as (h, run):
        await key(h, "ann")
        await key(h, "bob")
        assert (await decide(h, run, scope="ann")).status_code == 202
        late = await decide(h, run, "deny", scope="bob")
        assert late.status_code == 409
        assert "was approved by ann at" in late.text
        shown = await h.get(f"/runs/{run}")
        assert shown["status"] == "completed"
        events = (await h.ask("GET", f"/runs/{run}/events")).json()["data"]
        told = [one["event_type"] for one in events]
        story = ["approval_requested", "approval_given", "tool_call", "tool_result"]
        assert [one for one in told if one in story] == story
        given = events[told.index("approval_given")]
        assert (given["payload"]["by"], given["source"]) == ("ann", "user")
        assert events[told.index("tool_call")]["payload"]["rule"] == "approved:large"


@pytest.mark.parametrize("decision", ["approve", "deny", "edit", "reassign"])
async def test_who_only_reads_decides_nothing(decision: str) -> None:
    async with till() as (h, run):
        assert (await decide(h, run, decision, scope="read")).status_code == 403
        assert len((await h.ask("GET", "/waits")).json()["data"]) == 1


async def test_a_run_of_somebody_else_is_not_there() -> None:
    async with till() as (h, run):
        body = {"call": "1.1.t0", "decision": "approve"}
        answer = await h.ask("POST", f"/runs/{run}/decide", body, tenant="zeta", scope="run")
        assert answer.status_code == 404


async def test_two_people_with_a_role_are_needed() -> None:
    [rule] = POLICY["rule"]
    strict = {**POLICY, "rule": [{**rule, "needed": 2, "roles": ["finance"]}]}
    async with till(strict) as (h, run):
        for name, role in (("ann", "finance"), ("bob", "finance"), ("eve", "sales")):
            await key(h, name, role)
        assert "none of the roles" in (await decide(h, run, scope="eve")).text
        assert (await decide(h, run, scope="ann")).status_code == 202
        assert "has approved" in (await decide(h, run, scope="ann")).text
        assert (await h.get(f"/runs/{run}"))["status"] == "waiting"
        assert (await decide(h, run, scope="bob")).status_code == 202
        assert (await h.get(f"/runs/{run}"))["status"] == "completed"


async def test_changed_arguments_are_approved_anew() -> None:
    async with till() as (h, run):
        digest, other = arguments_digest(PAYMENT), arguments_digest({"cents": 5})
        assert (await decide(h, run, "edit", arguments={"cents": 5})).status_code == 202
        old = await decide(h, run, digest=digest)
        assert old.status_code == 409
        assert digest in old.text
        assert other in old.text
        assert (await decide(h, run, digest=other)).status_code == 202
        assert "{'cents': 5}" in (await h.get(f"/runs/{run}"))["output"]


async def test_a_repeated_request_is_the_same_decision() -> None:
    async with till() as (h, run):
        body = {"call": "1.1.t0", "decision": "approve"}
        headers = {"Idempotency-Key": "k1"}
        answers = [
            await h.ask("POST", f"/runs/{run}/decide", body, headers=headers) for _ in range(2)
        ]
        assert [one.status_code for one in answers] == [202, 202]


@pytest.mark.parametrize(
    "body,said",
    [
        ([], "policy"),
        ({}, "version"),
        ({**POLICY, "rules": []}, "rules"),
        ({**POLICY, "rule": [{"id": "x", "verdict": "maybe"}]}, "verdict"),
    ],
)
async def test_what_is_no_policy_replaces_none(body: Any, said: str) -> None:
    async with house() as h:
        before = (await h.ask("PUT", "/policy", {"policy": POLICY})).json()["data"]
        wrong = await h.ask("PUT", "/policy", {"policy": body})
        assert wrong.status_code in (400, 422)
        assert said in wrong.text
        assert await h.get("/policy") == before


async def test_only_admins_change_the_rules() -> None:
    async with house() as h:
        for scope in ("run", "read"):
            assert (
                await h.ask("PUT", "/policy", {"policy": POLICY}, scope=scope)
            ).status_code == 403
        assert (await h.get("/policy", scope="read"))["version"] == ""


async def test_without_the_policy_the_next_call_is_allowed() -> None:
    async with till() as (h, run):
        assert (await h.ask("DELETE", "/policy")).status_code == 204
        agent = (await h.get(f"/runs/{run}"))["agent_id"]
        assert (await h.get(f"/runs/{await h.run(agent)}"))["status"] == "completed"
        assert (await h.get(f"/runs/{run}"))["status"] == "waiting", "it was asked about before"


async def test_a_policy_is_in_force_on_every_server() -> None:
    street = Street()
    async with street.house(name="one") as one, street.house(name="two") as two:
        await one.ask("PUT", "/policy", {"policy": POLICY})
        await two.pass_time(3)
        assert (await two.get("/policy"))["policy"]["name"] == "till"
        assert two.service.agents.gate("acme").version == one.service.agents.gate("acme").version
        assert two.service.agents.gate("zeta").version == ""


async def test_after_a_while_others_are_asked() -> None:
    [rule] = POLICY["rule"]
    later = {"roles": ["finance"], "escalate_minutes": 10, "escalate_to": ["board"]}
    async with till({**POLICY, "rule": [{**rule, **later}]}) as (h, run):
        await key(h, "ann", "finance")
        await key(h, "bob", "board")
        [waiting] = (await h.ask("GET", "/waits")).json()["data"]
        asked = waiting["wait"]["approval"]
        assert (asked["roles"], asked["escalate_to"]) == (["finance"], ["board"])
        assert asked["escalate_at"] > asked["requested_at"]
        assert "none of the roles" in (await decide(h, run, scope="bob")).text
        await h.pass_time(601)
        [waiting] = (await h.ask("GET", "/waits")).json()["data"]
        assert waiting["wait"]["approval"]["roles"] == ["board"]
        assert waiting["wait"]["approval"]["escalate_at"] is None
        assert "none of the roles" in (await decide(h, run, scope="ann")).text
        assert (await decide(h, run, scope="bob")).status_code == 202
        events = (await h.ask("GET", f"/runs/{run}/events")).json()["data"]
        [moved] = [one for one in events if one["event_type"] == "approval_reassigned"]
        assert (moved["payload"]["by"], moved["source"]) == ("rule:large", "system")
