"""decide: every promise about messages, calls, people, time, failures and ends, as stories."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import ContextPolicy
from perdure.core.codec import decode_event, encode_event
from perdure.core.ids import effect_key
from perdure.core.limits import ATTEMPTS_PER_TOOL_CALL_MAX
from perdure.core.messages import ModelReply, ToolMessage, ToolRequest, UserMessage
from perdure.core.session import owed, wake_at
from tests.core.story import SESSION, TOOLS, Story, agent, call, compacting, limited


def test_a_message_to_an_idle_session_starts_a_run_and_asks_the_model() -> None:
    story = Story()
    assert story.message() == ["message_received", "run_started", "model_call_intended"]
    assert [one.kind for one in owed(story.state)] == ["model"]


def test_an_answer_ends_the_run_and_names_its_event() -> None:
    story = Story()
    story.message()
    assert story.reply(text="hi") == ["model_replied", "run_completed"]
    assert story.state.status == "idle"
    assert story.log[story.state.run.answer - 1].content == "hi"


def test_tool_calls_are_answered_in_call_order_whenever_they_finish() -> None:
    story = Story()
    story.message()
    story.reply(call("look"), call("save"), call("risky"))
    story.begin("risky")
    story.result("risky", "third")
    story.result("save", "second")
    assert story.result("look", "first") == ["tool_call_succeeded", "model_call_intended"]
    assert story.contents()[-3:] == ["first", "second", "third"]


def test_the_key_of_a_call_does_not_depend_on_the_attempt() -> None:
    story = Story()
    story.message()
    story.reply(call("save"))
    first = story.find("save").key
    story.lose("save")
    assert story.find("save").key == first == effect_key(SESSION, "r1", 1, 0, "save")
    assert story.find("save").attempt == 2


class TestMessagesToABusySession:
    def test_queue_waits_for_the_end_of_the_run_and_starts_in_the_same_commit(self) -> None:
        story = Story()
        story.message("one")
        assert story.message("two") == []
        assert [one.id for one in story.waiting] == ["r2"]
        assert story.reply(text="answer one") == [
            "model_replied",
            "run_completed",
            "message_received",
            "run_started",
            "model_call_intended",
        ]
        assert story.waiting == []
        assert story.contents() == ["one", "answer one", "two"]

    def test_queued_messages_run_in_the_order_of_their_coming(self) -> None:
        story = Story()
        for text in ("one", "two", "three"):
            story.message(text)
        story.reply(text="1")
        story.reply(text="2")
        story.reply(text="3")
        assert story.contents() == ["one", "1", "two", "2", "three", "3"]

    def test_steer_is_injected_at_the_next_safe_point(self) -> None:
        story = Story()
        story.message("go")
        story.reply(call("look"))
        assert story.message("rather left", mode="steer") == []
        assert story.result("look", "seen") == [
            "tool_call_succeeded",
            "message_received",
            "model_call_intended",
        ]
        assert story.contents() == ["go", "", "seen", "rather left"]

    def test_steer_at_the_end_of_a_run_makes_it_go_on(self) -> None:
        story = Story()
        story.message("go")
        story.message("and more", mode="steer")
        assert story.reply(text="done") == [
            "model_replied",
            "message_received",
            "model_call_intended",
        ]
        assert story.state.run.id == "r1"

    def test_interrupt_gives_up_what_is_open_and_starts_at_once(self) -> None:
        story = Story()
        story.message("go")
        story.reply(call("look"), call("save"))
        story.result("look", "seen")
        assert story.message("stop, this instead", mode="interrupt") == [
            "tool_call_cancelled",
            "run_cancelled",
            "message_received",
            "run_started",
            "model_call_intended",
        ]
        contents = story.contents()
        assert contents[:3] == ["go", "", "seen"]
        assert contents[3].startswith("Cancelled.")
        assert contents[4] == "stop, this instead"

    @pytest.mark.parametrize("mode", ["queue", "steer", "interrupt"])
    def test_every_mode_starts_a_run_when_idle(self, mode: Any) -> None:
        assert "run_started" in Story().message(mode=mode)

    def test_a_queued_message_can_be_withdrawn(self) -> None:
        story = Story()
        story.message("one")
        story.message("two")
        assert story.cancel("r2") == ["run_withdrawn"]
        assert story.reply(text="1") == ["model_replied", "run_completed"]


class TestEffects:
    def test_a_once_call_begins_before_it_runs_and_is_never_sent_again(self) -> None:
        story = Story()
        story.message()
        story.reply(call("risky"))
        assert story.begin("risky") == ["tool_call_begun"]
        assert story.lose("risky") == [
            "tool_call_unknown",
            "tool_call_failed",
            "model_call_intended",
        ]
        assert "Do not repeat it" in story.contents()[-1]

    def test_a_once_call_that_had_not_begun_is_sent_again(self) -> None:
        story = Story()
        story.message()
        story.reply(call("risky"))
        assert story.lose("risky") == ["tool_call_lost"]
        assert story.find("risky").status == "intended"

    @pytest.mark.parametrize("name", ["look", "save"])
    def test_read_and_idempotent_calls_are_sent_again_up_to_a_limit(self, name: str) -> None:
        story = Story()
        story.message()
        story.reply(call(name))
        for _ in range(ATTEMPTS_PER_TOOL_CALL_MAX - 1):
            assert story.lose(name) == ["tool_call_lost"]
        assert story.lose(name) == ["tool_call_failed", "model_call_intended"]

    @pytest.mark.parametrize(
        ("verdict", "events"),
        [
            ("happened", ["tool_call_succeeded", "model_call_intended"]),
            ("did_not_happen", ["tool_call_reopened"]),
            ("undecided", ["tool_call_failed", "model_call_intended"]),
        ],
    )
    def test_a_probe_settles_an_unknown_outcome(self, verdict: str, events: list[str]) -> None:
        story = Story()
        story.message()
        story.reply(call("mail"))
        story.begin("mail")
        assert story.lose("mail") == ["tool_call_unknown"]
        assert [one.status for one in owed(story.state)] == ["unknown"]
        assert story.probe("mail", verdict, "sent") == events

    @pytest.mark.parametrize(
        ("resolution", "events"),
        [
            ("happened", ["tool_call_succeeded", "model_call_intended"]),
            ("did_not_happen", ["tool_call_reopened"]),
            ("tell_model", ["tool_call_failed", "model_call_intended"]),
        ],
    )
    def test_a_person_settles_what_no_probe_can(self, resolution: str, events: list[str]) -> None:
        story = Story()
        story.message()
        story.reply(call("pay"))
        story.begin("pay")
        assert story.lose("pay") == ["tool_call_unknown", "decision_requested"]
        assert wake_at(story.state) is None
        assert story.resolve("pay", resolution) == events

    @pytest.mark.parametrize("tool", ["mail", "pay"], ids=["a probe is asked", "a person is asked"])
    def test_a_result_that_comes_late_settles_the_doubt(self, tool: str) -> None:
        story = Story()
        story.message()
        story.reply(call(tool))
        story.begin(tool)
        story.lose(tool)
        assert story.result(tool) == ["tool_call_succeeded", "model_call_intended"]

    def test_a_verdict_on_an_earlier_attempt_says_nothing_of_a_later_one(self) -> None:
        story = Story()
        story.message()
        story.reply(call("pay"))
        story.begin("pay")
        story.lose("pay")
        asked = {"run": story.state.run.id, "call": story.find("pay").id, "attempt": 1}
        verdict = c.ResolveCall(id="one", resolution="did_not_happen", **asked)
        assert story.tell(verdict) == ["tool_call_reopened"]
        story.begin("pay")
        story.lose("pay")
        assert story.tell(msgspec.structs.replace(verdict, id="late")) == []
        assert story.refused.code == "stale_attempt"

    def test_a_late_result_changes_nothing(self) -> None:
        story = Story()
        story.message()
        story.reply(call("look"))
        late = c.ReportToolResult(call=story.find("look").id, attempt=1, ok=True, content="x")
        story.lose("look")
        assert story.tell(late) == []
        assert story.refused.code == "stale_attempt"
        story.result("look")
        assert story.tell(late) == []
        assert story.refused.code == "not_owed"

    @pytest.mark.parametrize(
        ("request_", "rule"),
        [
            (call("nothing_like_it"), "unknown_tool"),
            (ToolRequest("x", "look", {}, undecodable="{'"), "undecodable_arguments"),
            (call("look", big="x" * 2_000_000), "arguments_too_large"),
            (call("wait", seconds="soon"), "invalid_arguments"),
            (call("wait", seconds=-1), "invalid_arguments"),
            (call("wait", seconds=float("nan")), "invalid_arguments"),
            (call("ask_human", question="  "), "invalid_arguments"),
        ],
    )
    def test_what_cannot_be_done_is_answered_and_never_sent(
        self, request_: ToolRequest, rule: str
    ) -> None:
        story = Story()
        story.message()
        assert story.reply(request_) == ["model_replied", "tool_call_denied", "model_call_intended"]
        assert story.log[-2].rule == rule
        assert story.messages()[-1].is_error

    @pytest.mark.parametrize("tool", ["look", "save"])
    @pytest.mark.parametrize(
        ("value", "rule"),
        [
            (2**64, None),
            (-(2**63) - 1, None),
            (10**5_000, "undecodable_arguments"),
            ("\ud800", "undecodable_arguments"),
            ({"\udc00": 1}, "undecodable_arguments"),
            (float("nan"), None),
            (float("-inf"), None),
        ],
        ids=["wide", "far below", "endless", "half a pair", "half a key", "nan", "infinite"],
    )
    def test_arguments_that_are_no_json_are_told_to_the_model(
        self, tool: str, value: object, rule: str | None
    ) -> None:
        story = Story()
        story.message()
        story.reply(call(tool, value=value))
        found = next(one for one in story.log if getattr(one, "name", "") == tool)
        if rule is None:
            assert isinstance(found, e.ToolCallIntended)
            replied = next(one for one in story.log if isinstance(one, e.ModelReplied))
            recorded = decode_event(encode_event(replied))
            assert recorded == replied, "what is judged is what is recorded"
        else:
            assert found.rule == rule
            assert story.messages()[-1].is_error
        for event in story.log:
            encode_event(event)

    def test_a_repeated_call_id_is_denied_and_renamed_in_the_history(self) -> None:
        story = Story()
        story.message()
        story.reply(call("look", id="same"), call("look", id="same"))
        story.result("look", "seen")
        answers = [one for one in story.messages() if isinstance(one, ToolMessage)]
        assert [one.tool_call_id for one in answers] == ["same", "same-1"]
        assert answers[1].is_error

    def test_too_many_calls_in_one_reply_are_denied(self) -> None:
        story = Story()
        story.message()
        kinds = story.reply(*(call("look", id=str(n)) for n in range(70)))
        assert kinds.count("tool_call_intended") == 64
        assert kinds.count("tool_call_denied") == 6


class TestPeopleAndTime:
    def test_a_wait_ends_at_an_absolute_time(self) -> None:
        story = Story()
        story.message()
        story.reply(call("wait", seconds=90))
        assert wake_at(story.state) == story.now + 90_000
        story.now += 30_000
        assert story.tell(c.FireTimer(call=story.open("timer"))) == []
        assert story.refused.code == "not_due"
        assert story.fire() == ["timer_fired", "model_call_intended"]

    def test_several_questions_of_one_step_all_get_answered(self) -> None:
        story = Story()
        story.message()
        story.reply(
            call("ask_human", id="a", question="Red?"),
            call("ask_human", id="b", question="Round?"),
            call("wait", seconds=1),
        )
        assert story.answer("yes") == ["question_answered"]
        assert story.fire() == ["timer_fired"]
        assert story.answer("no") == ["question_answered", "model_call_intended"]
        assert story.contents()[-3:] == ["yes", "no", "The wait is over."]

    def test_a_question_can_be_answered_by_its_call(self) -> None:
        story = Story()
        story.message()
        story.reply(
            call("ask_human", id="a", question="Red?"), call("ask_human", id="b", question="Blue?")
        )
        story.answer("blue it is", call="1.1.t1")
        assert story.state.calls.keys() == {"1.1.t0"}

    def test_an_answer_to_nothing_is_refused(self) -> None:
        story = Story()
        story.message()
        assert story.answer("yes") == []
        assert story.refused.code == "not_asked"


class TestCancelling:
    @pytest.mark.parametrize(
        "reach",
        [
            lambda story: None,
            lambda story: story.reply(call("look"), call("risky"), call("wait", seconds=9)),
            lambda story: (story.reply(call("risky")), story.begin("risky")),
            lambda story: (story.reply(call("mail")), story.begin("mail"), story.lose("mail")),
            lambda story: story.reply(call("ask_human", question="?")),
            lambda story: story.fail("external_dependency", "rate_limited"),
        ],
        ids=["thinking", "acting", "begun", "unknown", "asking", "delayed"],
    )
    def test_a_run_can_be_cancelled_anywhere_and_its_history_stays_whole(self, reach: Any) -> None:
        story = Story()
        story.message()
        reach(story)
        assert story.cancel()[-1] == "run_cancelled"
        assert story.state.status == "idle"
        assert story.state.calls == {}
        story.message("again")
        assert story.contents()[-1] == "again"

    def test_a_cancelled_begun_call_says_that_it_may_have_acted(self) -> None:
        story = Story()
        story.message()
        story.reply(call("risky"))
        story.begin("risky")
        story.cancel()
        assert "unknown" in story.contents()[-1]

    def test_cancelling_an_ended_run_is_refused(self) -> None:
        story = Story()
        story.message()
        story.reply(text="done")
        assert story.cancel() == []
        assert story.refused.code == "not_running"


class TestFailures:
    def test_a_rate_limit_is_retried_with_the_delay_in_the_log(self) -> None:
        story = Story()
        story.message()
        assert story.fail("external_dependency", "rate_limited") == [
            "model_call_failed",
            "retry_scheduled",
        ]
        assert story.log[-1].delay_ms == 15_000
        assert wake_at(story.state) == story.now + 15_000
        assert story.fire("backoff") == ["retry_fell_due", "model_call_intended"]
        assert story.open("model") == "1.1.m2"

    def test_a_providers_own_delay_wins_when_it_is_longer(self) -> None:
        story = Story()
        story.message()
        story.fail("external_dependency", "upstream_unavailable", retry_after_ms=60_000)
        assert story.log[-1].delay_ms == 60_000

    def test_retries_end_and_a_success_resets_them(self) -> None:
        story = Story()
        story.message()
        for _ in range(3):
            story.fail("transient", "timeout")
            story.fire("backoff")
        story.reply(call("look"))
        story.result("look")
        for _ in range(3):
            story.fail("transient", "timeout")
            story.fire("backoff")
        assert story.fail("transient", "timeout") == ["model_call_failed", "run_failed"]
        assert story.state.run.code == "timeout"

    @pytest.mark.parametrize("error_class", ["validation", "internal", "policy"])
    def test_other_failures_are_final(self, error_class: Any) -> None:
        story = Story()
        story.message()
        assert story.fail(error_class, "whatever") == ["model_call_failed", "run_failed"]

    def test_an_agent_may_decline_retries(self) -> None:
        story = Story(agent(on_failure="stop"))
        story.message()
        assert story.fail("transient", "timeout")[-1] == "run_failed"

    def test_a_late_reply_to_a_failed_attempt_is_refused(self) -> None:
        story = Story()
        story.message()
        late = c.ReportReply(call=story.open("model"), reply=ModelReply("late"))
        story.fail("transient", "timeout")
        story.fire("backoff")
        assert story.tell(late) == []
        assert story.refused.code == "not_owed"

    def test_a_failed_run_is_taken_up_where_it_stopped(self) -> None:
        story = Story()
        story.message("go")
        story.reply(call("look"))
        story.result("look", "seen")
        story.fail("internal", "bug")
        kinds = story.tell(c.SendMessage(id="again", retry_of="r1"))
        assert kinds == ["run_started", "model_call_intended"]
        assert story.contents() == ["go", "", "seen"]
        assert story.reply(text="done")[-1] == "run_completed"


class TestLimits:
    def test_steps(self) -> None:
        story = Story(limited(steps_max=1))
        story.message()
        story.reply(call("look"))
        assert story.result("look")[-1] == "run_failed"
        assert story.state.run.code == "steps_exceeded"

    def test_tokens(self) -> None:
        story = Story(limited(tokens_max=50))
        story.message()
        story.reply(call("look"), tokens=60)
        assert story.result("look")[-1] == "run_failed"
        assert story.state.run.code == "tokens_exceeded"

    def test_wall_time(self) -> None:
        story = Story(limited(wall_ms_max=5_000))
        story.message()
        story.reply(call("risky"), call("wait", seconds=60))
        assert wake_at(story.state) == story.now + 5_000
        story.now += 5_000
        kinds = story.tell(c.FireTimer(call="r1"))
        assert kinds == ["tool_call_cancelled", "tool_call_cancelled", "run_failed"]
        assert story.state.run.code == "wall_time_exceeded"


class TestContext:
    def test_without_a_strategy_everything_is_shown(self) -> None:
        story = Story()
        story.message()
        for _ in range(5):
            story.reply(call("look"))
            story.result("look")
        assert story.log[-1].first == 1

    def test_a_window_never_splits_a_call_from_its_result(self) -> None:
        story = Story(agent(context=ContextPolicy("window", window_messages=4)))
        story.message("start")
        for turn in range(6):
            story.reply(call("look", id=f"a{turn}"), call("save", id=f"b{turn}"))
            story.result("save")
            story.result("look")
        intended = story.log[-1]
        shown = story.history().messages(intended.first, intended.upto)
        assert isinstance(shown[0], UserMessage)
        assert [type(one).__name__ for one in shown[1:]] == [
            "AssistantMessage",
            "ToolMessage",
            "ToolMessage",
        ]

    def test_compaction_keeps_a_tail_and_a_summary(self) -> None:
        story = Story(compacting(compact_at_tokens=100, keep_messages=2))
        story.message("start")
        story.reply(call("look", id="a"), tokens=10)
        story.result("look", "one")
        story.reply(call("look", id="b"), tokens=200)
        assert story.result("look", "two") == ["tool_call_succeeded", "compaction_intended"]
        asked = story.log[-1]
        folded = story.history().messages(asked.first, asked.upto, asked.summary)
        assert [one.content for one in folded] == ["start", "", "one"]
        assert story.reply(text="we looked once") == ["context_compacted", "model_call_intended"]
        assert story.contents() == [
            "Summary of the earlier conversation:\nwe looked once",
            "",
            "two",
        ]

    def test_a_failed_compaction_goes_on_with_everything(self) -> None:
        story = Story(compacting(compact_at_tokens=100, keep_messages=2))
        story.message("start")
        story.reply(call("look", id="a"), tokens=10)
        story.result("look", "one")
        story.reply(call("look", id="b"), tokens=200)
        story.result("look", "two")
        assert story.fail("transient", "timeout") == ["compaction_failed", "model_call_intended"]
        assert story.contents()[0] == "start"

    def test_a_steer_during_compaction_waits_for_its_end(self) -> None:
        story = Story(compacting(compact_at_tokens=100, keep_messages=2))
        story.message("start")
        story.reply(call("look", id="a"), tokens=10)
        story.result("look", "one")
        story.reply(call("look", id="b"), tokens=200)
        story.result("look", "two")
        assert story.message("faster", mode="steer") == []
        assert story.reply(text="sum") == [
            "context_compacted",
            "message_received",
            "model_call_intended",
        ]


def test_every_tool_of_the_story_is_declared() -> None:
    assert {tool.effect for tool in TOOLS} == {"read", "idempotent", "once"}


def test_a_reply_leaves_no_mark_of_the_facts_in_the_state() -> None:
    story = Story()
    story.message("x" * 10_000)
    story.reply(call("look"), text="y" * 10_000)
    assert all(len(str(event)) > 0 for event in story.log)
    assert "x" * 100 not in repr(story.state)
    assert isinstance(story.log[0], e.MessageReceived)
