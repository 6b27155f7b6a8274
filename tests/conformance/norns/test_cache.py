"""Histories as what changed, to a worker that keeps what it was sent."""

from __future__ import annotations

from typing import Any

from tests.conformance.norns.house import House, call, script

LOOKS = [[call("look", thing=thing)] for thing in ("one", "two", "three")]


async def test_each_step_is_sent_as_what_is_new(house: House) -> None:
    """The model sees the same messages as if all had been sent."""
    tap = await house.tap()
    await house.worker(via=tap)
    client = await house.client()
    run = await client.ended(await client.send(script(*LOOKS, "{last}")))
    assert run["output"] == "three is blue"
    first, *others = tap.said("node", "llm_task")
    assert [message["role"] for message in first["messages"]] == ["user"]
    assert [(task["messages_delta"]["base_count"], task["messages_delta"]["drop"],
             [message["role"] for message in task["messages_delta"]["append"]])
            for task in others] == [
        (1, 0, ["assistant", "tool"]),
        (3, 0, ["assistant", "tool"]),
        (5, 0, ["assistant", "tool"]),
    ]  # fmt: skip
    assert [line.split()[2] for line in house.journal if line.startswith("model")] == list("2468")


async def test_a_window_moves_on_by_what_it_drops(house: House) -> None:
    """A run keeps its place; the model's history stays as long as the window."""
    tap = await house.tap()
    await house.worker({"context_window": 3}, via=tap)
    client = await house.client()
    for text in ("one", "two", "three", "four"):
        sent = await client.do("send_message", "bot", text, conversation_key="k", wait=True)
    assert sent["output"] == "you said four"
    assert [len(task["messages"]) for task in tap.said("node", "llm_task")] == [1, 3, 3, 3]


async def test_a_miss_is_answered_with_the_whole_history(house: House) -> None:
    """The same task, whole; nobody counts a retry."""
    tap = await house.tap()

    def forget(side: str, frame: list[Any]) -> list[Any]:
        if side == "node" and "messages_delta" in frame[4]:
            frame[4]["messages_delta"]["base_count"] += 7
        return frame

    tap.change = forget
    await house.worker(via=tap)
    client = await house.client()
    run = await client.send(script(LOOKS[0], "{last}"))
    assert (await client.ended(run))["output"] == "one is blue"
    missed, again = tap.said("node", "llm_task")[-2:]
    assert missed["task_id"] == again["task_id"]
    assert [message["role"] for message in again["messages"]] == ["user", "assistant", "tool"]
    assert {"status": "error", "error": "message_cache_miss", "task_id": again["task_id"]} in (
        tap.said("worker", "tool_result")
    )
    assert "retry" not in await client.events(run)


async def test_a_new_connection_knows_nothing(house: House) -> None:
    """So the whole history is sent first."""
    tap = await house.tap()
    first = await house.worker(via=tap)
    client = await house.client()
    run = await client.send(script(LOOKS[0], [call("ask_human", question="?")], LOOKS[1], "{last}"))
    await client.ended(run)
    await first.end()
    await house.worker(via=tap)
    await client.do("reply", run, "go on")
    assert (await client.ended(run))["output"] == "two is blue"
    whole = ["messages" in task for task in tap.said("node", "llm_task")]
    assert whole == [True, False, True, False]
