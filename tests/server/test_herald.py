"""What runs do is told to endpoints: each event once, whatever dies in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.api.notices import PAYLOAD_BYTES_MAX
from perdure.ports.entries import Delivery, Endpoint, UntoldRun
from perdure.server.egress import Egress
from perdure.server.herald import ABSENT_MS, SEARCH_MS, Herald
from perdure.server.outbox import Outbox
from perdure.server.signatures import verify
from perdure.server.webhooks import Webhooks
from tests.server.house import BOT, House, echo, house
from tests.server.listeners import Listener, listening, parts
from tests.server.mortal import Catalogs, Life, dying

LOOPBACK = Egress(allowed=["127.0.0.0/8"], ports=range(1, 65_536))


@asynccontextmanager
async def told_house() -> AsyncIterator[tuple[House, int, Listener, str]]:
    """A house with an agent, and an endpoint that listens: its listener and its secret."""
    async with listening() as listener, house(egress=LOOPBACK) as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        body = {"name": "ci", "url": f"http://127.0.0.1:{listener.port}/hook"}
        secret = (await h.make("/endpoints", body))["signing_secret"]
        yield h, agent, listener, secret


async def posts(h: House, listener: Listener, count: int) -> list[dict[str, Any]]:
    """Return what was posted, once it is as much as this, by run and then in order."""
    async with asyncio.timeout(10):
        while len(listener.requests) < count:
            h.clock.advance(1)
            await asyncio.sleep(0.001)
    bodies = [json.loads(parts(one)[1]) for one in listener.requests]
    return sorted(bodies, key=lambda one: (one["data"]["run_id"], one["data"]["event"]["sequence"]))


WHAT_IS_TOLD = [
    ("hi", ["run.started", "run.completed"]),
    ("fail", ["run.started", "run.failed"]),
    ("ask", ["run.started", "run.waiting"]),
    ("be silent", ["run.started"]),
]


async def test_what_runs_do_is_told() -> None:
    """With the events as the run's timeline has them."""
    async with told_house() as (h, agent, listener, secret):
        runs = {await h.run(agent, said): types for said, types in WHAT_IS_TOLD}
        expected = [(run, type_) for run, types in runs.items() for type_ in types]
        found = await posts(h, listener, len(expected))
        assert [(one["data"]["run_id"], one["type"]) for one in found] == expected
        for one in found:
            about = one["data"]
            event = about["event"]
            assert (about["agent_id"], about["complete"]) == (agent, True)
            listed = await h.get(f"/runs/{about['run_id']}/events", after=event["sequence"] - 1)
            assert listed[0] == event
        verify("standard", secret, *parts(listener.requests[0]), h.clock.now_ms())
        still = {one.name for one in await h.catalog.list("acme", UntoldRun)}
        assert len(still) == 2, "the runs that ask and that are silent go on"


async def test_whoever_is_asked_is_reminded_from_outside() -> None:
    """So often and no more, also by a server that began later."""
    async with listening() as listener, house(egress=LOOPBACK) as h:
        h.worker(echo)
        config = {"reminders": {"after_seconds": 600, "times": 2}}
        agent = (await h.make("/agents", {**BOT, "model_config": config}))["id"]
        url = f"http://127.0.0.1:{listener.port}/"
        await h.make("/endpoints", {"name": "ci", "url": url, "events": ["run.reminded"]})
        run = await h.run(agent, "ask")
        for seconds in (601, 601, 601, 601):
            await h.pass_time(seconds)
        first, second = await posts(h, listener, 2)
        assert [one["data"]["event"]["payload"]["count"] for one in (first, second)] == [1, 2]
        assert first["type"] == "run.reminded"
        assert first["data"]["event"]["payload"]["name"] == "ask_human"
        [wait] = (await h.get(f"/runs/{run}"))["waits"]
        assert wait["reminded"] == 2
        await h.settle()
        assert len(listener.requests) == 2


async def test_runs_that_end_before_they_begin_and_after_a_retry_are_told() -> None:
    """A run that was queued and withdrawn; one that goes on under another number."""
    async with told_house() as (h, agent, listener, _):
        first = await h.run(agent, "be silent", conversation_key="c")
        queued = await h.run(agent, "next", conversation_key="c")
        await h.ask("POST", f"/runs/{queued}/cancel")
        await h.ask("POST", f"/runs/{first}/cancel")
        again = (await h.make(f"/runs/{first}/retry", None))["run_id"]
        found = await posts(h, listener, 4)
        assert [(one["data"]["run_id"], one["type"]) for one in found] == [
            (first, "run.started"),
            (first, "run.cancelled"),
            (queued, "run.cancelled"),
            (again, "run.started"),
        ]


