"""Runs on a worker of the official SDK, sent and watched by its client."""

from __future__ import annotations

from tests.conformance.norns.house import House, call, script


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
