"""Servers that share one store and one catalog: none of them may believe that it is alone."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.adapters.cluster.memory import MemoryCluster
from perdure.core.errors import Refused
from perdure.ports.catalog import TenantCatalog
from perdure.ports.entries import Agent, Key
from perdure.ports.session_store import RunQuery
from perdure.server.changes import ALL_WITHIN_MS, CHANGES_KEPT, KNOWN_WITHIN_MS
from perdure.server.egress import Egress
from perdure.server.gards import CLAIM_MS
from perdure.server.keys import Keyring
from perdure.server.outbox import CLAIM_MS as CLAIMED_MS
from perdure.server.setup import SetupLink, ensure_tenant
from perdure.testing.clock import FakeClock
from perdure.wire.table import GardDestroyed
from perdure.wire.tasks import LlmTask, ToolTask
from perdure.wire.worker import Joined, JoinRefused
from tests.server.chance import fresh
from tests.server.house import BOT, House, Street, echo, says
from tests.server.listeners import Listener, listening, parts
from tests.server.mortal import Catalogs
from tests.server.test_gards import Socket
from tests.server.test_quarantine import set_aside

LOOPBACK = Egress(allowed=["127.0.0.0/8"], ports=range(1, 65_536))
KNOWN_WITHIN_S = KNOWN_WITHIN_MS / 1000


class Prompts:
    """A worker that keeps what models were told first."""

    def __init__(self) -> None:
        self.tasks: list[LlmTask] = []

    def __call__(self, task: LlmTask | ToolTask) -> Any:
        assert isinstance(task, LlmTask)
        self.tasks.append(task)
        return says(task, "done")

    @property
    def prompts(self) -> list[str]:
        """The prompts, in order."""
        return [task.system_prompt for task in self.tasks]


# -------------------------------------------------------------------------------------- definitions


async def test_an_agent_is_there_at_once_wherever_it_was_made() -> None:
    """Who makes it here and sends to it there is not told that there is none."""
    street = Street()
    async with street.house() as a, street.house() as b:
        seen = Prompts()
        b.worker(seen)
        agent = (await a.make("/agents", BOT))["id"]
        run = await b.run(agent)
        assert (await a.get(f"/runs/{run}"))["status"] == "completed"
        assert seen.prompts == ["You help."]
        assert [task.run_id for task in seen.tasks] == [run]


async def test_a_message_is_served_by_the_newest_definition() -> None:
    """Also where nobody has had the time to look what was changed elsewhere."""
    street = Street()
    async with street.house() as a, street.house() as b:
        seen = Prompts()
        b.worker(seen)
        agent = (await a.make("/agents", BOT))["id"]
        await b.run(agent)
        await a.ask("PATCH", f"/agents/{agent}", {"system_prompt": "You sing."})
        await b.run(agent)
        assert seen.prompts == ["You help.", "You sing."]


async def test_what_goes_on_goes_on_with_the_newest_definition_in_time() -> None:
    """A session that runs elsewhere hears of a change without anybody's message."""
    street = Street()
    async with street.house() as a, street.house() as b:
        agent = str((await a.make("/agents", BOT))["id"])
        await b.pass_time(KNOWN_WITHIN_S)
        await a.ask("PATCH", f"/agents/{agent}", {"system_prompt": "You sing."})
        await b.pass_time(KNOWN_WITHIN_S)
        known = b.service.agents.of("acme", agent)
        assert known is not None
        assert known.spec.instructions == "You sing."


async def test_tools_of_a_worker_elsewhere_are_known() -> None:
    """A run that starts where no worker is knows what its agent can do."""
    street = Street()
    async with street.house() as a, street.house() as b:
        agent = str((await a.make("/agents", BOT))["id"])
        gard = await a.make("/gards", {"name": "g"})
        socket = Socket(a, gard, "w1")
        await a.pass_time(KNOWN_WITHIN_S)
        here, there = (h.service.agents.of("acme", agent) for h in (a, b))
        assert here is not None
        assert here == there
        await socket.lose()


