"""Runs on a worker of the official SDK, sent and watched by its client."""

from __future__ import annotations

from tests.conformance.norns.house import House, call, script, until


async def test_a_run_with_tools_from_its_message_to_its_answer(house: House) -> None:
    """Its events are those that Norns' clients know; each call happened once."""
    await house.worker()
    client = await house.client()
    said = script([call("look", thing="the sky"), call("charge", amount=5)], "it said: {last}")
    sent = await client.do("send_message", "bot", said, wait=True)
    assert (sent["status"], sent["output"]) == ("completed", "it said: charged 5")
    assert await client.events(sent["run_id"]) == [
        "run_started",
        "llm_request",
        "llm_response",
        "tool_call",
        "tool_call",
        "tool_result",
        "tool_result",
        "llm_request",
        "llm_response",
        "run_completed",
    ]
    assert house.did("charged 5") == house.did("looked at the sky") == 1


async def test_only_a_side_effect_has_a_key(house: House) -> None:
    """By it the worker knows a call that it has made before."""
    tap = await house.tap()
    await house.worker(via=tap)
    client = await house.client()
    await client.ended(
        await client.send(script([call("look", thing="it"), call("charge", amount=5)], "done"))
    )
    keys = {task["tool_name"]: task["idempotency_key"] for task in tap.said("node", "tool_task")}
    assert keys["charge"]
    assert not keys["look"]
    assert len(tap.said("worker", "tool_result")) == 4


async def test_the_model_is_told_what_a_tool_did(house: House) -> None:
    """Whatever that is, the run goes on."""
    await house.worker()
    client = await house.client()
    for does, told in (
        (call("fail", why="no money"), "no money"),
        (call("fetch", page="p"), "the text of p"),
        (call("nothing"), "nothing"),
        (call("charge", cents=5), "cents"),
    ):
        run = await client.ended(await client.send(script([does], "so: {last}")))
        assert run["status"] == "completed"
        assert told in run["output"]


async def test_a_model_that_fails_for_good_fails_its_run(house: House) -> None:
    """With the provider's words; the worker stays."""
    await house.worker()
    client = await house.client()
    refused = {"fails": "litellm.AuthenticationError: invalid x-api-key"}
    run = await client.send(script(refused))
    assert (await client.ended(run))["status"] == "failed"
    found = await house.get(f"/runs/{run}")
    assert found["failure_inspector"]["retry_decision"] == "terminal"
    assert "invalid x-api-key" in str(found["failure_metadata"])
    assert (await client.ended(await client.send("hi")))["output"] == "you said hi"


async def test_a_provider_that_is_busy_is_asked_again(house: House) -> None:
    """Though the SDK hands on nothing but the text of an exception."""
    tap = await house.tap()
    busy = {"status": "error", "error": "litellm.Timeout: Request timed out"}
    results = iter([busy])

    def fail_once(side: str, frame: list) -> list:
        if side == "worker" and frame[3] == "tool_result":
            frame[4] = {**next(results, frame[4]), "task_id": frame[4]["task_id"]}
        return frame

    tap.change = fail_once
    await house.worker(via=tap)
    client = await house.client()
    run = await client.send("hi")
    assert (await client.ended(run))["output"] == "you said hi"
    assert (await client.events(run)).count("retry") == 1


async def test_several_agents_share_a_worker(house: House) -> None:
    """Each has its own prompt, model and tools; a tool that was not allowed is not offered."""
    tap = await house.tap()
    await house.worker(
        {"name": "bot", "tools": ["charge", "look"], "system_prompt": "You charge."},
        {
            "name": "reader",
            "tools": ["look"],
            "allowed_tools": ["look"],
            "model": "openai/gpt-4o",
            "max_tokens": 99,
        },
        via=tap,
    )
    client = await house.client()
    first = await client.do("send_message", "bot", script("one"), wait=True)
    second = await client.do("send_message", "reader", script("two"), wait=True)
    assert (first["output"], second["output"]) == ("one", "two")
    bot, reader = tap.said("node", "llm_task")
    assert (bot["system_prompt"], bot["model"]) == ("You charge.", "claude-sonnet-5")
    assert (reader["model"], reader["max_tokens"]) == ("openai/gpt-4o", 99)
    builtins = {"wait", "ask_human", "launch_agent", "list_agents"}
    assert {tool["name"] for tool in bot["tools"]} - builtins == {"charge", "look"}
    assert {tool["name"] for tool in reader["tools"]} - builtins == {"look"}


