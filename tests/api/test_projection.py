"""Rows and logs become the runs and sessions that a client sees."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.api.cost import Prices, price
from perdure.api.projection import (
    RunFacts,
    SessionFacts,
    conversation_object,
    is_asked,
    output_text,
    row_statuses,
    run_object,
    run_status,
    session_object,
    session_whole,
    withdrawn_events,
)
from perdure.api.shapes import Cost, Run, RunGlimpse
from perdure.api.shapes.common import timestamp
from perdure.api.transcript import Transcript
from perdure.core import events as e
from perdure.core.evolve import evolve
from perdure.core.runs import RowStatus, RunRow, rows_of, run_row
from perdure.core.state import EMPTY
from tests.api import logs
from tests.core.story import SESSION, Story, call
from tests.core.test_properties import AGENTS, STEP, perform

LOGS = logs.told()

FACTS = RunFacts(id=7, agent_id=1, conversation_id=3, content="hello")
START = "1970-01-01T00:16:40.000000Z"
PRICES = Prices({"scripted": price("1", "10")})


def row(status: Any = "running", **more: Any) -> RunRow:
    """Return a run's row."""
    return RunRow(id="r1", session=SESSION, status=status, created_at=1_000_000, **more)


def shown(story: Story, run: str = "r1") -> Run:
    """Return a story's last run as a client sees it."""
    timeline, _ = logs.timeline_of(story.log, run)
    return run_object(run_row(SESSION, story.state), FACTS, timeline=timeline, prices=PRICES)


def test_a_completed_run_is_shown_exactly() -> None:
    last = {
        "sequence": 4,
        "event_type": "run_completed",
        "payload": {"schema_version": 1, "output": "hi there"},
        "inserted_at": START,
    }
    cost = {"usd": "0.000020", "unpriced": []}
    assert logs.as_json(shown(logs.simple())) == {
        "id": 7,
        "agent_id": 1,
        "conversation_id": 3,
        "parent_run_id": None,
        "gard_id": None,
        "depth": 0,
        "status": "completed",
        "row_status": "completed",
        "trigger_type": "message",
        "input": {"user_message": "hello"},
        "output": "hi there",
        "failure_metadata": {},
        "failure_inspector": {
            "error_class": None,
            "error_code": None,
            "retry_decision": None,
            "last_checkpoint": None,
            "last_event": last,
        },
        "waiting_for": None,
        "waits": [],
        "steps": 1,
        "input_tokens": 10,
        "output_tokens": 1,
        "cost": cost,
        "total_cost": cost,
        "inserted_at": START,
        "updated_at": START,
    }


def test_a_question_is_what_a_run_waits_for() -> None:
    story = Story()
    story.message("hello")
    story.reply(call("ask_human", "q1", question="May I?"))
    run = shown(story)
    assert run.status == "waiting"
    assert logs.as_json(run.waiting_for) == {
        "question": "May I?",
        "tool_call_id": "q1",
        "asked_at": START,
        "call": "1.1.t0",
    }
    from_row = run_object(run_row(SESSION, story.state), FACTS)
    assert from_row.waiting_for is not None
    assert (from_row.waiting_for.tool_call_id, from_row.waiting_for.asked_at) == ("1.1.t0", None)


def test_a_decision_keeps_a_run_waiting_without_a_question() -> None:
    story = Story()
    story.message("hello")
    story.reply(call("pay"))
    story.begin("pay")
    story.lose("pay")
    run = shown(story)
    assert (run.status, run.waiting_for) == ("waiting", None)
    (wait,) = run.waits
    assert (wait.what, wait.tool, wait.attempt) == ("decision", "pay", 1)


def test_a_run_that_only_time_moves_is_running() -> None:
    """A client of Norns stops polling at `waiting`, and nobody could do anything there."""
    story = Story()
    story.message("hello")
    story.reply(call("wait", seconds=60))
    run = shown(story)
    assert (run.row_status, run.status, run.waiting_for) == ("waiting", "running", None)
    assert logs.as_json(run.waits) == [
        {"what": "time", "call": "1.1.t0", "due_at": "1970-01-01T00:17:40.000000Z"}
    ]


# how a row stands -> how Norns has it, and what is said of its failure
STANDINGS: list[tuple[RunRow, str, Any]] = [
    (row("queued"), "pending", None),
    (row("running"), "running", None),
    (row("completed"), "completed", None),
    (
        row("failed", error_class="internal", code="x", message="m"),
        "failed",
        ("internal", "x", "m"),
    ),
    (row("cancelled", message="enough"), "failed", ("policy", "cancelled", "enough")),
    (row("merged"), "running", None),
]