async def test_what_nobody_was_told_of_is_found_when_all_is_read_again() -> None:
    """A server died between its change and the list of changes."""
    street = Street()
    async with street.house() as a:
        agent = (await a.make("/agents", BOT))["id"]
        tenant = TenantCatalog(street.catalog, "acme")
        entry = await tenant.get(Agent, agent)
        assert entry is not None
        await tenant.change(Agent, agent, lambda one: _prompted(one, "You sing."))
        for _ in range(ALL_WITHIN_MS // 60_000):
            await a.pass_time(60)
        known = a.service.agents.of("acme", str(agent))
        assert known is not None
        assert known.spec.instructions == "You sing."


def _prompted(agent: Agent, prompt: str) -> Agent:
    return replace(agent, system_prompt=prompt)


async def test_who_missed_more_changes_than_are_kept_reads_everything() -> None:
    """It was stopped for long."""
    street = Street()
    async with street.house() as a, street.house() as b:
        agent = (await a.make("/agents", BOT))["id"]
        b.clock.stop()
        await a.ask("PATCH", f"/agents/{agent}", {"system_prompt": "You sing."})
        for _ in range(CHANGES_KEPT):
            await a.service.changes.tell("agents", "zeta")
        await a.pass_time(KNOWN_WITHIN_S)
        b.clock.go_on()
        await b.pass_time(KNOWN_WITHIN_S)
        known = b.service.agents.of("acme", str(agent))
        assert known is not None
        assert known.spec.instructions == "You sing."


async def test_an_older_reading_never_takes_the_place_of_a_newer_one() -> None:
    """Two readings of a tenant's agents overlap, and the one that began first ends last."""
    street = Street()
    async with street.house() as a:
        agent = (await a.make("/agents", BOT))["id"]
        slow, held = asyncio.Event(), asyncio.Event()
        real = street.catalog.list

        async def late(tenant: str, kind: Any, **query: Any) -> Any:
            found = await real(tenant, kind, **query)
            if kind is Agent and not held.is_set():
                held.set()
                await slow.wait()
            return found

        street.catalog.list = late  # type: ignore[method-assign]
        first = asyncio.ensure_future(a.service.agents.refresh("acme"))
        await held.wait()
        await a.ask("PATCH", f"/agents/{agent}", {"system_prompt": "You sing."})
        slow.set()
        await first
        known = a.service.agents.of("acme", str(agent))
        assert known is not None
        assert known.spec.instructions == "You sing."


# --------------------------------------------------------------------------------------------- keys


async def test_a_key_that_was_revoked_elsewhere_ends_here() -> None:
    """Requests are refused, and what waits is let go."""
    street = Street()
    async with street.house() as a, street.house() as b:
        made = await a.make("/api_keys", {"scope": "read"})
        street.keys["acme", "read"] = made["key"]
        agent = (await a.make("/agents", BOT))["id"]
        run = await b.run(agent)
        waiting = asyncio.ensure_future(b.ask("GET", f"/runs/{run}/wait", scope="read"))
        await b.settle()
        assert not waiting.done()
        await a.ask("DELETE", f"/api_keys/{made['id']}")
        await b.pass_time(KNOWN_WITHIN_S)
        assert (await waiting).status_code == 401
        assert (await b.ask("GET", "/agents", scope="read")).status_code == 401


class Ring:
    """One server's keys; whatever it asks of the catalog, others get their turn first."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self.catalog: Any = Catalogs(catalog)
        self.tenant = TenantCatalog(self.catalog, "default")
        self.keys = Keyring(self.catalog, b"p" * 32, fresh)


async def test_of_two_admin_keys_that_are_revoked_at_once_one_stays() -> None:
    """Each server sees the other key in time, or takes back what it did."""
    catalog = MemoryCatalog(FakeClock().now_ms)
    tenant = await ensure_tenant(catalog, "default")
    rings = [Ring(catalog), Ring(catalog)]
    keys = [(await ring.keys.issue(tenant, "admin")).key.id for ring in rings]
    found = await asyncio.gather(
        *(ring.keys.revoke(ring.tenant, key, 1) for ring, key in zip(rings, keys, strict=True)),
        return_exceptions=True,
    )
    assert {"last_admin_key"} <= {one.code for one in found if isinstance(one, Refused)}
    assert await tenant.list(Key) != []


async def test_of_two_links_to_the_first_key_the_first_wins() -> None:
    """Each server offers one; whoever comes second is told that his is gone."""
    clock = FakeClock()
    catalog = MemoryCatalog(clock.now_ms)
    tenant = await ensure_tenant(catalog, "default")
    links = []
    for ring in (Ring(catalog), Ring(catalog)):
        link = await SetupLink.offer(ring.tenant, ring.catalog, ring.keys, clock, fresh)
        assert link is not None
        links.append(link)
    found = await asyncio.gather(*(link.use(link.code) for link in links), return_exceptions=True)
    assert [one.code for one in found if isinstance(one, Refused)] == ["gone"]
    assert len(await tenant.list(Key)) == 1


# --------------------------------------------------------------------------- webhooks and triggers


async def test_a_run_that_begins_elsewhere_is_told_to_a_new_endpoint() -> None:
    """Whoever made it was answered: from then on every server knows that somebody listens."""
    street = Street()
    async with listening() as listener, street.house(LOOPBACK) as a, street.house(LOOPBACK) as b:
        b.worker(echo)
        agent = (await a.make("/agents", BOT))["id"]
        body = {"name": "ci", "url": f"http://127.0.0.1:{listener.port}/hook"}
        making = asyncio.ensure_future(a.make("/endpoints", body))
        await a.pass_time(KNOWN_WITHIN_S / 2)
        assert not making.done()
        await a.pass_time(2 * KNOWN_WITHIN_S)
        await making
        await b.run(agent)
        await heard(b, listener, 2)
        assert b"run.started" in parts(listener.requests[0])[1]


async def test_who_has_not_looked_for_long_asks_whether_somebody_listens() -> None:
    """It was stopped while the endpoint was made, and takes a message before it looks."""
    street = Street()
    async with listening() as listener, street.house(LOOPBACK) as a, street.house(LOOPBACK) as b:
        b.worker(echo)
        agent = (await a.make("/agents", BOT))["id"]
        await b.pass_time(KNOWN_WITHIN_S)
        b.clock.stop()
        body = {"name": "ci", "url": f"http://127.0.0.1:{listener.port}/hook"}
        making = asyncio.ensure_future(a.make("/endpoints", body))
        await a.pass_time(2 * KNOWN_WITHIN_S)
        await making
        assert not b.service.webhooks.listens("acme")
        await b.ask("POST", f"/agents/{agent}/messages", {"content": "hi"})
        assert b.service.webhooks.listens("acme")
        b.clock.go_on()


async def test_what_a_server_that_died_had_to_tell_is_told_by_another() -> None:
    """It ended a run, and was gone before its endpoints were owed that."""
    street = Street()
    async with listening() as listener, street.house(LOOPBACK) as a:
        a.worker(echo)
        agent = (await a.make("/agents", BOT))["id"]
        body = {"name": "ci", "url": f"http://127.0.0.1:{listener.port}/hook"}
        making = asyncio.ensure_future(a.make("/endpoints", body))
        await a.pass_time(2 * KNOWN_WITHIN_S)
        await making
        async with street.house(LOOPBACK) as b:
            b.worker(echo)
            await a.pass_time(10)
            b.service.node.listen(lambda rows: None)
            await b.run(agent)
            assert listener.requests == []
        await heard(a, listener, 2)


async def test_what_one_server_is_delivering_no_other_delivers() -> None:
    """One that starts meanwhile leaves it alone, and takes it over when its claim has run out."""
    street = Street()
    async with listening(lambda request: None) as silent, street.house(LOOPBACK) as a:
        body = {"name": "ci", "url": f"http://127.0.0.1:{silent.port}/hook"}
        making = asyncio.ensure_future(a.make("/endpoints", body))
        await a.pass_time(2 * KNOWN_WITHIN_S)
        endpoint = (await making)["id"]
        await a.make(f"/endpoints/{endpoint}/test", None)
        await heard(a, silent, 1)
        a.clock.stop()
        async with street.house(LOOPBACK) as b:
            await b.pass_time(CLAIMED_MS / 2000)
            assert silent.connections == 1
            await b.pass_time(CLAIMED_MS / 1000)
            await heard(b, silent, 2)
        first, second = (parts(one)[1] for one in silent.requests)
        assert first == second


async def heard(h: House, listener: Listener, count: int) -> None:
    """Wait until so many requests came."""
    async with asyncio.timeout(10):
        while len(listener.requests) < count:
            h.clock.advance(100)
            await asyncio.sleep(0.001)


async def test_a_trigger_fires_once_for_all_servers() -> None:
    """And goes on when one of them is gone."""
    street = Street()
    async with street.house() as a:
        seen = Prompts()
        a.worker(seen)
        agent = (await a.make("/agents", BOT))["id"]
        trigger = {"agent_id": agent, "name": "t", "cron": "* * * * *", "message": "go"}
        await a.make("/triggers", trigger)
        async with street.house() as b:
            b.worker(seen)
            for _ in range(6):
                await a.pass_time(10)
            assert len(seen.tasks) == 1
        for _ in range(6):
            await a.pass_time(10)
        assert len(seen.tasks) == 2


# -------------------------------------------------------------------------------------------- gards


async def test_a_gard_that_is_held_elsewhere_stays_held() -> None:
    """When a server starts, when another worker wants it, and when time passes."""
    street = Street()
    async with street.house() as a:
        gard = await a.make("/gards", {"name": "g"})
        socket = Socket(a, gard, "w1")
        await a.settle()
        async with street.house() as b:
            for _ in range(4):
                await a.pass_time(CLAIM_MS / 2000)
            other = Socket(b, gard, "w2")
            await b.settle()
            assert [type(fact) for fact in other.facts] == [JoinRefused]
            assert (await b.get(f"/gards/{gard['id']}"))["status"] == "ready"
            await other.lose()
            await asyncio.wait([other.task])
        await socket.lose()


async def test_the_gard_of_a_server_that_stands_still_goes_to_another() -> None:
    """And when it goes on, it lets its own worker go."""
    street = Street()
    async with street.house() as a, street.house() as b:
        gard = await a.make("/gards", {"name": "g"})
        socket = Socket(b, gard, "w1")
        await b.settle()
        assert [type(fact) for fact in socket.facts] == [Joined]
        b.clock.stop()
        for _ in range(4):
            await a.pass_time(CLAIM_MS / 2000)
        assert (await a.get(f"/gards/{gard['id']}"))["status"] == "disconnected"
        other = Socket(a, gard, "w2")
        await a.settle()
        assert [type(fact) for fact in other.facts] == [Joined]
        b.clock.go_on()
        await b.pass_time(2)
        assert socket.task.done()
        assert (await a.get(f"/gards/{gard['id']}"))["status"] == "ready"
        await other.lose()


async def test_a_gard_that_is_destroyed_elsewhere_ends_its_worker() -> None:
    """It is told why."""
    street = Street()
    async with street.house() as a, street.house() as b:
        gard = await a.make("/gards", {"name": "g"})
        socket = Socket(b, gard, "w1")
        await b.settle()
        assert (await a.ask("DELETE", f"/gards/{gard['id']}")).status_code == 204
        await b.pass_time(KNOWN_WITHIN_S)
        assert [type(fact) for fact in socket.facts][:2] == [Joined, GardDestroyed]
        assert socket.task.done()


# ------------------------------------------------------------------------------ workers, sessions


async def test_a_worker_that_comes_to_another_server_is_gone_from_the_first() -> None:
    """The first does not know yet that its connection is dead, and gives it nothing more."""
    street = Street(MemoryCluster)
    async with street.house() as a, street.house() as b:
        before, other = Socket(a, None, "w1"), Socket(a, None, "w2")
        await a.settle()
        after = Socket(b, None, "w1")
        await b.settle()
        assert [member.id for member in a.service.pool.members()] == ["w2"]
        assert [member.id for member in b.service.pool.members()] == ["w1"]
        assert before.task.done()
        for socket in (other, after):
            await socket.lose()
            await asyncio.wait([socket.task])


async def test_any_server_lets_a_session_out_of_quarantine() -> None:
    """It goes on, whoever set it aside."""
    street = Street()
    async with street.house() as a, street.house() as b:
        run, session = await set_aside(b)
        b.service.pool.leave(b.service.pool.members()[0])
        a.worker(echo, worker_id="w2")
        assert (await a.get(f"/runs/{run}"))["waits"][0]["what"] == "release"
        answer = await a.ask("POST", f"/sessions/{session}/release")
        assert answer.status_code == 200
        await a.pass_time(2)
        assert (await b.get(f"/runs/{run}"))["status"] == "completed"


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(("servers", "looks"), [(1, [0, 30]), (2, [0, 15, 23, 27, 29, 30])])
async def test_servers_share_the_room_for_runs(servers: int, looks: list[int]) -> None:
    """Each begins its part of what there is, and then looks again."""
    street, begun = Street(), 0
    counted: list[int] = []
    real = street.store.list

    async def count(query: RunQuery) -> Any:
        if query.status == "queued":
            counted.append(begun)
        return await real(query)

    async with AsyncExitStack() as stack:
        houses = [
            await stack.enter_async_context(street.house(parked_runs_max=30))
            for _ in range(servers)
        ]
        h = houses[0]
        await h.pass_time(10)
        agent = (await h.make("/agents", BOT))["id"]
        street.store.list = count  # type: ignore[method-assign]
        for _ in range(31):
            answer = await h.ask("POST", f"/agents/{agent}/messages", {"content": "go"})
            begun += answer.status_code == 202
        assert counted == looks


# -------------------------------------------------------------------------------------------- nodes


async def test_any_server_lists_and_shows_all_of_them() -> None:
    """Also under their names; and only to those who look after the servers."""
    street = Street()
    async with street.house(name="eu-1") as a, street.house(name="eu-2") as b:
        b.worker(echo)
        await a.pass_time(10)
        listed = {node["name"]: node for node in await a.get("/nodes")}
        assert {name: node["workers"] for name, node in listed.items()} == {"eu-1": 0, "eu-2": 1}
        assert listed["eu-2"]["id"] == b.service.node.owner
        shown = await b.get("/nodes/eu-1")
        assert (shown["id"], shown["draining"]) == (listed["eu-1"]["id"], False)
        assert (await a.ask("GET", "/nodes", tenant="zeta")).status_code == 403


async def test_any_server_has_any_other_drained() -> None:
    """And itself."""
    street = Street()
    async with street.house(name="eu-1") as a, street.house(name="eu-2") as b:
        await a.pass_time(10)
        for name, drained in (("eu-2", b), ("eu-1", a)):
            assert not drained.service.servers.asked_to_leave.is_set()
            answer = await a.ask("POST", f"/nodes/{name}/drain")
            assert (answer.status_code, answer.json()["data"]["name"]) == (202, name)
            await b.pass_time(KNOWN_WITHIN_S)
            assert drained.service.servers.asked_to_leave.is_set()


async def test_of_servers_of_one_name_the_id_says_which() -> None:
    """Nobody is drained by mistake."""
    street = Street()
    async with street.house(name="eu") as a, street.house(name="eu") as b:
        await a.pass_time(10)
        assert (await a.ask("POST", "/nodes/eu/drain")).status_code == 409
        assert (await a.get(f"/nodes/{b.service.node.owner}"))["name"] == "eu"


async def test_a_hint_over_the_bus_is_faster_than_the_list() -> None:
    """What was changed is known everywhere before any time has passed."""
    street = Street(MemoryCluster)
    async with street.house() as a, street.house() as b:
        agent = (await a.make("/agents", BOT))["id"]
        await b.pass_time(0.01)
        assert b.service.agents.of("acme", str(agent)) is not None
