"""What agents demand of a store, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from perdure import Agent, InvalidInput, Runtime
from perdure.core.agent import AgentSpec
from perdure.ports import entries
from perdure.ports.catalog import TenantCatalog
from tests.server.house import BOT, house

TOO_MUCH = [
    {"durability": "fsynced"},
    {"perdure": to_builtins(AgentSpec("bot", "m", durability="fsynced"))},
]
ENOUGH: list[dict[str, Any]] = [
    {"durability": "memory"},
    {"perdure": to_builtins(AgentSpec("bot", "m", durability="memory"))},
    {},
]
WHY = "demands the durability fsynced, and the store gives memory"


@pytest.mark.parametrize("config", TOO_MUCH)
async def test_an_agent_that_demands_more_than_the_store_gives_is_refused(
    config: dict[str, Any],
) -> None:
    """When it is made, and when it is changed; the words name both."""
    async with house() as h:
        refused = await h.ask("POST", "/agents", {**BOT, "model_config": config})
        assert refused.status_code == 422
        assert WHY in refused.json()["error"]["model_config"][0]
        agent = (await h.make("/agents", BOT))["id"]
        refused = await h.ask("PATCH", f"/agents/{agent}", {"model_config": config})
        assert refused.status_code == 422


@pytest.mark.parametrize("config", ENOUGH)
async def test_what_the_store_gives_may_be_demanded(config: dict[str, Any]) -> None:
    """And nothing has to be."""
    async with house() as h:
        agent = (await h.make("/agents", {**BOT, "model_config": config}))["id"]
        sent = await h.ask("POST", f"/agents/{agent}/messages", {"content": "hi"})
        assert (sent.status_code, sent.json()["durability"]) == (202, "memory")


async def test_an_agent_of_a_better_store_takes_no_message_here() -> None:
    """The catalog was used with another one before."""
    async with house() as h:
        tenant = TenantCatalog(h.catalog, "acme")
        agent = entries.Agent(name="bot", system_prompt="You help.", model_config=TOO_MUCH[0])
        made = await tenant.create(agent)
        refused = await h.ask("POST", f"/agents/{made.id}/messages", {"content": "hi"})
        assert (refused.status_code, WHY in refused.json()["error"]) == (409, True)


async def test_what_cannot_be_demanded_is_named() -> None:
    """With what can."""
    async with house() as h:
        body = {**BOT, "model_config": {"durability": "disk"}}
        refused = await h.ask("POST", "/agents", body)
        assert refused.status_code == 422
        assert "memory, os, fsynced" in refused.json()["error"]["model_config"][0]


async def test_a_runtime_starts_no_agent_that_demands_more(tmp_path: Path) -> None:
    """It starts on a store that gives enough."""
    agent = Agent("bot", model=lambda request: "hi", durability="fsynced")
    with pytest.raises(InvalidInput, match=f"agent 'bot' {WHY}"):
        await Runtime(agents=[agent]).start()
    async with Runtime(f"sqlite:///{tmp_path}/store.db", [agent]) as runtime:
        assert await (await runtime.send("bot", "hi")).result() == "hi"


async def test_ready_says_how_durable_the_store_is() -> None:
    """Whoever asks needs no key."""
    async with house() as h:
        answer = await h.http.get("/ready")
        assert answer.json() == {"status": "ok", "checks": {}, "durability": "memory"}
