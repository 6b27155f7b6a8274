"""The official SDK's client, method by method, and what it cannot live without."""

from __future__ import annotations

import pytest

from tests.conformance.norns.house import House, Raised, call, script


async def test_agents_are_found_by_id_and_by_name(house: House) -> None:
    """All of them, on one page."""
    await house.worker({"name": "bot"}, {"name": "second"})
    for number in range(120):
        body = {"name": f"a{number}", "status": "idle", "system_prompt": "s"}
        await house.post("/agents", body)
    client = await house.client()
    assert len(await client.do("list_agents")) == 122
    bot = await client.do("get_agent", "bot")
    assert bot == await client.do("get_agent", bot["id"])
    assert (bot["status"], bot["model"], bot["system_prompt"], bot["max_steps"]) == (
        "idle",
        "claude-sonnet-5",
        "You help.",
        50,
    )
    with pytest.raises(Raised) as raised:
        await client.do("get_agent", 9999)
    assert raised.value.args[:2] == ("HTTPStatusError", 404)
    with pytest.raises(Raised) as raised:
        await client.do("get_agent", "nobody")
    assert raised.value.args[0] == "ValueError"


async def test_a_message_is_accepted_before_anything_is_done_about_it(house: House) -> None:
    """Whoever waits gets a timeout of his own."""
    worker = await house.worker()
    await worker.end()
    client = await house.client()
    sent = await client.do("send_message", "bot", "hi")
    assert (sent["status"], sent["output"]) == ("accepted", None)
    with pytest.raises(Raised) as raised:
        await client.do("send_message", "bot", "hi", wait=True, timeout=0.2)
    assert raised.value.args[0] == "TimeoutError"


async def test_runs_are_listed_newest_first_and_filtered_before_they_are_counted(
    house: House,
) -> None:
    """By status and by agent."""
    await house.worker({"name": "bot"}, {"name": "second"})
    client = await house.client()
    asks = await client.send(script([call("ask_human", question="?")], "ok"))
    await client.ended(asks)
    others = [await client.do("send_message", "second", "x", wait=True) for _ in range(2)]
    runs = await client.do("list_runs")
    assert [run["run_id"] for run in runs] == [others[1]["run_id"], others[0]["run_id"], asks]
    (waiting,) = await client.do("list_runs", limit=1, status="waiting")
    assert waiting["run_id"] == asks
    agent = (await client.do("get_agent", "second"))["id"]
    newest = (await client.do("list_runs", limit=1, agent_id=agent))[0]
    assert newest["run_id"] == others[1]["run_id"]
    assert newest["trigger_type"] == "message"
    assert newest["conversation_id"] is not None


async def test_a_conversation_goes_on_until_it_is_deleted(house: House) -> None:
    """Keys are what the client says they are, a colon included; a deleted one begins anew."""
    tap = await house.tap()
    await house.worker(via=tap)
    client = await house.client()

    async def say(text: str) -> None:
        await client.do("send_message", "bot", text, conversation_key="slack:U01", wait=True)

    await say("one")
    await say("two")
    found = await client.do("get_conversation", "bot", "slack:U01")
    assert (found["key"], found["message_count"]) == ("slack:U01", 4)
    assert [one["key"] for one in await client.do("list_conversations", "bot")] == ["slack:U01"]
    await client.do("delete_conversation", "bot", "slack:U01")
    with pytest.raises(Raised) as raised:
        await client.do("get_conversation", "bot", "slack:U01")
    assert raised.value.args[:2] == ("HTTPStatusError", 404)
    await say("three")
    assert tap.said("node", "llm_task")[-1]["messages"] == [{"role": "user", "content": "three"}]


async def test_events_have_what_the_client_reads(house: House) -> None:
    """Numbered from one, each with its time and its source."""
    await house.worker()
    client = await house.client()
    run = await client.send("hi")
    await client.ended(run)
    events = await client.do("get_events", run)
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert all(event["inserted_at"].endswith("Z") and event["source"] for event in events)
    assert all(event["payload"]["schema_version"] == 1 for event in events)


async def test_a_wrong_key_opens_nothing(house: House) -> None:
    """Neither a page nor, for a worker, its start."""
    client = await house.client("nrn_wrong")
    with pytest.raises(Raised) as raised:
        await client.do("list_agents")
    assert raised.value.args[:2] == ("HTTPStatusError", 401)
    worker = await house.start_worker(key="nrn_wrong")
    assert "401" in await worker.line()


async def test_its_stream_sends_the_message_before_it_breaks(house: House) -> None:
    """The SDK's own defect with every release of `websockets`: the run happens all the same."""
    await house.worker()
    client = await house.client()
    with pytest.raises(Raised) as raised:
        await client.do("stream", "bot", "hi")
    assert raised.value.args[0] == "AttributeError"
    (run,) = await client.do("list_runs")
    assert (await client.ended(run["run_id"]))["output"] == "you said hi"
