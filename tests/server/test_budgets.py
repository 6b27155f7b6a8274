"""Budgets over HTTP: what a run has of its own is shown, raised by who may, and never twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perdure.ports.catalog import TenantCatalog
from perdure.ports.entries import ToolRecord
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.server.house import BOT, House, calls, house, said, says
from tests.server.peers import Peer, registration

PRICED = {**BOT, "model": "anthropic:claude-sonnet-4-5"}


def searches(task: LlmTask | ToolTask) -> Result:
    """Play a model that searches twice and tells what came of it, and the search."""
    if isinstance(task, ToolTask):
        return says(task, "nothing")
    told = said(task)
    return says(task, "done") if len(told) > 4 else calls(task, "search", q="x")


@asynccontextmanager
async def library(**config: Any) -> AsyncIterator[tuple[House, int]]:
    """Open a server with an agent that searches."""
    async with house() as h:
        Peer(h.service.pool, registration("w1", "search"), tenant="acme", does=searches)
        known = ToolRecord(
            name="search", description="Search.", input_schema={"type": "object"}, effect="read"
        )
        await h.service.agents.learn("acme", [known])
        agent = await h.make("/agents", {**PRICED, "model_config": {"max_tokens": 100, **config}})
        yield h, agent["id"]


async def waiting(h: House, agent: int, **budget: Any) -> tuple[int, dict[str, Any]]:
    """Send a message with a budget; return its run once it stands still, and how."""
    body = {"content": "search", "budget": budget} if budget else {"content": "search"}
    sent = await h.ask("POST", f"/agents/{agent}/messages", body)
    assert sent.status_code == 202, sent.text
    run = sent.json()["run_id"]
    await h.settle()
    return run, await shown(h, run)


async def shown(h: House, run: int) -> dict[str, Any]:
    """Return a run as the API shows it."""
    found: dict[str, Any] = (await h.ask("GET", f"/runs/{run}", scope="read")).json()["data"]
    return found


async def more(h: House, run: int, scope: str = "run", **body: Any) -> Any:
    """Raise a run's budget, and return the answer once what waited has gone on."""
    answer = await h.ask("POST", f"/runs/{run}/budget", body, scope=scope)
    await h.settle()
    return answer


async def test_a_run_parks_is_listed_and_goes_on_when_it_is_raised() -> None:
    async with library(budget={"calls_max": {"search": 1}, "cost_max": "5.5"}) as (h, agent):
        run, found = await waiting(h, agent)
        assert (found["status"], found["waits"][0]["short_of"]) == ("waiting", "calls")
        page = (await h.ask("GET", "/waits?what=budget", scope="read")).json()
        [listed] = page["data"]
        assert (listed["run_id"], listed["wait"]["tool"]) == (run, "search")
        assert (await more(h, run, calls={"search": 1})).status_code == 202
        found = await shown(h, run)
        assert (found["status"], found["output"]) == ("completed", "done")
        purse = found["purse"]
        assert purse["allotted"] == {
            "tokens": None,
            "cost": "5.500000",
            "wall_ms": None,
            "calls": {"search": 2},
        }
        assert purse["spent"]["calls"] == {"search": 2}
        assert purse["reserved"] == {"tokens": 0, "cost": "0.000000"}
        assert purse["prices_as_of"] == "2026-11-20"
        events = (await h.ask("GET", f"/runs/{run}/events", scope="read")).json()["data"]
        raised = next(one for one in events if one["event_type"] == "budget_raised")
        assert raised["payload"]["calls"] == {"search": 1}


async def test_a_message_brings_its_own_budget_and_is_told_what_is_wrong_with_it() -> None:
    async with library() as (h, agent):
        run, found = await waiting(h, agent, tokens_max=5)
        assert found["waits"][0]["short_of"] == "tokens"
        assert (await more(h, run, deny=True, reason="no")).status_code == 202
        found = await shown(h, run)
        assert found["failure_metadata"]["error_code"] == "budget_exceeded"
        for budget, wrong in (
            ({"currency": "EUR"}, "USD"),
            ({"tokens_max": -1}, "tokens_max"),
            ({"cost_max": "1,5"}, "cost_max"),
            ({"calls_max": {"serch": 1}}, "serch"),
            ({"token_max": 5}, "token_max"),
        ):
            answer = await h.ask(
                "POST", f"/agents/{agent}/messages", {"content": "x", "budget": budget}
            )
            assert (answer.status_code, wrong in answer.text) == (422, True), answer.text


async def test_an_agent_with_a_budget_that_cannot_be_read_is_not_made() -> None:
    async with house() as h:
        for budget, wrong in (
            ({"currency": "EUR"}, "USD"),
            ({"cost_max": 5}, "cost_max"),
            ("a lot", "budget cannot be read"),
        ):
            body = {**PRICED, "model_config": {"budget": budget}}
            answer = await h.ask("POST", "/agents", body, scope="admin")
            assert (answer.status_code, wrong in answer.text) == (422, True), answer.text


async def test_only_who_has_the_role_raises_and_is_named() -> None:
    async with library(budget={"tokens_max": 5, "roles": ["finance"]}) as (h, agent):
        run, _ = await waiting(h, agent)
        tenant = TenantCatalog(h.catalog, "acme")
        for name, roles in (("fin", ("finance",)), ("eve", ("sales",))):
            issued = await h.ring.issue(tenant, "run", name=name, roles=roles)
            h.keys["acme", name] = issued.token
        refused = await more(h, run, scope="eve", tokens=1_000_000)
        assert (refused.status_code, "none of the roles finance" in refused.text) == (409, True)
        assert (await more(h, run, scope="fin", tokens=1_000_000)).status_code == 202
        assert (await shown(h, run))["status"] == "completed"


async def test_a_raise_that_is_said_twice_is_added_once() -> None:
    """Under the same key it has the same answer; of the same wait, the second is too late."""
    async with library(budget={"tokens_max": 5}) as (h, agent):
        run, found = await waiting(h, agent)
        body = {"tokens": 1_000_000, "call": found["waits"][0]["call"]}
        key = {"Idempotency-Key": "k-1"}
        for _ in range(2):
            answer = await h.ask("POST", f"/runs/{run}/budget", body, scope="run", headers=key)
            assert answer.status_code == 202, answer.text
            await h.settle()
        assert (await shown(h, run))["purse"]["allotted"]["tokens"] == 1_000_005


@pytest.mark.parametrize(
    ("body", "status", "wrong"),
    [
        ({"tokens": -1}, 422, "tokens"),
        ({"cost": "a lot"}, 422, "cost"),
        ({"tokenz": 1}, 422, "tokenz"),
        ({"cost": "1"}, 409, "no limit of cost_micros"),
        ({"tokens": 1, "call": "9.9.p9"}, 409, "does not wait for a budget"),
    ],
)
async def test_bad_input_raises_nothing(body: dict[str, Any], status: int, wrong: str) -> None:
    async with library(budget={"tokens_max": 5}) as (h, agent):
        run, before = await waiting(h, agent)
        answer = await more(h, run, **body)
        assert (answer.status_code, wrong in answer.text) == (status, True), answer.text
        assert (await shown(h, run))["purse"] == before["purse"]


async def test_a_run_that_has_ended_or_has_no_budget_is_not_raised() -> None:
    async with library() as (h, agent):
        run, found = await waiting(h, agent)
        assert "purse" not in found
        answer = await more(h, run, tokens=5)
        assert (answer.status_code, "is not in progress" in answer.text) == (409, True)
        assert (await more(h, 999, tokens=5)).status_code == 404
