"""What Norns' peers rely on in the protocol, over raw sockets."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.conformance.norns.house import House, until
from tests.conformance.norns.phone import (
    BOT,
    CALLS,
    CHARGE,
    LOBBY,
    OK,
    REPLY,
    over,
    phone,
    send,
)


def refused(reason: Any, **more: Any) -> dict[str, Any]:
    """Return the payload of a reply that says no."""
    return {"status": "error", "response": {"reason": reason, **more}}


async def test_a_bad_token_is_refused_before_there_is_a_socket(house: House) -> None:
    """With HTTP 403."""
    for socket in ("worker", "socket"):
        for key in ("", "wrong", "nrn_wrong", "nrnw_wrong", "prd_1_wrong"):
            with pytest.raises(InvalidStatus) as raised:
                async with phone(house, socket, key):
                    pass
            assert raised.value.response.status_code == 403


async def test_the_reply_to_a_join_comes_before_the_tasks_that_waited(house: House) -> None:
    """The SDK takes the first frame for it, and would lose a task."""
    runs = [await send(house) for _ in range(3)]
    async with phone(house) as worker:
        assert await worker.join() == [None, "1", LOBBY, "phx_reply", OK]
        *head, task = await worker.hear()
        assert head == [None, None, LOBBY, "llm_task"]
        await worker.result(task, **REPLY)
        for _ in runs[1:]:
            await worker.result(await worker.hear_of("llm_task"), **REPLY)
        assert {(await over(house, run))["output"] for run in runs} == {"done"}


async def test_a_model_is_offered_the_tools_of_the_worker_that_it_waited_for(house: House) -> None:
    """Though nobody knew of them when the message came."""
    await send(house)
    async with phone(house) as worker:
        await worker.join()
        task = await worker.hear_of("llm_task")
        assert "charge" in [tool["name"] for tool in task["tools"]]


async def test_nothing_that_the_sdk_reads_blindly_is_null(house: House) -> None:
    """`tools` and `messages` are lists, `input` is an object; ids are numbers."""
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        task = await worker.hear_of("llm_task")
        assert task["messages"] == [{"role": "user", "content": "hi"}]
        assert {tool["name"] for tool in task["tools"]} >= {"wait", "ask_human", "charge"}
        assert all({"name", "description", "parameters"} == set(tool) for tool in task["tools"])
        assert (task["run_id"], task["step"], task["context_policy"]) == (run, 1, None)
        assert isinstance(task["agent_id"], int)
        assert len(task["task_id"]) == 22
        await worker.result(task, **CALLS)
        task = await worker.hear_of("tool_task")
        assert (task["tool_name"], task["input"], task["run_id"]) == ("charge", {"amount": 5}, run)
        await worker.result(task, result="charged")
        task = await worker.hear_of("llm_task")
        assert set(task["messages"][-1]) <= {"role", "tool_call_id", "name", "content"}
        assert "run_id" not in json.dumps(task["messages"])
        await worker.result(task, **REPLY)
        assert (await over(house, run))["output"] == "done"


JOINS = [
    ({"worker_id": ""}, "missing_worker_id_or_tools"),
    ({"worker_id": None}, "missing_worker_id_or_tools"),
    ({"tools": None}, "missing_worker_id_or_tools"),
    ({"tools": {}}, "missing_worker_id_or_tools"),
    ({"tools": [{**CHARGE, "name": ""}]}, "invalid_tools"),
    ({"tools": [{**CHARGE, "description": None}]}, "invalid_tools"),
    ({"tools": [{**CHARGE, "input_schema": []}]}, "invalid_tools"),
    ({"capabilities": ["llm", "magic"]}, "invalid_capabilities"),
    ({"capabilities": "llm"}, "invalid_capabilities"),
]


async def test_what_a_worker_says_of_itself_is_checked_in_order(house: House) -> None:
    """Each with its code, which ends the SDK's worker."""
    async with phone(house) as worker:
        for said, code in JOINS:
            reply = await worker.join(**said)
            assert reply[3] == "phx_reply"
            assert reply[4]["status"] == "error"
            assert reply[4]["response"]["reason"] == "invalid_registration"
            assert reply[4]["response"]["code"] == code
        assert (await worker.join(capabilities=["tools"], tools=[]))[4] == OK


