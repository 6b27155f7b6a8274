"""Reminders and escalation: timers of the session, kept in its log."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perdure.core import commands as c
from perdure.core.agent import Reminders
from perdure.core.gate import Verdict
from perdure.core.runs import rows_of, run_row
from perdure.core.session import due, wake_at
from perdure.core.state import decode_snapshot, encode_snapshot
from tests.core.rules import HOUR_MS, Rules, ask
from tests.core.story import SESSION, Story, agent, call

MINUTE_MS = 60_000
REMINDED = agent(reminders=Reminders(after_ms=MINUTE_MS, times=2))


def waiting(tool: str, definition: Any = REMINDED, gate: Any = None, **arguments: Any) -> Story:
    """Return a story in which a call waits for people: answers, decisions, approvals."""
    story = Story(definition, gate or Rules(save=ask()))
    story.message("Do it.")
    story.reply(call(tool, **arguments))
    if tool == "pay":
        story.begin(tool)
        story.lose(tool)
    return story


def pass_time(story: Story, ms: int = MINUTE_MS) -> list[str]:
    """Let time pass, and fire what is due."""
    story.now += ms
    fired: list[str] = []
    for one in due(story.state, story.now):
        fired += story.tell(c.FireTimer(call=one))
    return fired


@pytest.mark.parametrize(
    "tool,arguments", [("ask_human", {"question": "Shall I?"}), ("pay", {}), ("save", {})]
)
def test_people_are_reminded_of_whatever_waits_for_them_so_often(
    tool: str, arguments: dict[str, Any]
) -> None:
    story = waiting(tool, **arguments)
    assert pass_time(story, MINUTE_MS - 1) == []
    assert wake_at(story.state) == story.now + 1
    assert pass_time(story, 1) == ["people_reminded"]
    before = story.state
    assert pass_time(story) == ["people_reminded"]
    assert [event.count for event in story.log[-2:]] == [1, 2]
    assert rows_of(SESSION, before, story.log[-1:], story.state) != (), "who listens is told"
    assert run_row(SESSION, story.state).waiting_for[0]["reminded"] == 2
    assert decode_snapshot(encode_snapshot(story.state)) == story.state
    assert pass_time(story) == [], "that was the last time"


def test_nobody_is_reminded_who_did_not_ask_for_it() -> None:
    story = waiting("ask_human", agent(), question="Shall I?")
    assert pass_time(story, 24 * HOUR_MS) == []
    assert wake_at(story.state) is None
    assert story.tell(c.FireTimer(call="1.1.t0")) == []
    assert story.refused is not None
    assert story.refused.code == "not_due"


def test_who_has_answered_is_not_reminded() -> None:
    story = waiting("ask_human", question="Shall I?")
    story.answer("yes")
    assert pass_time(story) == []


def test_a_call_that_is_sent_again_waits_for_nobody() -> None:
    story = waiting("pay")
    pass_time(story)
    story.resolve("pay", "did_not_happen")
    assert wake_at(story.state) is None
    story.begin("pay")
    assert story.lose("pay") == ["tool_call_unknown", "decision_requested"]
    assert pass_time(story) == ["people_reminded"]
    assert story.log[-1].count == 1, "of what is asked anew"


def test_reminders_that_were_taken_away_end() -> None:
    story = waiting("ask_human", question="Shall I?")
    story.agent = agent()
    assert pass_time(story) == ["people_reminded"]
    assert wake_at(story.state) is None


def test_an_edited_call_is_reminded_of_and_what_expires_is_denied() -> None:
    story = waiting("save", gate=Rules(save=ask(expires_ms=2 * MINUTE_MS)))
    story.decide("edit", arguments={"n": 1})
    assert pass_time(story) == ["people_reminded"]
    assert pass_time(story)[0] == "tool_call_denied"


def escalating(*to: str, escalate_ms: int = MINUTE_MS) -> Rules:
    """Return a policy that asks finance first."""
    [terms] = [ask(2, "finance").terms]
    later = replace(terms, escalate_ms=escalate_ms, escalate_to=to)
    return Rules(save=Verdict("ask", "large", "more than 10 euros", later))


def test_after_a_while_others_are_asked() -> None:
    story = waiting("save", agent(), escalating("board"))
    asked = run_row(SESSION, story.state).waiting_for[0]
    assert (asked["escalate_at"], asked["escalate_to"]) == (story.now + MINUTE_MS, ("board",))
    assert story.decide(by="ann", held=("finance",)) == ["approval_given"]
    assert pass_time(story) == ["approval_reassigned"]
    moved = story.log[-1]
    assert (moved.roles, moved.by) == (("board",), "rule:large")
    assert story.decide(by="fay", held=("finance",)) == []
    assert story.refused is not None
    assert story.refused.code == "not_entitled"
    given = story.decide(by="bob", held=("board",))
    assert given == ["approval_given", "tool_call_intended"], "ann's word still counts"
    assert pass_time(story) == []


def test_what_somebody_passed_on_is_not_passed_on_by_the_clock() -> None:
    story = waiting("save", agent(), escalating("board"))
    story.decide("reassign", held=("finance",), roles=("sales",))
    assert pass_time(story) == []
    assert story.decide(by="bob", held=("sales",)) == ["approval_given"]


def test_both_clocks_run_beside_each_other() -> None:
    story = waiting("save", REMINDED, escalating("board", escalate_ms=90_000))
    assert pass_time(story) == ["people_reminded"]
    assert wake_at(story.state) == story.now + 30_000
    assert pass_time(story, 30_000) == ["approval_reassigned"]
    assert pass_time(story, 30_000) == ["people_reminded"]
    story.now += HOUR_MS
    assert pass_time(story)[0] == "tool_call_denied"
