"""Agents that ask people, through the official SDK."""

from __future__ import annotations

import pytest

from tests.conformance.norns.house import Client, House, Raised, call, script

ASKS = script([call("ask_human", question="7pm or 8pm?")], "booked for {last}")


async def ask(house: House, **named: str) -> tuple[Client, dict]:
    """Send a message whose run asks; return what `wait=True` gives."""
    client = await house.client()
    return client, await client.do("send_message", "bot", ASKS, wait=True, **named)


async def test_a_reply_is_the_answer(house: House) -> None:
    """The run waits, says for what, and goes on with the same id."""
    await house.worker()
    client, sent = await ask(house)
    assert sent["is_waiting"]
    assert sent["waiting_for"]["question"] == "7pm or 8pm?"
    assert sent["waiting_for"]["tool_call_id"]
    (waiting,) = await client.do("list_runs", status="waiting")
    assert waiting["run_id"] == sent["run_id"]
    await client.do("reply", sent["run_id"], "7pm")
    assert (await client.ended(sent["run_id"]))["output"] == "booked for 7pm"
    with pytest.raises(Raised, match="not waiting for input") as raised:
        await client.do("reply", sent["run_id"], "8pm")
    assert raised.value.args[:2] == ("HTTPStatusError", 409)


async def test_a_message_to_the_conversation_is_the_answer(house: House) -> None:
    """It starts no run of its own; one of another conversation does."""
    await house.worker()
    client, sent = await ask(house, conversation_key="slack:U01")
    other = await client.do("send_message", "bot", "8pm", conversation_key="slack:U02", wait=True)
    assert other["run_id"] != sent["run_id"]
    answer = await client.do("send_message", "bot", "8pm", conversation_key="slack:U01", wait=True)
    assert (answer["run_id"], answer["output"]) == (sent["run_id"], "booked for 8pm")


async def test_a_question_outlives_the_node_and_the_worker(mortal: House) -> None:
    """Nobody is asked twice."""
    worker = await mortal.worker()
    client, sent = await ask(mortal)
    await mortal.kill_node()
    await worker.end()
    await mortal.node()
    assert (await client.ended(sent["run_id"]))["waiting_for"] == sent["waiting_for"]
    await client.do("reply", sent["run_id"], "7pm")
    await mortal.worker()
    assert (await client.ended(sent["run_id"]))["output"] == "booked for 7pm"
    assert (await client.events(sent["run_id"])).count("waiting_for_user") == 1


async def test_every_question_of_a_step_is_asked_and_answered(house: House) -> None:
    """The model gets both answers, in the order of its calls."""
    await house.worker()
    client = await house.client()
    asks = [call("ask_human", question="when?"), call("ask_human", question="where?")]
    run = await client.send(script(asks, "at {last}"))
    for answer in ("7pm", "home"):
        assert (await client.ended(run))["status"] == "waiting"
        await client.do("reply", run, answer)
    assert (await client.ended(run))["output"] == "at home"