async def test_topics_and_events_that_nobody_knows_are_answered(house: House) -> None:
    """The connection goes on."""
    async with phone(house) as worker:
        unmatched = refused("unmatched topic")
        assert (await worker.ask(None, "1", "room:1", "phx_join", {}))[4] == unmatched
        assert (await worker.ask(None, "2", "agent:1", "phx_join", {}))[4] == unmatched
        assert (await worker.ask("1", "3", LOBBY, "tool_result", {}))[4] == unmatched
        await worker.join()
        reply = await worker.ask("1", "4", LOBBY, "dance", {})
        assert reply[:4] == [None, "4", LOBBY, "phx_reply"]
        assert reply[4]["status"] == "error"
        nobody = {"status": "ok", "result": "x", "task_id": "nobody's"}
        assert (await worker.ask("1", "5", LOBBY, "tool_result", nobody))[4] == OK
        assert (await worker.ask("1", "6", LOBBY, "register_port", {"internal_port": 1}))[4] == (
            refused("no gard")
        )


async def test_a_heartbeat_is_answered_before_and_after_the_join(house: House) -> None:
    """On the topic of all."""
    async with phone(house) as worker:
        beat = [None, "101", "phoenix", "heartbeat", {}]
        assert await worker.ask(*beat) == [None, "101", "phoenix", "phx_reply", OK]
        await worker.join()
        assert await worker.ask(*beat) == [None, "101", "phoenix", "phx_reply", OK]


async def test_a_worker_leaves_with_another_reference_than_it_joined_with(house: House) -> None:
    """As the SDK does, which joins with null and leaves with "1"."""
    async with phone(house) as worker:
        await worker.join()
        await until(lambda: house.is_here("raw"))
        assert await worker.ask("1", "11", LOBBY, "phx_leave", {}) == [
            None, "11", LOBBY, "phx_reply", OK
        ]  # fmt: skip
        assert await worker.hear() == [None, None, LOBBY, "phx_close", {}]
        assert await house.get("/workers") == []
        assert (await worker.join())[4] == OK


BAD = [
    ("[]", 1002),
    ('[null,"1","worker:lobby","phx_join"]', 1002),
    ('[null,"1","worker:lobby","phx_join",{},6]', 1002),
    ('{"topic":"worker:lobby"}', 1002),
    ("hello", 1007),
    ("", 1007),
    (b"[]", 1003),
]


async def test_what_is_no_frame_closes_its_connection_and_no_other(house: House) -> None:
    """With the code that says why."""
    async with phone(house) as worker:
        await worker.join()
        for text, code in BAD:
            async with phone(house) as other:
                await other.connection.send(text)
                assert await other.closed() == code
        run = await send(house)
        await worker.result(await worker.hear_of("llm_task"), **REPLY)
        assert (await over(house, run))["status"] == "completed"


async def test_a_node_that_stops_sends_its_peers_away_with_1012(mortal: House) -> None:
    """After a clean close the SDK would come back at once, without end."""
    async with phone(mortal) as worker, phone(mortal, "socket") as client:
        await worker.join()
        codes = asyncio.gather(worker.closed(), client.closed())
        await mortal.kill_node(signal.SIGTERM)
        assert await codes == [1012, 1012]


async def test_only_the_owner_of_a_task_may_answer_it(house: House) -> None:
    """Another worker's answer is taken with an ok, and is nothing."""
    run = await send(house)
    async with phone(house) as owner, phone(house) as other:
        await owner.join()
        await other.join(worker_id="other")
        task = await owner.hear_of("llm_task")
        await other.result(task, **{**REPLY, "content": "mine"})
        assert (await other.hear())[4] == OK
        await owner.result(task, **REPLY)
        assert (await over(house, run))["output"] == "done"


NONSENSE = [{}, {"content": 7, "tool_calls": 7}, {"content": "", "tool_calls": [7]}]


async def test_a_result_that_makes_no_sense_fails_its_run_and_no_more(house: House) -> None:
    """Its failure says so; the worker stays."""
    async with phone(house) as worker:
        await worker.join()
        for nonsense in NONSENSE:
            run = await send(house)
            await worker.result(await worker.hear_of("llm_task"), **nonsense)
            assert (await over(house, run))["failure_metadata"]["error"] == "invalid result payload"
        assert await house.is_here("raw")


