"""Gards and keys that are bound to them, with the official SDK's worker."""

from __future__ import annotations

from typing import Any

from tests.conformance.norns.house import House, call, script, until
from tests.conformance.norns.tap import Tap


async def gard(house: House, **named: Any) -> dict[str, Any]:
    """Make a gard; return what a worker claims it with."""
    made = await house.post("/gards", named)
    return {"gard": made["id"], "claim_token": made["claim_token"]}


async def status(house: House, claim: dict[str, Any]) -> str:
    """Return how a gard is."""
    return (await house.get(f"/gards/{claim['gard']}"))["status"]


async def test_a_gard_has_one_worker_at_a_time(house: House) -> None:
    """The second is told `already_claimed` and asks again until the first is gone."""
    tap = await house.tap()
    claim = await gard(house)
    first = await house.worker(**claim)
    assert await status(house, claim) == "ready"
    await house.start_worker(via=tap, worker_id="w2", **claim)
    refused = await until(lambda: tap.said("node", "phx_reply"))
    assert refused[0]["response"] == {"reason": "already_claimed", "code": "gard_claim_failed"}
    await first.end()
    await until(lambda: house.is_here("w2"))
    assert await status(house, claim) == "ready"


async def test_of_many_that_claim_a_gard_at_once_one_gets_it(house: House) -> None:
    """All the others ask again; none ends."""
    tap = await house.tap()
    claim = await gard(house)
    await house.post("/agents", {"name": "bot", "status": "idle", "system_prompt": "s"})
    workers = [
        await house.start_worker(via=tap, worker_id=f"w{number}", **claim) for number in range(4)
    ]
    await until(lambda: len(tap.said("node", "phx_reply")) >= 4)
    replies = [reply["status"] for reply in tap.said("node", "phx_reply")]
    assert replies.count("ok") == 1
    assert len(await house.get("/workers")) == 1
    assert [worker.process.returncode for worker in workers] == [None] * 4


async def test_what_can_never_succeed_ends_the_worker(house: House) -> None:
    """With the reason."""
    claim = await gard(house)
    destroyed = await gard(house)
    await house.ask("DELETE", f"/gards/{destroyed['gard']}")
    for options, reason in (
        ({**claim, "claim_token": "wrong"}, "invalid_claim_token"),
        ({**claim, "claim_token": None}, "invalid_claim_token"),
        ({**claim, "gard": 999}, "not_found"),
        ({**claim, "gard": "three"}, "not_found"),
        (destroyed, "gard_destroyed"),
    ):
        worker = await house.start_worker(**options)
        assert await worker.line() == f"JoinError: worker join rejected: {reason}"


async def test_a_gard_is_claimed_anew_after_the_node_was_killed(mortal: House) -> None:
    """By the worker that had it, and by another one once that is gone."""
    claim = await gard(mortal)
    first = await mortal.worker(**claim)
    await mortal.kill_node()
    await mortal.node()
    await until(lambda: mortal.is_here("w1"))
    await mortal.kill_node()
    await first.end()
    await mortal.node()
    assert await status(mortal, claim) == "disconnected"
    await mortal.worker(worker_id="w2", **claim)


async def test_a_gard_that_is_destroyed_ends_its_worker(house: House) -> None:
    """At once."""
    claim = await gard(house)
    worker = await house.worker(**claim)
    assert (await house.ask("DELETE", f"/gards/{claim['gard']}"))[0] == 204
    assert await worker.line() == f"GardDestroyed: gard {claim['gard']} was destroyed"
    await until(lambda: _nobody(house))


