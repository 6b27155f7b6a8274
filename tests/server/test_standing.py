"""Standing approvals over HTTP: given for what is like a call, listed, revoked, on every server."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perdure.core.ids import arguments_digest
from perdure.ports import entries
from perdure.ports.catalog import TenantCatalog
from perdure.ports.entries import ToolRecord
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.server.house import BOT, House, Street, calls, said, says
from tests.server.peers import Peer, registration
from tests.server.test_approvals import PAYMENT, POLICY, decide, key, pays, till

LIKE_IT = [{"path": "cents", "at_most": 2000}]
PATH = "/standing_approvals"


def pays_each_time(task: LlmTask | ToolTask) -> Result:
    """Play a model that pays for every message."""
    if isinstance(task, ToolTask) or "paid" not in str(said(task)[-1]):
        return pays(task) if isinstance(task, ToolTask) else calls(task, "pay", **PAYMENT)
    return says(task, "done")


async def ahead(h: House, run: int, scope: str = "run", **more: Any) -> Any:
    """Ask for a standing approval of payments like the one that waits."""
    body = {"run_id": run, "call": "1.1.t0", "arguments": LIKE_IT, "expires_minutes": 60, **more}
    return await h.ask("POST", PATH, body, scope=scope)


async def outcome(h: House, agent: int, **more: Any) -> str:
    """Return how another run that pays stands."""
    return str((await h.get(f"/runs/{await h.run(agent, **more)}"))["status"])


async def test_nobody_is_asked_again_about_what_is_like_it_and_the_log_says_why() -> None:
    async with till() as (h, run):
        await key(h, "ann")
        answer = await ahead(h, run, "ann", digest=arguments_digest(PAYMENT), reason="cash")
        assert answer.status_code == 201, answer.text
        given = answer.json()["data"]
        assert (given["by"], given["standing"], given["reason"]) == ("ann", "in_force", "cash")
        assert (given["tool"], given["agent"]) == ("pay", BOT["name"])
        assert (await h.get(f"/runs/{run}"))["status"] == "waiting", "decided by itself"
        agent = (await h.get(f"/runs/{run}"))["agent_id"]
        other = await h.run(agent)
        assert (await h.get(f"/runs/{other}"))["status"] == "completed"
        events = (await h.ask("GET", f"/runs/{other}/events")).json()["data"]
        [call] = [one for one in events if one["event_type"] == "tool_call"]
        assert call["payload"]["rule"] == f"standing:{given['id']}"
        assert await h.get(PATH, scope="read") == [given]


async def test_once_revoked_people_are_asked_again() -> None:
    async with till() as (h, run):
        given = (await ahead(h, run)).json()["data"]
        agent = (await h.get(f"/runs/{run}"))["agent_id"]
        assert (await h.ask("DELETE", f"{PATH}/{given['id']}", scope="read")).status_code == 403
        assert (await h.ask("DELETE", f"{PATH}/{given['id']}", tenant="zeta")).status_code == 404
        assert (await h.ask("DELETE", f"{PATH}/{given['id']}", scope="run")).status_code == 204
        assert (await h.ask("DELETE", f"{PATH}/{given['id']}", scope="run")).status_code == 404
        assert await outcome(h, agent) == "waiting"
        kept = await TenantCatalog(h.catalog, "acme").get(entries.StandingApproval, given["id"])
        assert kept is not None, "the log names it"


async def test_it_expires() -> None:
    async with till() as (h, run):
        await ahead(h, run, expires_minutes=1)
        agent = (await h.get(f"/runs/{run}"))["agent_id"]
        assert await outcome(h, agent) == "completed"
        await h.pass_time(61)
        assert await outcome(h, agent) == "waiting"
        [listed] = await h.get(PATH)
        assert listed["standing"] == "expired"


async def test_each_session_uses_it_so_often() -> None:
    async with till(does=pays_each_time) as (h, run):
        await ahead(h, run, uses_per_session=2)
        agent = (await h.get(f"/runs/{run}"))["agent_id"]
        talk = [await outcome(h, agent, conversation_key="talk") for _ in range(3)]
        assert talk == ["completed", "completed", "waiting"]
        assert await outcome(h, agent, conversation_key="other") == "completed"


async def test_another_policy_or_another_tool_is_asked_about() -> None:
    async with till() as (h, run):
        await ahead(h, run)
        agent = (await h.get(f"/runs/{run}"))["agent_id"]
        tool = ToolRecord(name="pay", description="Pay more.", input_schema={"type": "object"})
        await h.service.agents.learn("acme", [tool])
        assert await outcome(h, agent) == "waiting"
        assert (await h.get(PATH))[0]["standing"] == "tool_changed"
        await h.service.agents.learn("acme", [replace(tool, description="Pay.")])
        assert (await h.get(PATH))[0]["standing"] == "in_force"
        await h.ask("PUT", "/policy", {"policy": {**POLICY, "name": "tills"}})
        assert await outcome(h, agent) == "waiting"
        assert (await h.get(PATH))[0]["standing"] == "policy_changed"


@pytest.mark.parametrize(
    "more,code,said",
    [
        ({"arguments": [{"path": "cents", "at_most": 5}]}, 409, "the arguments are not like these"),
        ({"arguments": []}, 422, "arguments"),
        ({"arguments": [{"path": "cents"}]}, 422, "expected exactly one of"),
        ({"call": "9.9.t9"}, 409, "does not wait for approval"),
        ({"run_id": 999}, 422, "does not exist"),
        ({"digest": "other"}, 409, "have changed"),
        ({"expires_minutes": 0}, 422, "expires_minutes"),
        ({"expires_minutes": 10**6}, 422, "expires_minutes"),
        ({"uses": 5}, 422, "uses"),
    ],
)
async def test_what_would_not_help_is_refused(more: dict[str, Any], code: int, said: str) -> None:
    async with till() as (h, run):
        answer = await ahead(h, run, **more)
        assert answer.status_code == code, answer.text
        assert said in answer.text
        assert await h.get(PATH) == []


async def test_it_takes_the_role_and_never_stands_for_several_people() -> None:
    [rule] = POLICY["rule"]
    async with till({**POLICY, "rule": [{**rule, "roles": ["finance"]}]}) as (h, run):
        await key(h, "ann", "finance")
        await key(h, "eve", "sales")
        assert "wants one of the roles finance" in (await ahead(h, run, "eve")).text
        assert (await ahead(h, run, "ann")).status_code == 201
    async with till({**POLICY, "rule": [{**rule, "needed": 2}]}) as (h, run):
        assert "wants 2 people each time" in (await ahead(h, run)).text
    async with till() as (h, run):
        assert (await decide(h, run)).status_code == 202
        assert (await ahead(h, run)).status_code == 409, "nothing is left to look at"


async def test_all_servers_know_it_and_one_that_may_not_know_what_is_revoked_asks() -> None:
    street = Street()
    async with street.house(name="one") as one, street.house(name="two") as two:
        await one.ask("PUT", "/policy", {"policy": POLICY})
        Peer(one.service.pool, registration("w1", "pay"), tenant="acme", does=pays)
        known = ToolRecord(name="pay", description="Pay.", input_schema={"type": "object"})
        await one.service.agents.learn("acme", [known])
        agent = await one.make("/agents", BOT)
        await ahead(one, await one.run(agent["id"]))
        await two.pass_time(3)
        gate = two.service.agents.gate("acme")
        assert gate is not two.service.agents.policy("acme")
        assert gate.version == one.service.agents.gate("acme").version
        two.service.changes.is_current = lambda: False  # type: ignore[method-assign]
        assert two.service.agents.gate("acme") is two.service.agents.policy("acme")