@pytest.mark.parametrize("reply", [REPLY, {"status": "error", "error": "401 invalid key"}])
async def test_a_retry_stays_in_its_gard(house: House, reply: dict[str, Any]) -> None:
    """Of a run that failed, and of one that is over."""
    gard = await house.post("/gards")
    async with phone(house) as outside, phone(house) as inside:
        await outside.join()
        await inside.join(worker_id="in", gard=gard["id"], claim_token=gard["claim_token"])
        run = await send(house, gard_id=gard["id"])
        await inside.result(await inside.hear_of("llm_task"), **reply)
        await over(house, run)
        again = (await house.post(f"/runs/{run}/retry"))["run_id"]
        task = await inside.hear_of("llm_task")
        assert (await house.get(f"/runs/{again}"))["gard_id"] == gard["id"]
        assert (await house.ask("DELETE", f"/gards/{gard['id']}"))[0] == 409
        await inside.result(task, **REPLY)
        assert (await over(house, again))["status"] == "completed"


async def test_a_client_hears_what_an_agents_runs_do(house: House) -> None:
    """In Norns' words, with the run's number; a message over the socket starts one."""
    agent = (await house.post("/agents", BOT))["id"]
    topic = f"agent:{agent}"
    async with phone(house) as worker, phone(house, "socket") as client:
        await worker.join()
        assert (await client.ask("1", "1", "agent:999", "phx_join", {}))[4] == refused("not found")
        joined = await client.ask("1", "2", topic, "phx_join", {"run_id": 7})
        assert joined == ["1", "2", topic, "phx_reply", OK]
        await client.say("1", "3", topic, "send_message", {"content": "hi"})
        await worker.result(await worker.hear_of("llm_task"), **CALLS)
        await worker.result(await worker.hear_of("tool_task"), result="charged")
        await worker.result(await worker.hear_of("llm_task"), **REPLY)
        heard = []
        run = None
        while not heard or heard[-1][0] != "completed":
            join_ref, _, on, event, payload = await client.hear()
            assert (join_ref, on) == ("1", topic)
            if event == "phx_reply":
                run = payload["response"]["run_id"]
            else:
                heard.append((event, payload))
        assert [event for event, _ in heard] == [
            "agent_started", "llm_response", "tool_call", "tool_result", "llm_response",
            "completed",
        ]  # fmt: skip
        assert {(payload["agent_id"], payload["run_id"]) for _, payload in heard} == {(agent, run)}
        assert heard[2][1]["arguments"] == {"amount": 5}
        assert heard[-1][1]["output"] == "done"


async def test_a_key_for_workers_opens_no_client_socket(house: House) -> None:
    """And a revoked one nothing at all."""
    gard = (await house.post("/gards"))["id"]
    made = await house.post("/api_keys", {"gard_id": gard})
    async with phone(house, key=made["key"]):
        with pytest.raises(InvalidStatus):
            async with phone(house, "socket", made["key"]):
                pass
        await house.ask("DELETE", f"/api_keys/{made['id']}")
        with pytest.raises(InvalidStatus):
            async with phone(house, "worker", made["key"]):
                pass


async def test_a_worker_may_offer_compression(house: House) -> None:
    """The SDK does; whether it is taken is the node's to say."""
    async with phone(house, compression="deflate") as worker:
        assert (await worker.join())[4] == OK


async def test_a_frame_for_a_worker_stays_under_its_limit(house: House) -> None:
    """At 1 MiB the SDK would close the connection, and again with every attempt."""
    async with phone(house, max_size=1024 * 1024) as worker:
        await worker.join()
        for chars, status in ((500_000, "completed"), (600_000, "failed")):
            run = await send(house)
            twice = [{"id": id_, "name": "charge", "arguments": {}} for id_ in ("c1", "c2")]
            await worker.result(await worker.hear_of("llm_task"), **{**CALLS, "tool_calls": twice})
            for _ in twice:
                await worker.result(await worker.hear_of("tool_task"), result="x" * chars)
            if status == "completed":
                await worker.result(await worker.hear_of("llm_task"), **REPLY)
            found = await over(house, run)
            assert found["status"] == status
        assert found["failure_metadata"]["error_code"] == "too_large"
        assert await house.is_here("raw")
