"""Definitions and calls on their way between workers and servers: every field arrives, or it says
why not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.api.shapes import AgentCreate
from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.ids import SessionId
from perdure.core.messages import UserMessage
from perdure.ports.catalog import TenantCatalog
from perdure.ports.entries import Agent
from perdure.ports.models import ModelRequest
from perdure.ports.workers import ModelTask, ToolTask
from perdure.server.catalogued import Catalogued
from perdure.server.changes import Changes
from perdure.server.pool import Pool
from perdure.server.setup import ensure_tenant
from perdure.testing.clock import FakeClock
from perdure.wire.registration import AgentOffer, read_registration
from perdure.worker.holding import _task
from perdure.worker.offers import agent_body, agent_offers
from tests.runtime.world import Telemetry
from tests.server.house import BOT, echo, house
from tests.server.peers import Peer, registration
from tests.templates import SPECS

SESSION = SessionId("default", "bot", "s1")
NATIVE = ("native", "begin", "cancel")
PAY = ToolTask(
    SESSION, "run-1", "1.1.t0", 2, "bot", "pay", "once", {"n": 5}, "key-1", version="2",
    timeout_ms=7_000,
)  # fmt: skip
ASK = ModelTask(
    SESSION, "run-1", "1.1.m1", "bot",
    ModelRequest(
        "openai:gpt-5", "Help.", (UserMessage("hi"),), (ToolSpec("pay", "Pay.", {}),), 5, "reply"
    ),
    timeout_ms=600_000,
)  # fmt: skip


async def kept(specs: list[AgentSpec]) -> list[AgentSpec | None]:
    """Let a worker define agents, and return what another process reads of them."""
    catalog = MemoryCatalog(FakeClock().now_ms)
    tenant = await ensure_tenant(catalog, "default")
    ids = []
    for spec in specs:
        body = msgspec.json.decode(msgspec.json.encode(agent_body(spec)), type=AgentCreate)
        entry = Agent(
            name=body.name, system_prompt=body.system_prompt, model=body.model,
            model_config=body.model_config or {}, max_steps=body.max_steps,
        )  # fmt: skip
        ids.append((await tenant.create(entry)).id)
    telemetry = Telemetry()
    changes = Changes(catalog, FakeClock(), telemetry, shared=False)
    agents = Catalogued(catalog, changes, telemetry)
    await agents.refresh("default")
    found = [agents.of("default", str(number)) for number in ids]
    return [definition and definition.spec for definition in found]


@settings(max_examples=30, deadline=None)
@given(st.lists(SPECS, max_size=2, unique_by=lambda spec: spec.name))
def test_a_definition_arrives_in_every_field(specs: list[AgentSpec]) -> None:
    """From the worker that has the code to a node that has none."""
    assert asyncio.run(kept(specs)) == specs


@given(SPECS)
@settings(max_examples=30, deadline=None)
def test_a_worker_offers_its_tools_by_name_and_version(spec: AgentSpec) -> None:
    """Those of the runtime are not its to offer."""
    [offer] = agent_offers([spec])
    payload = {
        "worker_id": "w1", "tools": [], "features": ["native"],
        "agents": msgspec.to_builtins([offer]),
    }  # fmt: skip
    read = read_registration(json.loads(json.dumps(payload)))
    assert read.agents == (offer,)  # type: ignore[union-attr]
    assert offer.tools == tuple(tool.name for tool in spec.tools)
    assert all(offer.versions.get(tool.name, "") == tool.version for tool in spec.tools)


STAYS = {
    ToolTask: {"meta", "timeout_ms"},  # the first is the server's; a worker's tool has its own time
    ModelTask: {"meta", "timeout_ms"},
}


@pytest.mark.parametrize("task", [PAY, ASK])
async def test_a_call_arrives_in_every_field(task: Any) -> None:
    """But those that are said to stay: a new one has to travel, or be added to them."""
    pool = Pool(FakeClock(), Telemetry())
    what = registration("w1", features=NATIVE, agents={})
    offer = AgentOffer("bot", ("pay",), {"pay": "2"})
    worker = Peer(pool, msgspec.structs.replace(what, agents=(offer,)))
    pool.start(task, lambda *_: None, lambda *_: None)
    for _ in range(8):
        await asyncio.sleep(0)
    [told] = worker.tasks
    arrived = _task(told, told.perdure)
    fields = set(task.__struct_fields__) - STAYS[type(task)]
    assert {name: getattr(arrived, name) for name in fields} == {
        name: getattr(task, name) for name in fields
    }


@pytest.mark.parametrize(
    "has,fits,needs",
    [
        ({"pay": "2"}, True, ""),
        ({"pay": "1"}, False, "worker 'w1' has version '1'"),
        ({}, False, "worker 'w1' has version ''"),
    ],
)
async def test_only_the_same_version_of_a_tool_gets_a_call(
    has: dict[str, str], fits: bool, needs: str
) -> None:
    """The call waits for it, and says what is there instead."""
    pool = Pool(FakeClock(), Telemetry(), is_native=lambda task: True)
    what = registration("w1", features=NATIVE, agents={})
    offer = AgentOffer("bot", ("pay",), has)
    worker = Peer(pool, msgspec.structs.replace(what, agents=(offer,)))
    pool.start(PAY, lambda *_: None, lambda *_: None)
    for _ in range(8):
        await asyncio.sleep(0)
    assert bool(worker.tasks) is fits
    if not fits:
        [waiting] = pool.queues.waiting_for(SESSION)
        assert waiting.fitting == 0
        assert waiting.needs == (
            f"a worker with the tool 'pay' of version '2' for agent 'bot'; {needs}"
        )


async def test_a_model_may_take_as_long_as_its_agent_says() -> None:
    """The server waits as long as the worker does."""
    clock = FakeClock()
    pool = Pool(clock, Telemetry(), model_timeout_ms=1_000)
    worker = Peer(pool, registration("w1", features=NATIVE, agents={"bot": ()}))
    reports: list[Any] = []
    pool.start(ASK, lambda _, report: reports.append(report), lambda *_: None)
    await asyncio.sleep(0)
    assert worker.member is not None
    clock.advance(599_000)
    assert reports == []
    clock.advance(10_000)
    assert [report.code for report in reports] == ["timeout"]


# --------------------------------------------------------------------------- what is not understood


async def test_an_agent_that_is_not_understood_is_left_to_others() -> None:
    """A newer version wrote it. It is said once which field is not known; other agents go on."""
    catalog = MemoryCatalog(FakeClock().now_ms)
    async with house(catalog) as h:
        tenant = TenantCatalog(catalog, "acme")
        plain = msgspec.to_builtins(AgentSpec("new", "openai:gpt-5"))
        for name, own in (("new", plain | {"zone": "eu"}), ("odd", 5)):
            await tenant.create(
                Agent(name=name, system_prompt="Help.", model_config={"perdure": own})
            )
        agent = (await h.make("/agents", BOT))["id"]
        h.worker(echo)
        run = await h.run(agent, "hello")
        assert (await h.get(f"/runs/{run}"))["output"] == "you said hello"
        assert {each["name"] for each in await h.get("/agents")} == {"new", "odd", "bot"}
        await h.service.agents.refresh("acme")
        told = [fields for name, fields in h.telemetry.told if name == "agent.unreadable"]
        assert [each["tenant"] for each in told] == ["acme", "acme"]
        assert told[0]["error"].endswith("does not know: zone")


@pytest.mark.parametrize(
    "config,said",
    [
        ({"perdure": {"name": "a", "model": "m", "zone": 1}}, "does not know: zone"),
        ({"perdure": {"name": "a"}}, "missing required field `model`"),
        (
            {"perdure": {"name": "a", "model": "m", "credentials": {"model": "sk-live-abcdefgh"}}},
            "credentials['model'] is no reference",
        ),
        ({"api_key": "sk-live-abcdefgh"}, "a secret has no place in it"),
        ({"nested": [{"url": "https://me:hunter2@host"}]}, "a secret has no place in it"),
    ],
)
async def test_what_could_not_be_read_or_kept_secret_is_refused(
    config: dict[str, Any], said: str
) -> None:
    """When it is said, not when it is needed; and what may be a secret is not repeated."""
    async with house() as h:
        body = {**BOT, "model_config": config}
        answer = await h.ask("POST", "/agents", body)
        assert answer.status_code == 422
        assert said in answer.text
        made = (await h.make("/agents", BOT))["id"]
        changed = await h.ask("PATCH", f"/agents/{made}", {"model_config": config})
        assert (changed.status_code, changed.text) == (422, answer.text)
        for secret in ("sk-live-abcdefgh", "hunter2"):
            assert secret not in answer.text
