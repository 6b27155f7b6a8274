"""Forks and contexts, as clients ask for them."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.messages import AssistantMessage
from perdure.ports.entries import ToolRecord
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.server.house import BOT, House, calls, house, said, says
from tests.server.peers import Peer, registration

SEEN: list[LlmTask] = []


def charging(task: LlmTask | ToolTask) -> Result | None:
    """Play a model that charges once, asks, stays silent or answers, as it is told."""
    if isinstance(task, ToolTask):
        return says(task, "charged")
    SEEN.append(task)
    assert isinstance(task.messages, tuple)
    told = [message for message in task.messages if not isinstance(message, AssistantMessage)]
    match told[-1].content:
        case "charge":
            return calls(task, "charge", amount=5)
        case "ask":
            return calls(task, "ask_human", question="Which one?")
        case "be silent":
            return None
    return says(task, f"{task.model}: {len(task.messages)}")


async def furnish(h: House, content: str = "charge", **more: Any) -> tuple[int, int]:
    """Return an agent and a run of it that is over."""
    SEEN.clear()
    Peer(h.service.pool, registration("w1", "charge"), tenant="acme", does=charging)
    tool = ToolRecord(name="charge", description="Charges.", input_schema={"type": "object"})
    await h.service.agents.learn("acme", [tool])
    agent = (await h.make("/agents", BOT))["id"]
    return agent, await h.run(agent, content, **more)


async def fork(h: House, run: int, **body: Any) -> Any:
    """Fork a run, let it go on, and return the answer."""
    answer = await h.ask("POST", f"/runs/{run}/fork", body)
    assert answer.status_code == 201, answer.text
    await h.settle()
    return answer.json()


async def test_a_fork_from_a_step() -> None:
    """Its history is that of the source, which stays as it is; nothing is charged again."""
    async with house() as h:
        agent, run = await furnish(h)
        before = await h.get(f"/runs/{run}"), await h.get(f"/runs/{run}/events")
        made = await fork(h, run, step=1)
        assert (made["status"], made["agent_id"]) == ("accepted", agent)
        assert made["data"]["id"] == made["run_id"]
        forked = await h.get(f"/runs/{made['run_id']}")
        assert (forked["trigger_type"], forked["status"]) == ("fork", "completed")
        assert forked["input"] == {"user_message": "charge", "fork": {"run_id": run, "step": 1}}
        assert forked["conversation_id"] != before[0]["conversation_id"]
        assert (forked["input_tokens"], forked["steps"]) == (10, 1)
        assert said(SEEN[-1]) == said(SEEN[-2])
        first = (await h.get(f"/runs/{forked['id']}/events"))[0]
        assert (first["event_type"], first["payload"]["fork_of"]["step"]) == ("run_started", 1)
        session = await h.get(f"/sessions/{forked['conversation_id']}")
        assert [one["role"] for one in session["messages"]] == [
            "user", "assistant", "tool", "assistant",
        ]  # fmt: skip
        assert (await h.get(f"/runs/{run}"), await h.get(f"/runs/{run}/events")) == before


async def test_a_fork_with_a_message_another_model_and_another_prompt() -> None:
    """It goes on as a copy of the agent; what is not another is left alone."""
    async with house() as h:
        agent, run = await furnish(h)
        made = await fork(
            h, run, step="1", message="otherwise", model="gpt-5", system_prompt="You doubt."
        )
        copy = await h.get(f"/agents/{made['agent_id']}")
        assert copy["name"] == f"bot-fork-{made['run_id']}"
        assert (copy["model"], copy["system_prompt"]) == ("gpt-5", "You doubt.")
        forked = await h.get(f"/runs/{made['run_id']}")
        assert forked["input"] == {
            "user_message": "otherwise",
            "fork": {"run_id": run, "step": 1, "model": "gpt-5", "system_prompt": "You doubt."},
        }
        assert forked["output"] == "gpt-5: 4"
        assert SEEN[-1].system_prompt == "You doubt."
        same = await fork(h, run, step=1, model=(await h.get(f"/agents/{agent}"))["model"])
        assert same["agent_id"] == agent
        assert len(await h.get("/agents")) == 2


async def test_a_fork_from_the_beginning() -> None:
    """Step 0 is what the first model call was shown."""
    async with house() as h:
        _, run = await furnish(h)
        made = await fork(h, run, step=0, message=[{"type": "text", "text": "no, wait"}])
        assert said(SEEN[-1]) == ["charge", [{"type": "text", "text": "no, wait"}]]
        again = await fork(h, made["run_id"], step=0)
        assert said(SEEN[-1]) == ["charge", [{"type": "text", "text": "no, wait"}]]
        assert (await h.get(f"/runs/{again['run_id']}"))["input"]["fork"]["run_id"] == made[
            "run_id"
        ]


async def test_a_fork_drops_an_unanswered_turn() -> None:
    """A question that nobody answered: the source goes on waiting, the fork does not ask it."""
    async with house() as h:
        _, run = await furnish(h, "ask")
        made = await fork(h, run, step=1, message="never mind")
        assert said(SEEN[-1]) == ["ask", "never mind"]
        assert (await h.get(f"/runs/{made['run_id']}"))["status"] == "completed"
        assert (await h.get(f"/runs/{run}"))["status"] == "waiting"


TOO_LARGE = (
    "the message is 300002 bytes long; at most MESSAGE_BYTES_MAX = 262144 bytes are accepted"
)
BAD: list[tuple[dict[str, Any], int, Any]] = [
    ({}, 422, "step must be a non-negative integer"),
    ({"step": None}, 422, "step must be a non-negative integer"),
    ({"step": -1}, 422, "step must be a non-negative integer"),
    ({"step": "x"}, 422, "step must be a non-negative integer"),
    ({"step": 1.5}, 422, "step must be a non-negative integer"),
    ({"step": True}, 422, "step must be a non-negative integer"),
    ({"step": 2**70}, 422, "step must be a non-negative integer"),
    ({"step": 3}, 422, "step 3 is beyond the run's last step (2)"),
    ({"step": 1, "message": 5}, 422, "message must be text or a content block"),
    ({"step": 1, "message": True}, 422, "message must be text or a content block"),
    ({"step": 3, "model": "gpt-5"}, 422, "step 3 is beyond the run's last step (2)"),
    ({"step": 1, "message": "x" * 300_000, "model": "gpt-5"}, 413, TOO_LARGE),
    ({"step": 1, "model": "x" * 300}, 422, {"model": ["should be at most 255 character(s)"]}),
    ({"step": 1, "system_prompt": "x" * 262_145}, 422,
     {"system_prompt": ["should be at most 262144 character(s)"]}),
    ({"step": 1, "model": 5}, 422, {"model": ["is invalid: expected a string or null"]}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "error"), BAD)
async def test_a_fork_that_cannot_be(body: dict[str, Any], status: int, error: Any) -> None:
    """With words for each; nothing is made meanwhile, no copy of the agent either."""
    async with house() as h:
        _, run = await furnish(h)
        answer = await h.ask("POST", f"/runs/{run}/fork", body)
        assert (answer.status_code, answer.json()) == (status, {"error": error})
        assert len(await h.get("/runs")) == len(await h.get("/agents")) == 1


async def test_a_run_that_cannot_be_forked() -> None:
    """A foreign one and one that is not there, one that goes on, one that never began."""
    async with house() as h:
        agent, run = await furnish(h)
        for tenant, missing in (("zeta", run), ("acme", 9_999)):
            answer = await h.ask("POST", f"/runs/{missing}/fork", {"step": 0}, tenant=tenant)
            assert (answer.status_code, answer.json()) == (404, {"error": "not found"})
        going = await h.run(agent, "be silent", conversation_key="k")
        queued = await h.run(agent, "hi", conversation_key="k")
        for unfinished in (going, queued):
            answer = await h.ask("POST", f"/runs/{unfinished}/fork", {"step": 0})
            assert (answer.status_code, answer.json()) == (
                409, {"error": "run is still in progress"},
            )  # fmt: skip
        await h.make(f"/runs/{queued}/cancel", {})
        answer = await h.ask("POST", f"/runs/{queued}/fork", {"step": 0})
        assert answer.json() == {"error": "run never began: send its message again"}
        await h.make(f"/runs/{going}/cancel", {})
        assert (await fork(h, going, step=1))["status"] == "accepted"
        await h.ask("DELETE", f"/agents/{agent}", force="true")
        answer = await h.ask("POST", f"/runs/{run}/fork", {"step": 0})
        assert (answer.status_code, answer.json()) == (404, {"error": "not found"})


async def test_a_worker_serves_the_copies_of_its_agents() -> None:
    """It knows them by the name that it gave them."""
    async with house() as h:
        own = {"perdure": {"name": "bot", "model": "m1", "instructions": "You help."}}
        agent = (await h.make("/agents", {**BOT, "model": "m1", "model_config": own}))["id"]
        native = registration("w1", features=("native",), agents={"bot": ()})
        Peer(h.service.pool, native, tenant="acme", does=charging)
        run = await h.run(agent, "hi")
        made = await fork(h, run, step=0, model="m2")
        forked = await h.get(f"/runs/{made['run_id']}")
        assert (forked["output"], forked["agent_id"] == agent) == ("m2: 1", False)


@pytest.mark.parametrize(("scope", "field", "status"), [
    ("run", None, 201), ("run", "model", 403), ("run", "system_prompt", 403),
    ("admin", "model", 201), ("read", None, 403),
])  # fmt: skip
async def test_who_may_fork(scope: str, field: str | None, status: int) -> None:
    """Whoever may send messages; a copy of an agent is for those who may make agents."""
    async with house() as h:
        _, run = await furnish(h)
        body = {"step": 1, **({} if field is None else {field: "another"})}
        answer = await h.ask("POST", f"/runs/{run}/fork", body, scope=scope)
        assert answer.status_code == status
        if status == 403 and field is not None:
            assert answer.json() == {
                "error": f"the key does not allow {field}: it needs the scope admin"
            }


async def test_a_fork_stays_in_its_gard() -> None:
    """And there is none once the gard is destroyed."""
    async with house() as h:
        agent = (await h.make("/agents", BOT))["id"]
        gard = (await h.make("/gards", {"name": "g"}))["id"]
        h.worker(charging, worker_id="w2", gard=str(gard))
        run = await h.run(agent, "hi", gard_id=gard)
        made = await fork(h, run, step=0)
        forked = await h.get(f"/runs/{made['run_id']}")
        assert (forked["gard_id"], forked["status"]) == (gard, "completed")
        await h.ask("DELETE", f"/gards/{gard}", force="true")
        answer = await h.ask("POST", f"/runs/{run}/fork", {"step": 0})
        assert (answer.status_code, answer.json()) == (404, {"error": "gard not found"})


async def test_the_name_of_a_copy_may_be_taken() -> None:
    """By an agent that somebody made; nothing is done, and it is said what to do."""
    async with house() as h:
        _, run = await furnish(h)
        await h.make("/agents", {**BOT, "name": f"bot-fork-{run + 1}"})
        answer = await h.ask("POST", f"/runs/{run}/fork", {"step": 1, "model": "gpt-5"})
        assert (answer.status_code, len(await h.get("/runs"))) == (409, 1)
        assert "rename it" in answer.json()["error"]


async def test_one_key_makes_one_fork() -> None:
    """One run and one copy of the agent; another request needs another key."""
    async with house() as h:
        _, run = await furnish(h)
        key = {"Idempotency-Key": "k"}
        path, body = f"/runs/{run}/fork", {"step": 1, "model": "gpt-5"}
        answers = [await h.ask("POST", path, body, headers=key) for _ in range(3)]
        assert len({answer.text for answer in answers}) == 1
        assert (len(await h.get("/runs")), len(await h.get("/agents"))) == (2, 2)
        answer = await h.ask("POST", path, {"step": 0}, headers=key)
        assert answer.status_code == 422


async def test_a_completed_fork_is_retried_as_a_fork() -> None:
    """With the same history: its message alone would be about nothing."""
    async with house() as h:
        _, run = await furnish(h)
        made = await fork(h, run, step=1, message="otherwise")
        shown = said(SEEN[-1])
        again = (await h.make(f"/runs/{made['run_id']}/retry", None))["run_id"]
        await h.settle()
        assert said(SEEN[-1]) == shown
        assert (await h.get(f"/runs/{again}"))["input"] == {
            "user_message": "otherwise", "fork": {"run_id": made["run_id"], "step": 0},
        }  # fmt: skip


CONTEXT = {
    "messages": [
        {"role": "user", "content": "I am Ada"},
        {"role": "assistant", "content": "Hello"},
    ],
    "data": {"tier": "gold"},
}


async def test_a_message_with_a_context() -> None:
    """The model is shown its messages, then its data under a kind of its own, then the message."""
    async with house() as h:
        agent, run = await furnish(h, "hi", context=CONTEXT)
        assert isinstance(SEEN[-1].messages, tuple)
        assert said(SEEN[-1]) == ["I am Ada", "Hello", {"tier": "gold"}, "hi"]
        assert [getattr(one, "kind", None) for one in SEEN[-1].messages] == [
            None, None, "inherited_context", None,
        ]  # fmt: skip
        shown = await h.get(f"/runs/{run}")
        assert shown["input"] == {"user_message": "hi", "context": CONTEXT}
        again = (await h.make(f"/runs/{run}/retry", None))["run_id"]
        await h.settle()
        assert (await h.get(f"/runs/{again}"))["input"] == shown["input"]
        assert said(SEEN[-1]) == said(SEEN[-2])
        for empty in ({}, {"data": {}}, {"messages": []}, None):
            run = await h.run(agent, "hi", context=empty)
            assert (await h.get(f"/runs/{run}"))["input"] == {"user_message": "hi"}


async def test_the_context_of_a_run_that_waits_its_turn() -> None:
    """It is shown before the run has begun, with the gard that it will be in."""
    async with house() as h:
        agent, _ = await furnish(h, "be silent", conversation_key="k")
        run = await h.run(agent, "hi", conversation_key="k", context=CONTEXT)
        shown = await h.get(f"/runs/{run}")
        assert shown["row_status"] == "queued"
        assert shown["input"] == {"user_message": "hi", "context": CONTEXT}


BAD_CONTEXTS: list[tuple[Any, str]] = [
    (5, "is invalid: expected an object or null"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "is invalid: expected user or assistant"),
    ({"messages": [{"role": "user"}]}, "is invalid: object missing required field content"),
    ({"messages": [{"role": "user", "content": "x"}] * 201}, "should be at most 200 item(s)"),
    ({"data": [1]}, "is invalid: expected an object or null"),
]


@pytest.mark.parametrize(("context", "expected"), BAD_CONTEXTS)
async def test_a_context_that_cannot_be(context: Any, expected: str) -> None:
    """422 with what was expected of it."""
    async with house() as h:
        agent, _ = await furnish(h, "hi")
        body = {"content": "hi", "context": context}
        answer = await h.ask("POST", f"/agents/{agent}/messages", body)
        assert answer.status_code == 422
        assert answer.json()["error"]["context"][0].startswith(expected)


async def test_an_answer_has_no_context() -> None:
    """It would be lost, so it is refused; without it the question is answered."""
    async with house() as h:
        agent, _ = await furnish(h, "ask", conversation_key="k")
        body = {"content": "this", "conversation_key": "k"}
        path = f"/agents/{agent}/messages"
        answer = await h.ask("POST", path, {**body, "context": CONTEXT})
        assert answer.status_code == 422
        assert "waits for an answer" in answer.json()["error"]["context"][0]
        assert (await h.ask("POST", path, {**body, "context": {}})).status_code == 202