async def test_a_worker_that_starts_again_redefines_its_agents(house: House) -> None:
    """The config is replaced as a whole: what it does not say any more is gone."""
    worker = await house.worker({"max_tokens": 7, "allowed_tools": ["look"], "max_steps": 3})
    await worker.end()
    tap = await house.tap()
    await house.worker({"system_prompt": "You are new."}, via=tap, worker_id="w2")
    client = await house.client()
    await client.do("send_message", "bot", script("done"), wait=True)
    (task,) = tap.said("node", "llm_task")
    assert (task["system_prompt"], task["max_tokens"]) == ("You are new.", None)
    assert "charge" in [tool["name"] for tool in task["tools"]]
    (agent,) = await client.do("list_agents")
    assert agent["max_steps"] == 50


async def test_a_message_waits_for_a_worker(house: House) -> None:
    """And the run says what it waits for."""
    worker = await house.worker()
    await worker.end()
    await until(lambda: _alone(house))
    client = await house.client()
    run = await client.send(script("late"))
    waits = await until(lambda: _waits(house, run))
    assert waits[0]["what"] == "worker"
    await house.worker(worker_id="w2")
    assert (await client.ended(run))["output"] == "late"


async def test_a_history_grows_beyond_what_a_frame_can_carry(house: House) -> None:
    """Step by step only what is new is sent."""
    await house.worker({"context_strategy": "none"})
    client = await house.client()
    grows = [[call("big", chars=500_000)]] * 4
    run = await client.ended(await client.send(script(*grows, "done")))
    assert (run["status"], run["output"]) == ("completed", "done")


async def test_a_history_that_no_frame_can_carry_fails_its_run_and_nothing_else(
    house: House,
) -> None:
    """The SDK would drop its connection at 1 MiB, with all that it has in hand."""
    worker = await house.worker({"context_strategy": "none"})
    client = await house.client()
    gate = house.folder / "gate"
    other = await client.send(script([call("charge_at", amount=5, gate=str(gate))], "{last}"))
    run = await client.send(script([call("big", chars=700_000), call("big", chars=700_000)]))
    assert (await client.ended(run))["status"] == "failed"
    failure = (await house.get(f"/runs/{run}"))["failure_metadata"]
    assert (failure["error_class"], failure["error_code"]) == ("validation", "too_large")
    gate.touch()
    assert (await client.ended(other))["output"] == "charged 5"
    assert worker.process.returncode is None
    assert house.did("charging 5") == 1


async def _alone(house: House) -> bool:
    return await house.get("/workers") == []


async def _waits(house: House, run: int) -> list[dict[str, str]]:
    return (await house.get(f"/runs/{run}")).get("waits", [])


async def test_a_fork_does_no_charge_again(house: House) -> None:
    """It goes on from the first step with what it is told, in a conversation of its own."""
    await house.worker()
    client = await house.client()
    run = await client.send(script([call("charge", amount=5)], "so: {last}"))
    assert (await client.ended(run))["output"] == "so: charged 5"
    made = await house.post(f"/runs/{run}/fork", {"step": 1, "message": "and now?"})
    forked = await client.ended(made["id"])
    assert (forked["output"], forked["trigger_type"]) == ("you said and now?", "fork")
    assert forked["conversation_id"] != (await house.get(f"/runs/{run}"))["conversation_id"]
    assert house.did("charged 5") == 1


async def test_a_worker_shows_its_model_the_context_of_a_message(house: House) -> None:
    """Its messages and its data, each as a message of its own."""
    await house.worker()
    client = await house.client()
    agent = (await house.get(f"/runs/{await client.send('hi')}"))["agent_id"]
    context = {"messages": [{"role": "user", "content": "I am Ada"}], "data": {"tier": "gold"}}
    sent = await house.post(f"/agents/{agent}/messages", {"content": "yo", "context": context})
    assert (await client.ended(sent["run_id"]))["output"] == "you said yo"
    bare, whole = (int(line.split()[-2]) for line in house.journal if line.startswith("model"))
    assert whole - bare == 2
