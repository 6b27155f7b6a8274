"""Agents that launch agents: the policies of Norns, on a worker of the official SDK."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.norns.house import Client, House, call, script, until

COMPACTIONS = ("context_compacted", "compaction_failed")


def agents(**launcher: Any) -> tuple[dict[str, Any], ...]:
    """Return two agents: `bot` launches, `kid` is launched."""
    return (
        {"name": "bot", "tools": ["charge"], **launcher},
        {"name": "kid", "tools": ["charge", "look"]},
    )


def launch(said: str, name: str = "kid", **more: Any) -> list[Any]:
    """Return a call that launches an agent with a message."""
    return call("launch_agent", agent_name=name, message=said, **more)


async def set_up(house: House, **config: Any) -> Client:
    """Start a worker for both, and configure who may be launched."""
    await house.worker(*agents())
    if config:
        (bot,) = [one for one in await house.get("/agents") if one["name"] == "bot"]
        body = {"model_config": config}
        status, answer = await house.ask("PUT", f"/agents/{bot['id']}", body)
        assert status == 200, answer
    return await house.client()


async def sent(client: Client, said: str) -> dict[str, Any]:
    """Return the run of a message, once it has ended, with its number."""
    run = await client.send(said)
    return {**await client.ended(run), "id": run}


async def launched(house: House, run: int) -> list[dict[str, Any]]:
    """Return the runs that a run has launched, in order."""
    events = await house.get(f"/runs/{run}/events")
    ids = [
        one["payload"]["child_run_id"] for one in events if one["event_type"] == "subagent_launched"
    ]
    return [await house.get(f"/runs/{child}") for child in ids]


async def test_a_child_is_launched_and_its_answer_is_the_result(house: House) -> None:
    client = await set_up(house)
    said = script([launch(script([call("charge", amount=5)], "kid: {last}"))], "bot: {last}")
    run = await sent(client, said)
    assert run["output"] == "bot: kid: charged 5"
    assert house.did("charged 5") == 1
    (child,) = await launched(house, run["id"])
    assert (child["parent_run_id"], child["depth"], child["status"]) == (run["id"], 1, "completed")
    assert child["trigger_type"] == "message"
    events = await house.get(f"/runs/{run['id']}/events")
    told = {one["event_type"]: one["payload"] for one in events}
    assert told["subagent_launched"]["child_agent_name"] == "kid"
    assert told["subagent_launched"]["child_run_id"] == str(child["id"])
    assert told["tool_result"]["kind"] == "subagent_completed"
    assert told["tool_result"]["data"] == {"run_id": child["id"], "status": "completed"}
    summary = await house.get(f"/runs/{run['id']}/summary")
    assert summary["counters"]["subagents"] == 1


async def test_children_of_one_reply_run_at_the_same_time(house: House) -> None:
    client = await set_up(house)
    said = script([launch(script([call("wait", seconds=0)], "one")), launch(script("two"))], "done")
    run = await sent(client, said)
    assert run["output"] == "done"
    children = await launched(house, run["id"])
    assert sorted(child["output"] for child in children) == ["one", "two"]
    every, begun = [await house.get(f"/sessions{more}") for more in ("", "?subagents=false")]
    assert [len(every), *(session["agent_name"] for session in begun)] == [3, "bot"]


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        ({"subagents": {"mode": "disabled"}}, "kid", "disabled"),
        ({"subagents": {"mode": "allowlist", "allowed_agents": ["x"]}}, "kid", "not_allowlisted"),
        ({"subagents": {"max_depth": 0}}, "kid", "max_depth"),
        ({}, "nobody", "unknown_agent"),
        ({}, "bot", "self"),
    ],
)
async def test_a_launch_that_is_not_allowed_is_denied_and_on_record(
    house: House, config: dict[str, Any], name: str, reason: str
) -> None:
    client = await set_up(house, **config)
    run = await sent(client, script([launch("hi", name)], "told: {last}"))
    assert run["status"] == "completed"
    assert run["output"] != "told: "
    assert await launched(house, run["id"]) == []
    events = await house.get(f"/runs/{run['id']}/events")
    (denied,) = [one["payload"] for one in events if one["event_type"] == "tool_call_denied"]
    assert (denied["reason"], denied["tool_name"]) == (reason, "launch_agent")


async def test_the_others_are_listed_with_what_they_are_for(house: House) -> None:
    client = await set_up(house)
    (kid,) = [one for one in await house.get("/agents") if one["name"] == "kid"]
    await house.ask("PUT", f"/agents/{kid['id']}", {"purpose": "looks things up"})
    run = await sent(client, script([call("list_agents")], "{last}"))
    assert "kid" in run["output"]
    assert "looks things up" in run["output"]
    assert "bot" not in run["output"]


async def test_a_child_that_fails_is_an_error_for_the_model(house: House) -> None:
    client = await set_up(house)
    refused = script({"fails": "litellm.AuthenticationError: invalid x-api-key"})
    run = await sent(client, script([launch(refused)], "so: {last}"))
    assert run["status"] == "completed"
    assert "invalid x-api-key" in run["output"]


async def test_a_tree_outlives_its_node(mortal: House) -> None:
    """The parent is told by a child that answers after the restart; nobody is asked twice."""
    client = await set_up(mortal)
    asks = script([call("charge", amount=7), call("ask_human", question="Sure?")], "kid: {last}")
    run = await client.send(script([launch(asks)], "bot: {last}"))

    async def child() -> Any:
        found = await launched(mortal, run)
        return found and found[0]["status"] == "waiting" and found[0]

    waiting = await until(child)
    await mortal.kill_node()
    await mortal.node()
    await until(lambda: mortal.is_here("w1"))
    await mortal.post(f"/runs/{waiting['id']}/reply", {"answer": "yes"})
    assert (await client.ended(run))["output"] == "bot: kid: yes"
    assert mortal.did("charged 7") == 1


async def test_a_run_that_is_cancelled_takes_its_children_along(house: House) -> None:
    client = await set_up(house)
    asks = script([call("ask_human", question="Sure?")], "done")
    run = await client.send(script([launch(script([launch(asks, "bot")], "x"))], "done"))

    async def leaf() -> Any:
        for child in await launched(house, run):
            for grandchild in await launched(house, child["id"]):
                if grandchild["status"] == "waiting":
                    return child, grandchild
        return None

    child, grandchild = await until(leaf)
    await house.post(f"/runs/{run}/cancel")
    for one in (child, grandchild):
        assert (await client.ended(one["id"]))["status"] == "failed"
        assert (await house.get(f"/runs/{one['id']}"))["row_status"] == "cancelled"


async def test_a_child_may_compact(house: House) -> None:
    """Its parent waits for its end, not for whatever happens on the way."""
    client = await set_up(house)
    (kid,) = [one for one in await house.get("/agents") if one["name"] == "kid"]
    policy = {"context_policy": {"compact_at": 5, "keep": 1}}
    await house.ask("PUT", f"/agents/{kid['id']}", {"model_config": policy})
    steps = [[call("look", thing="it")], [call("look", thing="that")], "kid: {last}"]
    run = await sent(client, script([launch(script(*steps))], "bot: {last}"))
    assert run["status"] == "completed"
    (child,) = await launched(house, run["id"])
    events = await house.get(f"/runs/{child['id']}/events")
    assert any(one["event_type"] in COMPACTIONS for one in events)