@pytest.mark.parametrize(("stands", "status", "failed"), STANDINGS)
def test_a_row_reads_as_norns_has_it(stands: RunRow, status: str, failed: Any) -> None:
    run = run_object(stands, FACTS)
    assert (run.status, run.row_status) == (status, stands.status)
    said = run.failure_metadata
    if failed is None:
        assert said == {}
        return
    assert (said["error_class"], said["error_code"], said["error"]) == failed
    assert (said["schema_version"], said["retry_decision"]) == (1, "terminal")
    assert run.failure_inspector.error_class == failed[0]


def test_a_merged_run_tells_of_the_run_it_joined() -> None:
    story = logs.with_a_tool()
    joined = run_row(SESSION, story.state)
    timeline, _ = logs.timeline_of(story.log)
    merged = replace(row("merged", merged_into="r1"), id="r2")
    run = run_object(merged, FACTS, joined=joined, timeline=timeline, prices=PRICES)
    assert (run.status, run.row_status, run.output) == ("completed", "merged", "done")
    assert run.input == {"user_message": "hello"}
    assert (run.input_tokens, run.cost) == (0, Cost())


@pytest.mark.parametrize(
    ("content", "text"),
    [("x", "x"), ("", ""), (None, None), ({"$enc": "v1"}, '{"$enc":"v1"}'), ([1, "é"], '[1,"é"]')],
)
def test_an_output_is_text_or_json(content: Any, text: str | None) -> None:
    assert output_text(content) == text
    assert run_object(row("completed"), FACTS, output=content).output == text


def test_what_came_with_a_run_is_in_its_input() -> None:
    facts = replace(FACTS, context={"data": {}}, fork={"run_id": 1, "step": 2}, trigger_type="fork")
    run = run_object(row(), facts)
    assert run.input == {
        "user_message": "hello",
        "context": {"data": {}},
        "fork": {"run_id": 1, "step": 2},
    }


def test_the_cost_of_sub_agents_is_in_the_total() -> None:
    timeline, _ = logs.timeline_of(logs.simple().log)
    children = [Cost(usd="1.500000")]
    run = run_object(row(), FACTS, timeline=timeline, children=children, prices=PRICES)
    assert (run.cost.usd, run.total_cost.usd) == ("0.000020", "1.500020")


def test_a_run_that_never_began_tells_of_its_end() -> None:
    withdrawn = row("cancelled", ended_at=1_000_000, message="enough")
    (told,) = withdrawn_events(withdrawn)
    assert (told.sequence, told.event_type, told.inserted_at) == (1, "run_failed", START)
    assert told.payload["error_code"] == "cancelled"
    assert withdrawn_events(row("queued")) == []


@given(st.sampled_from(["pending", "running", "waiting", "completed", "failed"]))
def test_every_row_is_found_under_the_status_it_reads_as(status: Any) -> None:
    for found in row_statuses(status):
        waits = ({"call": "c", "what": "answer", "question": "?"},) if status == "waiting" else ()
        assert run_status(row(found, waiting_for=waits)) == status


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("failed", {"failed", "cancelled"}),
        ("cancelled", {"cancelled"}),
        ("pending", {"queued"}),
        ("queued", {"queued"}),
        ("merged", {"merged"}),
    ],
)
def test_runs_are_asked_for_by_what_they_read_as_or_more_finely(
    status: Any, found: set[RowStatus]
) -> None:
    every = get_args(RowStatus)
    assert {one for one in every if is_asked(row(one), status)} == found
    assert found <= set(row_statuses(status))


def facts_of_session() -> SessionFacts:
    """Return what a catalog knows of a session."""
    times = {"inserted_at": 1_000_000, "updated_at": 1_005_000}
    return SessionFacts(id=3, agent_id=1, agent_name="support", key="s1", **times)


def transcript_of(log: list[e.Event]) -> Transcript:
    """Return what was said in a log."""
    transcript = Transcript()
    for seq, event in enumerate(log, start=1):
        transcript.feed(seq, event)
    return transcript


