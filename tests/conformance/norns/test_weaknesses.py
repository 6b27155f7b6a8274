"""Weaknesses of the known servers of Norns that this one does not have: see the README here."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.norns.house import House, until
from tests.conformance.norns.phone import CALLS, REPLY, calls, define, over, phone, send
from tests.server.house import BOT, echo
from tests.server.house import house as server

RETRIES = {"model_config": {"on_failure": "retry_last_step"}}
BUSY = {"status": "error", "error": "litellm.RateLimitError: 429 rate limited"}


async def waits(house: House, run: int, what: str) -> dict[str, Any]:
    """Return what a run waits for, once it is that."""

    async def found() -> Any:
        shown = (await house.get(f"/runs/{run}")).get("waits", [])
        return next((one for one in shown if one["what"] == what), None)

    return await until(found)


@pytest.mark.parametrize(
    ("answer", "what"),
    [(calls(("wait", {"seconds": 3600})), "time"), (BUSY, "retry")],
    ids=["timer", "back-off"],
)
async def test_what_is_due_stays_due_when_the_node_dies(
    mortal: House, answer: dict[str, Any], what: str
) -> None:
    """At the time that was set before, not so long after the restart."""
    await define(mortal, **RETRIES)
    async with phone(mortal) as worker:
        await worker.join()
        run = await send(mortal)
        await worker.serve(answer)
        before = await waits(mortal, run, what)
    await mortal.kill_node()
    await mortal.node()
    assert await waits(mortal, run, what) == before
    assert before["due_at"]


async def test_a_run_that_ends_in_mid_call_leaves_no_call_unanswered(house: House) -> None:
    """A provider would refuse the conversation for ever."""
    async with phone(house) as worker:
        await worker.join()
        run = await send(house, conversation_key="k")
        await worker.serve(calls(("charge", {}), ("ask_human", {"question": "?"})))
        await house.post(f"/runs/{run}/cancel")
        await over(house, run)
        await send(house, "again", conversation_key="k")
        task = await worker.hear_of("llm_task")
        asked = [call["id"] for one in task["messages"] for call in one.get("tool_calls", [])]
        answered = [one["tool_call_id"] for one in task["messages"] if one["role"] == "tool"]
        assert asked == answered == ["c1", "c2"]
        assert task["messages"][-1] == {"role": "user", "content": "again"}


async def test_a_conversation_without_a_key_is_new_after_a_restart(mortal: House) -> None:
    """No counter begins again, so nobody gets the history of somebody else."""
    sessions = []
    for _ in range(2):
        async with phone(mortal) as worker:
            await worker.join()
            run = await send(mortal)
            (task,) = await worker.serve(REPLY)
            assert task["messages"] == [{"role": "user", "content": "hi"}]
            sessions.append((await over(mortal, run))["conversation_id"])
        await mortal.kill_node()
        await mortal.node()
    assert len(set(sessions)) == 2


async def test_a_conversation_may_be_deleted_while_it_works(house: House) -> None:
    """Its run ends; the worker's answer is nothing; the key begins anew."""
    agent = await define(house)
    path = f"/agents/{agent}/conversations/k"
    async with phone(house) as worker:
        await worker.join()
        run = await send(house, conversation_key="k")
        task = await worker.task()
        assert (await house.ask("DELETE", path))[0] == 200
        await worker.result(task, **REPLY)
        assert (await over(house, run))["row_status"] == "cancelled"
        again = await send(house, "new", conversation_key="k")
        (task,) = await worker.serve(REPLY)
        assert task["messages"] == [{"role": "user", "content": "new"}]
        assert (await over(house, again))["status"] == "completed"


async def test_a_wait_of_any_length_breaks_nothing(house: House) -> None:
    """What is no time is told to the model; the run goes on."""
    async with phone(house) as worker:
        await worker.join()
        for seconds in (-5, "-1", "soon", None, 1e300, [], 0):
            run = await send(house)
            _, second = await worker.serve(calls(("wait", {"seconds": seconds})), REPLY)
            assert second["messages"][-1]["tool_call_id"] == "c1"
            assert (await over(house, run))["status"] == "completed"


async def test_the_tokens_of_a_run_are_its_own(house: House) -> None:
    """Not those of its conversation."""
    async with phone(house) as worker:
        await worker.join()
        for tokens in (10, 3):
            run = await send(house, conversation_key="k")
            usage = {"input_tokens": tokens, "output_tokens": 1}
            await worker.serve(
                {**CALLS, "usage": usage}, {"result": "ok"}, {**REPLY, "usage": usage}
            )
            found = await over(house, run)
            assert (found["input_tokens"], found["output_tokens"]) == (2 * tokens, 2)


async def test_a_message_waits_for_a_worker_as_long_as_it_takes() -> None:
    """Nothing sweeps it away."""
    async with server() as h:
        agent = (await h.make("/agents", BOT))["id"]
        run = await h.run(agent, "hi")
        for _ in range(10):
            h.clock.advance(60_000)
            await h.settle()
        h.worker(echo)
        await h.settle()
        assert (await h.get(f"/runs/{run}"))["output"] == "you said hi"


async def test_nothing_stays_of_conversations_that_rest() -> None:
    """However many there were."""
    async with server() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        for _ in range(100):
            await h.run(agent, "hi")
        h.clock.advance(10_000)
        await h.settle()
        assert h.service.node._host.active() == 0
        assert h.service.pool.queues.held == {}
