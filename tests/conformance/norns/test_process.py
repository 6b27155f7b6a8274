"""What Norns promises of a run from one step to the next, with a worker on a raw socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.norns.house import House, until
from tests.conformance.norns.phone import (
    CALLS,
    REPLY,
    calls,
    define,
    events,
    over,
    phone,
    send,
)

CHARGED = {"result": "charged 5"}


async def test_a_definition_that_changes_takes_effect_at_the_next_step(house: House) -> None:
    """In the middle of a run."""
    agent = await define(house, model="old")
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        (first, tool) = await worker.serve(CALLS), await worker.task()
        change = {"model": "new", "system_prompt": "You are new."}
        assert (await house.ask("PUT", f"/agents/{agent}", change))[0] == 200
        await worker.result(tool, **CHARGED)
        (second,) = await worker.serve(REPLY)
        assert [task["model"] for task in (*first, second)] == ["old", "new"]
        assert second["system_prompt"] == "You are new."
        assert (await over(house, run))["status"] == "completed"


async def test_a_window_never_parts_a_call_from_its_result(house: House) -> None:
    """And leaves in view what the person said that led to it."""
    await define(house, model_config={"context_window": 1})
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        twice = calls(("charge", {}), ("charge", {}))
        *_, last = await worker.serve(CALLS, CHARGED, twice, CHARGED, CHARGED, REPLY)
        assert [message["role"] for message in last["messages"]] == [
            "user", "assistant", "tool", "tool",
        ]  # fmt: skip
        assert (await over(house, run))["status"] == "completed"


async def test_a_run_that_has_no_steps_left_fails(house: House) -> None:
    """And says so at a glance."""
    await define(house, max_steps=1)
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        await worker.serve(CALLS, CHARGED)
        assert (await over(house, run))["status"] == "failed"
        summary = await house.get(f"/runs/{run}/summary")
        assert summary["reason"] == "max_steps_exceeded"
        assert "max_steps" in [signal["kind"] for signal in summary["signals"]]


ENDINGS: list[tuple[dict[str, Any], str]] = [
    ({"content": "", "final_output": "said before"}, "said before"),
    ({"content": "half a sen", "finish_reason": "length"}, "half a sen"),
    ({"content": "whole", "finish_reason": "content_filter"}, "whole"),
    ({"content": {"$enc": "v1", "ct": "x"}}, '{"$enc":"v1","ct":"x"}'),
]


async def test_a_reply_without_calls_ends_its_run(house: House) -> None:
    """Whatever its finish reason; what is no text is written as JSON."""
    async with phone(house) as worker:
        await worker.join()
        for reply, output in ENDINGS:
            run = await send(house)
            await worker.serve({**REPLY, **reply})
            found = await over(house, run)
            assert (found["status"], found["output"]) == ("completed", output)


async def test_what_else_was_called_waits_with_the_question(house: House) -> None:
    """The model gets all results with the answer, in the order of its calls."""
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        await worker.serve(
            calls(("ask_human", {"question": "sure?"}), ("charge", {}), ("wait", {"seconds": 0})),
            CHARGED,
        )
        await over(house, run, "waiting")
        await house.post(f"/runs/{run}/reply", {"answer": "yes"})
        (task,) = await worker.serve(REPLY)
        results = [(one["tool_call_id"], one["content"]) for one in task["messages"][2:]]
        assert results[:2] == [("c1", "yes"), ("c2", "charged 5")]
        assert [id_ for id_, _ in results] == ["c1", "c2", "c3"]
        assert (await over(house, run))["status"] == "completed"


async def test_calls_and_results_keep_their_names_when_they_are_loaded(mortal: House) -> None:
    """By another process: a conversation goes on as it was said."""
    async with phone(mortal) as worker:
        await worker.join()
        first = await send(mortal, conversation_key="k")
        *_, told = await worker.serve(CALLS, CHARGED, REPLY)
        conversation = (await over(mortal, first))["conversation_id"]
    await mortal.kill_node()
    await mortal.node()
    async with phone(mortal) as worker:
        await worker.join()
        run = await send(mortal, "and then?", conversation_key="k")
        (task,) = await worker.serve(REPLY)
        assert task["messages"][:3] == told["messages"]
        assert [one["content"] for one in task["messages"][3:]] == ["done", "and then?"]
        assert (await over(mortal, run))["conversation_id"] == conversation


async def test_a_tool_that_is_not_allowed_is_denied(house: House) -> None:
    """The model is offered the built-in ones alone, and told if it asks for more; so is the log."""
    await define(house, model_config={"tools": {"mode": "allowlist", "allowed_tools": []}})
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        first, second = await worker.serve(CALLS, REPLY)
        assert {tool["name"] for tool in first["tools"]} <= {
            "wait",
            "ask_human",
            "launch_agent",
            "list_agents",
        }
        assert (second["messages"][-1]["role"], second["messages"][-1]["tool_call_id"]) == (
            "tool",
            "c1",
        )
        assert (await over(house, run))["status"] == "completed"
        assert "tool_call_denied" in await events(house, run)


async def test_content_is_nobodys_business(house: House) -> None:
    """Texts, objects and blocks arrive as they were sent, in every place that has content."""
    sealed = {"$enc": "v1", "kid": "k", "n": "bm9uY2U=", "ct": "Y2lwaGVy"}
    blocks = [{"type": "text", "text": "what is this?"}, {"type": "image", "data": "aGk="}]
    async with phone(house) as worker:
        await worker.join()
        for content in (sealed, blocks):
            run = await send(house, content)
            first, _, second = await worker.serve(CALLS, {"result": sealed}, REPLY)
            assert first["messages"] == [{"role": "user", "content": content}]
            assert second["messages"][-1]["content"] == sealed
            assert (await over(house, run))["input"]["user_message"] == content


async def test_a_call_that_nobody_survives_is_told_to_the_model(house: House) -> None:
    """It goes to three workers, as one task under one key; then the model hears that it is lost."""
    tasks = []
    async with phone(house) as caller:
        await caller.join(tools=[], worker_id="caller")
        for number in range(3):
            async with phone(house) as worker:
                await worker.join(capabilities=["tools"], worker_id=f"w{number}")
                if not tasks:
                    run = await send(house)
                    await caller.serve(CALLS)
                tasks.append(await worker.task())
        assert len({(task["task_id"], task["idempotency_key"]) for task in tasks}) == 1
        (task,) = await caller.serve(REPLY)
        assert "lost" in task["messages"][-1]["content"]
        assert (await over(house, run))["status"] == "completed"


async def test_a_foreign_worker_gets_nothing_and_can_say_nothing(house: House) -> None:
    """Though it names the task; and it is not to be seen."""
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        task = await worker.task()
        async with phone(house, key=house.foreign_key) as stranger:
            await stranger.join(worker_id="stranger")
            await stranger.result(task, **{**REPLY, "content": "theirs"})
            assert (await stranger.hear())[3] == "phx_reply"
            assert [one["worker_id"] for one in await house.get("/workers")] == ["raw"]
            await worker.result(task, **REPLY)
            assert (await over(house, run))["output"] == "done"


# ------------------------------------------------------------------------------ failing models

RETRIES = "retry_last_step"
FAILURES = [
    ("litellm.RateLimitError: AnthropicException - 429 rate_limit_error",
     "external_dependency", "rate_limited", True),
    ("litellm.InternalServerError: AnthropicException - 503 Overloaded",
     "external_dependency", "upstream_unavailable", True),
    ("litellm.Timeout: Connection timed out", "transient", "timeout", True),
    ("litellm.AuthenticationError: invalid x-api-key", None, None, False),
    ("litellm.BadRequestError: messages: at least one is required", None, None, False),
    ("something nobody has seen before", "internal", "unexpected_failure", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "error_class", "code", "passes"), FAILURES)
async def test_a_failing_model(
    house: House, text: str, error_class: str | None, code: str | None, passes: bool
) -> None:
    """What may pass is tried again if the agent wants it; else the run fails with what it was."""
    failure = {"status": "error", "error": text}
    agent = await define(house)
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        await worker.serve(failure)
        failed = (await over(house, run))["failure_metadata"]
        assert failed["error"] == text
        if error_class is not None:
            assert (failed["error_class"], failed["error_code"]) == (error_class, code)
        await house.ask("PUT", f"/agents/{agent}", {"model_config": {"on_failure": RETRIES}})
        again = await send(house)
        await worker.serve(failure)
        if passes:
            await over(house, again, "running")
            await retry_of(house, again)
        else:
            assert (await over(house, again))["status"] == "failed"
        assert ("retry" in await events(house, again)) == passes


async def retry_of(house: House, run: int) -> dict[str, Any]:
    """Return what a run waits for, once that is its next attempt."""

    async def found() -> Any:
        waits = (await house.get(f"/runs/{run}")).get("waits", [])
        return waits[0] if [one["what"] for one in waits] == ["retry"] else None

    return await until(found)


# --------------------------------------------------------------------------------- compaction

COMPACTS = {"context_policy": {"compact_at": 100, "keep": 1}}
LONG, SHORT = {"usage": {"input_tokens": 100}}, {"usage": {"input_tokens": 99}}
SECRET = {"$enc": "v1", "ct": "c3VtbWFyeQ=="}


@pytest.mark.parametrize("summary", ["They want to be charged.", SECRET])
async def test_a_long_history_is_folded_into_a_summary(mortal: House, summary: Any) -> None:
    """By the worker; the run goes on with it, and so does the conversation after a restart."""
    await define(mortal, model_config=COMPACTS)
    async with phone(mortal) as worker:
        await worker.join()
        run = await send(mortal, conversation_key="k")
        tasks = await worker.serve({**CALLS, **LONG}, CHARGED, {"content": summary}, REPLY)
        compaction = tasks[2]
        assert (compaction["purpose"], compaction["tools"]) == ("compact", [])
        assert [message["role"] for message in compaction["messages"]] == ["user"]
        assert [message["role"] for message in tasks[3]["messages"]][-2:] == ["assistant", "tool"]
        assert json.dumps(summary).strip('"') in json.dumps(tasks[3])
        await over(mortal, run)
        assert "context_compacted" in await events(mortal, run)
    await mortal.kill_node()
    await mortal.node()
    async with phone(mortal) as worker:
        await worker.join()
        run = await send(mortal, "more", conversation_key="k")
        (task,) = await worker.serve(REPLY)
        assert json.dumps(summary).strip('"') in json.dumps(task)
        assert (await over(mortal, run))["status"] == "completed"


@pytest.mark.parametrize(
    ("usage", "summaries"),
    [(SHORT, []), (LONG, [{"content": ""}]), (LONG, [{"status": "error", "error": "no"}])],
    ids=["short enough", "no summary", "no model"],
)
async def test_a_history_that_is_not_folded_stays_whole(
    house: House, usage: dict[str, Any], summaries: list[dict[str, Any]]
) -> None:
    """The run goes on with it."""
    await define(house, model_config=COMPACTS)
    async with phone(house) as worker:
        await worker.join()
        run = await send(house)
        *_, last = await worker.serve({**CALLS, **usage}, CHARGED, *summaries, REPLY)
        assert [message["role"] for message in last["messages"]] == ["user", "assistant", "tool"]
        assert (await over(house, run))["status"] == "completed"
        assert "context_compacted" not in await events(house, run)