async def test_a_run_in_a_gard_stays_there(mortal: House) -> None:
    """Model calls and tools, also after node and worker were killed; others see nothing of it."""
    inside, outside = await mortal.tap(), await mortal.tap()
    claim = await gard(mortal)
    first = await mortal.worker({"tools": ["charge_at"]}, via=inside, worker_id="in", **claim)
    await mortal.worker({"tools": ["look"]}, via=outside, worker_id="out")
    agent = (await mortal.get("/agents"))[0]["id"]
    path = f"/agents/{agent}/messages"
    gate = mortal.folder / "gate"
    said = script([call("charge_at", amount=5, gate=str(gate))], "so: {last}")
    run = (await mortal.post(path, {"content": said, "gard_id": claim["gard"]}))["run_id"]
    await until(lambda: mortal.did("charging 5"))
    assert (await mortal.ask("DELETE", f"/gards/{claim['gard']}"))[0] == 409
    await mortal.kill_node()
    await first.end()
    await mortal.node()
    gate.touch()
    await until(lambda: mortal.is_here("out"))
    assert (await mortal.get(f"/runs/{run}"))["status"] == "running"
    await mortal.worker({"tools": ["charge_at"]}, via=inside, worker_id="in2", **claim)
    client = await mortal.client()
    assert (await client.ended(run))["output"] == "so: charged 5"
    assert (await mortal.get(f"/runs/{run}"))["gard_id"] == claim["gard"]
    other = await client.send(script("out here"))
    assert (await client.ended(other))["output"] == "out here"
    assert tools_offered(inside) == {"charge_at"}
    assert tools_offered(outside) == {"look"}
    assert (await mortal.ask("POST", path, {"content": "x", "gard_id": 999}))[0] == 404


async def test_a_worker_in_a_gard_registers_its_ports(house: House) -> None:
    """From a tool's handler; a port that cannot be is refused, and the worker goes on."""
    claim = await gard(house)
    await house.worker(**claim)
    client = await house.client()
    agent = (await house.get("/agents"))[0]["id"]
    for number in (3000, 70_000):
        said = script([call("open_port", number=number)], "{last}")
        body = {"content": said, "gard_id": claim["gard"]}
        run = await house.post(f"/agents/{agent}/messages", body)
        assert (await client.ended(run["run_id"]))["output"] == "open"
    (port,) = await house.get(f"/gards/{claim['gard']}/ports")
    assert (port["internal_port"], port["name"], port["url"]) == (
        3000,
        "web",
        "http://localhost:3000",
    )


def tools_offered(tap: Tap) -> set[str]:
    """Return the tools that the models behind a tap were offered, but for the built-in ones."""
    tasks = tap.said("node", "llm_task")
    return {tool["name"] for task in tasks for tool in task["tools"]} - {
        "wait",
        "ask_human",
        "launch_agent",
        "list_agents",
    }


async def test_a_key_of_a_worker_opens_its_gard_and_nothing_else(house: House) -> None:
    """Not the REST API, not another gard, not what the key does not allow."""
    claim, other = await gard(house), await gard(house)
    key = (await house.post("/api_keys", {"gard_id": claim["gard"], "capabilities": ["tools"]}))[
        "key"
    ]
    assert key.startswith("nrnw_")
    assert (await house.ask("GET", "/agents", key=key))[0] in (401, 403)
    for options in ({**other, "capabilities": ["tools"]}, claim, {"capabilities": ["tools"]}):
        worker = await house.start_worker(key=key, **options)
        assert (await worker.line()).startswith("JoinError: worker join rejected: ")
    await house.worker(key=key, capabilities=["tools"], **claim)


async def test_a_key_that_is_revoked_ends_who_came_with_it(house: House) -> None:
    """Over the open socket; its gard is free again."""
    claim = await gard(house)
    made = await house.post("/api_keys", {"gard_id": claim["gard"]})
    worker = await house.worker(key=made["key"], **claim)
    assert (await house.ask("DELETE", f"/api_keys/{made['id']}"))[0] == 204
    assert await worker.line() == "KeyRevoked: the worker's scoped key was revoked"
    await until(lambda: _nobody(house))
    await until(lambda: _freed(house, claim))


async def _nobody(house: House) -> bool:
    return await house.get("/workers") == []


async def _freed(house: House, claim: dict[str, Any]) -> bool:
    return await status(house, claim) == "disconnected"
