"""Our facts become the events that clients of Norns know, whole logs and streams alike."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.api.pushes import PUSHES, push, resumed
from perdure.api.timeline import BECOMES, EVENTS_PER_FACT, Timeline, definition_of
from perdure.core.events import EVENT_TYPES
from perdure.core.history import project
from tests.api import logs
from tests.core.story import Story, agent, call

LOGS = {**logs.stored(), **logs.told()}
TOOLS = [tool.name for tool in agent().spec.tools]
START = "1970-01-01T00:16:40.000000Z"
USAGE = {"input_tokens": 10, "output_tokens": 1}


def event(sequence: int, id: int, event_type: str, source: str = "system", **payload: Any) -> Any:
    """Return an event as JSON, recorded when the story begins."""
    return {
        "id": id,
        "sequence": sequence,
        "event_type": event_type,
        "payload": {"schema_version": 1, **payload},
        "source": source,
        "inserted_at": START,
    }


def asked(step: int, messages: int, upto: int) -> dict[str, Any]:
    """Return what stands in an `llm_request`."""
    shown = {"first": 1, "upto": upto}
    known = {"model": "scripted", "tools": TOOLS, "log": shown}
    return {"step": step, "message_count": messages, **known}


def replied(step: int, content: str, *calls: Any) -> dict[str, Any]:
    """Return what stands in an `llm_response`."""
    return {
        "step": step,
        "content": content,
        "tool_calls": list(calls),
        "finish_reason": "tool_call" if calls else "stop",
        "usage": USAGE,
        "model": "scripted",
    }


def test_a_simple_run_is_told_exactly() -> None:
    _, events = logs.timeline_of(logs.simple().log)
    assert msgspec.to_builtins(events) == [
        event(1, 8, "run_started"),
        event(2, 12, "llm_request", **asked(1, 1, 2)),
        event(3, 16, "llm_response", "worker", **replied(1, "hi there")),
        event(4, 20, "run_completed", output="hi there"),
    ]


def test_a_run_with_a_tool_is_told_exactly() -> None:
    story = logs.with_a_tool()
    _, events = logs.timeline_of(story.log)
    key = next(one.key for one in story.log if hasattr(one, "key"))
    mine = {"tool_call_id": "c1", "name": "save"}
    place = {"step": 1, "call": "1.1.t0", "idempotency_key": key}
    allowed = {"effect": "idempotent", "verdict": "allow", "rule": "declared"}
    arguments = {"arguments": {"key": "k"}}
    assert msgspec.to_builtins(events[2:5]) == [
        event(
            3,
            16,
            "llm_response",
            "worker",
            **replied(1, "let me", {"id": "c1", "name": "save", **arguments}),
        ),
        event(4, 20, "tool_call", **mine, **arguments, **place, **allowed, side_effect=True),
        event(5, 24, "tool_result", "worker", **mine, **place, content="saved", is_error=False),
    ]
    assert msgspec.to_builtins(events[5]) == event(6, 28, "llm_request", **asked(2, 3, 6))


# a story -> the types of its first run's events after `run_started, llm_request`
TYPES = [
    (logs.simple, "llm_response run_completed"),
    (logs.with_a_tool, "llm_response tool_call tool_result llm_request llm_response run_completed"),
    (
        logs.with_people_and_time,
        (
            "llm_response tool_call waiting_for_timer tool_call waiting_for_user tool_result"
            " tool_result llm_request llm_response tool_call tool_result llm_request llm_response"
            " run_completed"
        ),
    ),
    (
        logs.with_denials,
        (
            "llm_response tool_call tool_call_denied tool_result tool_call tool_call_denied"
            " tool_result tool_call tool_call tool_call_denied tool_result tool_result"
            " llm_request llm_response run_completed"
        ),
    ),
    (logs.with_failures, "retry retry_fell_due llm_request run_failed"),
    (
        logs.with_once_tools,
        (
            "llm_response tool_call tool_call tool_call tool_call tool_call_lost tool_result"
            " tool_call_begun tool_call_unknown tool_call_begun tool_call_unknown"
            " decision_requested tool_call_begun tool_call_unknown tool_result"
            " tool_call_reopened tool_call_begun tool_result tool_result"
            " llm_request llm_response run_completed"
        ),
    ),
    (
        logs.with_compactions,
        (
            "llm_response tool_call tool_result llm_request llm_response tool_call tool_result"
            " compaction_intended context_compacted llm_request llm_response tool_call tool_result"
            " compaction_intended compaction_failed llm_request llm_response run_completed"
        ),
    ),
    (
        logs.with_cancellations,
        (
            "llm_response tool_call tool_result message_received llm_request llm_response tool_call"
            " waiting_for_user tool_result run_failed"
        ),
    ),
    (logs.out_of_steps, "llm_response tool_call tool_result run_failed"),
]


@pytest.mark.parametrize(("make", "types"), TYPES)
def test_the_events_of_a_run_come_in_this_order(make: Any, types: str) -> None:
    _, events = logs.timeline_of(make().log)
    assert [one.event_type for one in events] == ["run_started", "llm_request", *types.split()]


# a story, the place of an event in it, what stands in its payload among other things
PAYLOADS: list[tuple[Any, str, dict[str, Any]]] = [
    (
        logs.with_people_and_time,
        "waiting_for_timer",
        {
            "tool_call_id": "id-wait",
            "seconds": 2,
            "reason": "rest",
            "due_at": "1970-01-01T00:16:41.500000Z",
        },
    ),
    (
        logs.with_people_and_time,
        "waiting_for_user",
        {"tool_call_id": "id-ask_human", "question": "May I?", "step": 1, "call": "1.1.t1"},
    ),
    (
        logs.with_people_and_time,
        "tool_result",
        {"name": "wait", "kind": "timer_completed", "is_error": False},
    ),
    (logs.with_people_and_time, "run_completed", {"output": "I look."}),
    (
        logs.with_denials,
        "tool_call_denied",
        {
            "requesting_agent_id": 7,
            "requesting_agent_name": "support",
            "mode": "allowlist",
            "tool_name": "fly",
            "reason": "unknown_tool",
            "step": 1,
        },
    ),
    (
        logs.with_denials,
        "tool_result",
        {
            "tool_call_id": "id-fly",
            "is_error": True,
            "kind": "tool_denied",
            "data": {"tool_name": "fly"},
        },
    ),
    (
        logs.with_failures,
        "retry",
        {
            "error": "rate_limited!",
            "error_class": "external_dependency",
            "error_code": "rate_limited",
            "retry_decision": "retry",
            "attempt": 1,
            "delay_ms": 15000,
            "step": 1,
        },
    ),
    (
        logs.with_failures,
        "run_failed",
        {
            "error": "not_authorised!",
            "error_class": "validation",
            "error_code": "not_authorised",
            "retry_decision": "terminal",
            "details": {},
        },
    ),
    (
        logs.with_compactions,
        "context_compacted",
        {
            "step": 2,
            "dropped": 3,
            "kept": 2,
            "summary": "a summary",
            "usage": USAGE,
            "model": "scripted",
        },
    ),
    (logs.with_compactions, "compaction_failed", {"error": "timeout!", "error_code": "timeout"}),
    (
        logs.with_cancellations,
        "message_received",
        {"message": "r2", "content": "two", "mode": "steer"},
    ),
    (
        logs.with_cancellations,
        "run_failed",
        {"error_class": "policy", "error_code": "cancelled", "error": "interrupted by message r5"},
    ),
    (
        logs.with_once_tools,
        "decision_requested",
        {"tool_call_id": "id-pay", "name": "pay", "call": "1.1.t1"},
    ),
    (logs.with_once_tools, "tool_call_begun", {"name": "mail", "attempt": 1, "worker": "w1"}),
]


@pytest.mark.parametrize(("make", "event_type", "payload"), PAYLOADS)
def test_a_payload_says_this(make: Any, event_type: str, payload: dict[str, Any]) -> None:
    _, events = logs.timeline_of(make().log)
    found = next(one for one in events if one.event_type == event_type)
    assert {name: found.payload.get(name) for name in payload} == payload
    assert found.payload["schema_version"] == 1


def test_a_run_that_never_began_ends_as_cancelled() -> None:
    _, events = logs.timeline_of(logs.with_cancellations().log, "r3")
    assert [(one.sequence, one.event_type) for one in events] == [(1, "run_failed")]
    assert events[0].payload["error_code"] == "cancelled"


def test_what_is_said_by_a_person_is_told_as_such() -> None:
    _, events = logs.timeline_of(logs.with_people_and_time().log)
    answer = next(one for one in events if one.payload.get("content") == "yes")
    assert (answer.source, answer.payload["by"]) == ("user", "person:somebody")


def test_a_result_that_a_worker_remembered_is_told_as_a_duplicate() -> None:
    """Of which the summary counts how many there were."""
    _, events = logs.timeline_of(logs.with_a_memory().log)
    told = [one for one in events if one.event_type.startswith("tool_")]
    assert [one.event_type for one in told] == [
        "tool_call",
        "tool_call_lost",
        "tool_duplicate",
        "tool_result",
    ]
    key = told[0].payload["idempotency_key"]
    assert told[2].payload["resolution"] == "reused_worker_result"
    assert (told[2].payload["idempotency_key"], told[3].payload["idempotency_key"]) == (key, key)


def test_every_type_of_fact_has_a_row_that_tells_the_truth() -> None:
    assert set(BECOMES) == set(EVENT_TYPES.values())
    became: dict[type, set[str]] = {}
    for log in LOGS.values():
        for run in logs.runs_in(log):
            timeline = Timeline(run)
            for seq, one in enumerate(log, start=1):
                told = {event.event_type for event in timeline.feed(seq, one)}
                became.setdefault(type(one), set()).update(told)
    assert became == {fact: set(row.becomes) for fact, row in BECOMES.items()}
    assert max(len(row.becomes) for row in BECOMES.values()) <= EVENTS_PER_FACT


@pytest.mark.parametrize("name", LOGS)
def test_every_log_projects_and_counts_without_a_gap(name: str) -> None:
    for run in logs.runs_in(LOGS[name]):
        timeline, events = logs.timeline_of(LOGS[name], run)
        assert [one.sequence for one in events] == list(range(1, len(events) + 1))
        assert [one.id for one in events] == sorted({one.id for one in events})
        assert timeline.last == events[-1]
        assert msgspec.json.decode(msgspec.json.encode(events))


@pytest.mark.parametrize("name", LOGS)
def test_a_stream_that_begins_with_the_run_is_the_same_but_for_older_messages(name: str) -> None:
    log = LOGS[name]
    for run in logs.runs_in(log):
        _, whole = logs.timeline_of(log, run)
        first = next(seq for seq, one in enumerate(log) if _begins(one, run))
        timeline = Timeline(run, logs.DEFINITIONS, agent_id=7)
        late = [
            event
            for seq, one in enumerate(log[first:], first + 1)
            for event in timeline.feed(seq, one)
        ]
        assert list(map(_without_count, late)) == list(map(_without_count, whole))


def _begins(one: Any, run: str) -> bool:
    return run in (getattr(one, "message", None), getattr(one, "run", None))


def _without_count(event: Any) -> Any:
    payload = {k: v for k, v in event.payload.items() if k != "message_count"}
    return msgspec.structs.replace(event, payload=payload)


@pytest.mark.parametrize("name", logs.told())
def test_the_messages_that_are_counted_are_those_that_were_shown(name: str) -> None:
    log = LOGS[name]
    for run in logs.runs_in(log):
        _, events = logs.timeline_of(log, run)
        for one in events:
            if one.event_type == "llm_request":
                shown = one.payload["log"]
                history = project(list(enumerate(log, start=1))[: one.id // EVENTS_PER_FACT])
                messages = history.messages(shown["first"], shown["upto"], shown.get("summary"))
                assert one.payload["message_count"] == len(messages)


def test_definitions_are_named_before_they_are_needed() -> None:
    log = logs.simple().log
    assert {definition_of(one) for one in log} - {None} == {agent().digest}
    timeline = Timeline("r1")
    events = [event for seq, one in enumerate(log, start=1) for event in timeline.feed(seq, one)]
    assert "model" not in events[1].payload


def test_open_questions_are_known() -> None:
    story = Story()
    story.message("hello")
    story.reply(call("ask_human", "q1", question="?"), call("ask_human", "q2", question="!"))
    timeline, _ = logs.timeline_of(story.log)
    assert [one.id for one in timeline.questions.values()] == ["q1", "q2"]
    story.answer("yes", call="1.1.t0")
    timeline, _ = logs.timeline_of(story.log)
    assert list(timeline.questions) == ["1.1.t1"]


def test_an_agents_topic_is_told_what_norns_tells() -> None:
    _, events = logs.timeline_of(logs.with_people_and_time().log)
    pushes = [told for one in events if (told := push(one, 5, 9)) is not None]
    assert [one.event for one in pushes] == [
        "agent_started",
        "llm_response",
        "waiting_timer",
        "waiting_for_user",
        "tool_result",
        "tool_result",
        "llm_response",
        "tool_call",
        "tool_result",
        "llm_response",
        "completed",
    ]
    both = {"agent_id": 5, "run_id": 9}
    assert pushes[0].payload == both
    assert pushes[2].payload == {**both, "seconds": 2, "reason": "rest"}
    assert pushes[3].payload == {**both, "tool_call_id": "id-ask_human", "question": "May I?"}
    assert pushes[7].payload == {**both, "name": "look", "arguments": {}}
    assert pushes[-1].payload == {**both, "output": "I look."}
    assert resumed(5, 9) == ("agent_resumed", both)


def test_a_denied_call_is_told_by_its_result_alone() -> None:
    _, events = logs.timeline_of(logs.with_denials().log)
    named = [told.event for one in events if (told := push(one, 5, 9)) is not None]
    assert named.count("tool_call") == 1
    assert named.count("tool_result") == 4
    assert named[-1] == "completed"


def test_every_push_is_of_an_event_that_there_is() -> None:
    told = {name for row in BECOMES.values() for name in row.becomes}
    assert set(PUSHES) <= told