def test_a_session_is_shown_with_what_was_said() -> None:
    story = logs.with_a_tool()
    transcript = transcript_of(story.log)
    run = shown(story)
    glimpse = RunGlimpse(id=7, status="completed")
    whole = session_whole(facts_of_session(), transcript, run, [glimpse], {"r1": 7})
    calls = [{"id": "c1", "name": "save", "arguments": {"key": "k"}}]
    assert logs.as_json(whole.messages) == [
        {"role": "user", "content": "hello", "run_id": 7},
        {"role": "assistant", "content": "let me", "tool_calls": calls, "run_id": 7},
        {"role": "tool", "tool_call_id": "c1", "name": "save", "content": "saved", "run_id": 7},
        {"role": "assistant", "content": "done", "run_id": 7},
    ]
    assert logs.as_json(whole.runs) == [{"id": 7, "status": "completed"}]
    assert (whole.message_count, whole.first_message, whole.status) == (4, "hello", "stopped")
    assert whole.run == run
    conversation = conversation_object(facts_of_session(), transcript)
    sizes = [len(one["content"]) for one in whole.messages]
    assert conversation.token_estimate == sum(sizes) // 4
    assert conversation.updated_at == timestamp(1_005_000)
    empty = session_object(facts_of_session(), Transcript(), None, "running")
    assert (empty.run, empty.first_message, empty.status) == (None, None, "running")


@pytest.mark.parametrize("name", LOGS)
def test_the_state_counts_what_the_log_tells(name: str) -> None:
    """So that a row knows what its session and run come to, and no log is read for that."""
    log = LOGS[name]
    state, used = EMPTY, {}
    for event in log:
        state = evolve(state, event)
        if state.run is not None:
            used[state.run.id] = state.run
    transcript = transcript_of(log)
    assert state.messages == transcript.message_count
    assert state.content_bytes // 4 == transcript.token_estimate
    for run, known in used.items():
        timeline, _ = logs.timeline_of(log, run)
        calls, tokens = Counter[str](), Counter[str]()
        for one in known.use:
            model = one.model or ("" if one.agent is None else "scripted")
            calls[model] += one.calls
            tokens[model] += one.usage.input_tokens
        used_for = {model or "scripted": use for model, use in timeline.use.items()}
        assert calls == {model: use.calls for model, use in used_for.items()}
        assert tokens == {model: use.usage.input_tokens for model, use in used_for.items()}


def test_messages_know_their_runs() -> None:
    numbers = {"r1": 1, "r5": 5}
    messages = transcript_of(logs.with_cancellations().log).messages(numbers)
    assert [(one["content"], one["run_id"]) for one in messages if one["role"] == "user"] == [
        ("one", 1),
        ("two", 1),
        ("four", 5),
    ]
    cancelled = next(one for one in messages if one.get("is_error"))
    assert (cancelled["name"], cancelled["run_id"]) == ("ask_human", 1)


def test_a_summary_stands_beside_what_it_sums_up() -> None:
    transcript = transcript_of(logs.with_compactions().log)
    assert transcript.summary == "a summary"
    assert transcript.message_count == 8


@settings(max_examples=150, deadline=None)
@given(AGENTS, st.lists(STEP, max_size=40))
def test_whatever_happens_the_log_and_the_rows_say_the_same(definition: Any, steps: Any) -> None:
    story = Story(definition)
    for step in steps:
        perform(story, step)
    if story.state.run is None:
        return
    last = run_row(SESSION, story.state)
    timeline, events = logs.timeline_of(story.log, last.id)
    assert [one.sequence for one in events] == list(range(1, len(events) + 1))
    told = run_object(last, FACTS, timeline=timeline)
    from_row = run_object(last, FACTS, output=timeline.output)
    assert replace(told, **{name: getattr(from_row, name) for name in LOG_ONLY}) == from_row
    assert (timeline.step, told.input_tokens) == (last.steps, last.input_tokens)
    asked = {wait["call"] for wait in last.waiting_for if wait["what"] == "answer"}
    assert set(timeline.questions) == asked
    assert (timeline.ended_at, timeline.failure is not None) == (
        last.ended_at,
        last.status in ("failed", "cancelled"),
    )
    if last.answer is not None:
        answer = story.log[last.answer - 1]
        assert isinstance(answer, e.ModelReplied)
        assert timeline.output == answer.content
    if not story.state.calls:
        contents = [one["content"] for one in transcript_of(story.log).messages({})]
        whole = story.history().messages(1, story.state.version)
        assert contents == [message.content for message in whole]


LOG_ONLY = ("failure_inspector", "waiting_for", "cost", "total_cost", "updated_at", "input")


def test_rows_and_log_agree_on_every_run_of_the_stories() -> None:
    for log in logs.told().values():
        state, rows = EMPTY, {}
        for event in log:
            after = evolve(state, event)
            rows.update({one.id: one for one in rows_of(SESSION, state, [event], after)})
            state = after
        for run, its_row in rows.items():
            if its_row.status == "merged":
                continue
            timeline, _ = logs.timeline_of(log, run)
            ended = its_row.status in ("completed", "failed", "cancelled")
            assert (timeline.ended_at is not None) == ended