async def test_a_run_that_was_in_progress_when_an_endpoint_came_is_told_from_then_on() -> None:
    """What it did before is not for the endpoint."""
    async with listening() as listener, house(egress=LOOPBACK) as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        asking = await h.run(agent, "ask")
        await h.run(agent, "hi")
        url = f"http://127.0.0.1:{listener.port}/"
        await h.make("/endpoints", {"name": "ci", "url": url})
        await h.make(f"/runs/{asking}/reply", {"answer": "this one"})
        await h.settle()
        [found] = await posts(h, listener, 1)
        assert (found["data"]["run_id"], found["type"]) == (asking, "run.completed")
        assert await h.catalog.list("acme", UntoldRun) == []


async def test_a_large_answer_is_left_out() -> None:
    """It can be asked for, and the notice says so."""

    async with told_house() as (h, agent, listener, _):
        for said, complete in (("x" * PAYLOAD_BYTES_MAX, False), ("x", True)):
            run = await h.run(agent, said)
            *_, found = await posts(h, listener, 2)
            assert (found["data"]["run_id"], found["data"]["complete"]) == (run, complete)
            assert bool(found["data"]["event"]["payload"]) == complete
            listener.requests.clear()


async def test_without_endpoints_nothing_is_written_down() -> None:
    """And after the last one was deleted nothing more."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        await h.run(agent, "ask")
        assert await h.catalog.list("acme", UntoldRun) == []
        made = await h.make("/endpoints", {"name": "ci", "url": "https://ci.example/"})
        await h.ask("DELETE", f"/endpoints/{made['id']}")
        await h.run(agent, "hi")
        await h.pass_time(SEARCH_MS / 1000 + 10)
        assert len(await h.catalog.list("acme", UntoldRun)) == 1, "the run that asks goes on"


async def test_a_run_that_was_written_down_and_never_came_is_forgotten() -> None:
    """Its message was refused, or the process died before it was accepted."""
    async with told_house() as (h, _, _, _):
        await h.catalog.create("acme", UntoldRun(name="never"))
        await h.pass_time(ABSENT_MS / 1000)
        assert len(await h.catalog.list("acme", UntoldRun)) == 1
        await h.pass_time(SEARCH_MS / 1000)
        assert await h.catalog.list("acme", UntoldRun) == []


async def test_a_message_that_comes_twice_is_told_once() -> None:
    """Also when the second one comes after the run was told to its end."""
    async with told_house() as (h, agent, listener, _):
        for _ in range(2):
            body, key = {"content": "hi"}, {"Idempotency-Key": "k"}
            await h.make(f"/agents/{agent}/messages", body, headers=key)
            await h.settle()
            await posts(h, listener, 2)
        assert await h.catalog.list("acme", UntoldRun) == []
        assert len(await h.catalog.list("acme", Delivery, archived=True)) == 2


class Mortal:
    """A herald that may be about to die, over the catalog and the store of a house."""

    def __init__(self, h: House, life: Life) -> None:
        catalog: Any = Catalogs(h.catalog, life)
        outbox = Outbox(catalog, LOOPBACK.post, lambda sealed: sealed, h.clock, h.telemetry)
        self.webhooks = Webhooks(catalog, LOOPBACK, outbox, h.service.changes)
        self.herald = Herald(catalog, self.webhooks, h.service.desk, h.clock, h.telemetry)

    async def look(self) -> None:
        """Start, as a server does, and tell what is untold."""
        await self.webhooks.load("acme")
        await self.herald.run_once()


MOMENTS = 13
"""Before and after each write: the run in progress, two notices of each, how far each was told."""


@pytest.mark.parametrize("moment", range(1, MOMENTS + 2))
async def test_a_death_at_any_moment_loses_nothing(moment: int) -> None:
    """Nor is anything owed twice: of one run that has ended, and of one that asks."""
    catalog = MemoryCatalog(lambda: 1)
    async with house(catalog) as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        kept = Endpoint(name="ci", url="https://ci.example/", signing_secrets=("s",))
        await catalog.create("acme", kept)
        await h.service.webhooks.load("acme")
        await h.service._herald.stop()
        runs = [await h.run(agent, "hi"), await h.run(agent, "ask")]
        await h.service.stop()
        life = Life(dies_at=moment)
        with dying() if moment <= MOMENTS else nullcontext():
            await Mortal(h, life).look()
        for _ in range(2):
            await Mortal(h, Life()).look()
        owed = [json.loads(one.body) for one in await catalog.list("acme", Delivery)]
        found = sorted((one["data"]["run_id"], one["data"]["event"]["sequence"]) for one in owed)
        assert [run for run, _ in found] == [runs[0]] * 2 + [runs[1]] * 2
        assert len(set(found)) == 4
        [untold] = await catalog.list("acme", UntoldRun)
        assert untold.told == found[-1][1]
