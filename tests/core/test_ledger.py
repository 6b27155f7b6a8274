"""The ledger: what is in doubt is not made again, until it is known what became of it."""

from __future__ import annotations

import pytest

from perdure.core import commands as c
from perdure.core.agent import ToolSpec
from perdure.core.gate import NO_RULES
from perdure.core.limits import DOUBTS_MAX
from perdure.core.session import wake_at
from tests.core.rules import Rules, ask
from tests.core.story import Story, agent, call

WINDOW_MS = 1_000_000


def in_doubt(**arguments: int) -> Story:
    """Return a story in which a model was told that the outcome of its call is unknown."""
    story = Story()
    story.message("Do it.")
    story.reply(call("risky", **arguments))
    story.begin("risky")
    story.lose("risky")
    return story


def test_the_same_call_again_needs_approval() -> None:
    story = in_doubt(cents=5, to=7)
    assert story.reply(call("risky", "another-id", to=7, cents=5))[-1] == "approval_requested"
    assert (story.log[-1].rule, story.log[-1].needed) == ("unresolved_call", 1)
    assert "call 1.1.t0 had the same arguments" in story.log[-1].reason
    assert story.decide(name="1.2.t0") == ["approval_given", "tool_call_intended"]


@pytest.mark.parametrize("other", [call("risky", cents=6), call("save", cents=5)])
def test_another_call_needs_none(other: object) -> None:
    story = in_doubt(cents=5)
    assert story.reply(other)[-1] == "tool_call_intended"  # type: ignore[arg-type]


def test_it_is_remembered_beyond_the_run() -> None:
    story = in_doubt(cents=5)
    story.reply(text="I do not know.")
    story.message("Try again.")
    assert story.reply(call("risky", cents=5))[-1] == "approval_requested"


@pytest.mark.parametrize("resolution", ["happened", "did_not_happen"])
def test_once_it_is_resolved_it_needs_none(resolution: str) -> None:
    story = in_doubt(cents=5)
    assert story.settle("1.1.t0", resolution, attempt=1) == ["tool_call_resolved"]
    assert story.log[-1].by == "person:person"
    assert story.reply(call("risky", cents=5))[-1] == "tool_call_intended"


def test_a_resolution_of_another_attempt_or_without_news_is_refused() -> None:
    story = in_doubt(cents=5)
    for resolution, attempt, code in (("happened", 2, "stale_attempt"), ("tell_model", 1, "told")):
        assert story.settle("1.1.t0", resolution, attempt=attempt) == []
        assert story.refused is not None
        assert story.refused.code == code


def test_a_result_that_comes_late_resolves_it() -> None:
    story = in_doubt(cents=5)
    late = c.ReportToolResult(call="1.1.t0", attempt=1, ok=True, content="receipt-7")
    assert story.tell(late) == ["tool_call_resolved"]
    assert (story.log[-1].content, story.log[-1].by) == ("receipt-7", "worker")
    assert story.tell(late) == []
    assert story.state.doubts == ()


def test_a_late_failure_does_not() -> None:
    """What raised may have taken effect before it did."""
    story = in_doubt(cents=5)
    late = c.ReportToolResult(call="1.1.t0", attempt=1, ok=False, content="oops", kind="raised")
    assert story.tell(late) == []
    assert len(story.state.doubts) == 1


def test_a_begun_call_that_is_cancelled_is_in_doubt() -> None:
    story = Story()
    story.message("Do it.")
    story.reply(call("risky", cents=5))
    story.begin("risky")
    story.cancel()
    story.message("Again.")
    assert story.reply(call("risky", cents=5))[-1] == "approval_requested"


def full_of_doubt() -> Story:
    """Return a story in which as many calls as a session remembers have an unknown outcome."""
    story = Story()
    story.message("Do it all.")
    story.reply(*(call("risky", f"id-{n}", n=n) for n in range(DOUBTS_MAX)))
    for n in range(DOUBTS_MAX):
        found = story.state.calls[f"1.1.t{n}"]
        story.tell(c.ReportToolBegin(call=found.id, attempt=1, worker="w1"))
        story.tell(c.ReportToolLost(call=found.id, attempt=1, reason="gone"))
    assert len(story.state.doubts) == DOUBTS_MAX
    return story


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": DOUBTS_MAX}], ids=["old", "new"])
def test_with_too_much_in_doubt_nothing_is_made_until_some_is_resolved(
    arguments: dict[str, int],
) -> None:
    """A session that forgot the oldest of them would make that one once more."""
    for gate in (NO_RULES, Rules(risky=ask())):
        story = full_of_doubt()
        story.gate = gate
        story.reply(call("risky", "next", **arguments), call("look"))
        assert story.log[-2].rule == "too_many_unresolved_calls"
        assert "the oldest is 1.1.t0" in story.log[-2].content
        assert story.result("look")[0] == "tool_call_succeeded", "reading changes nothing"
        story.settle("1.1.t7", "did_not_happen")
        asked = arguments["n"] == 0 or gate is not NO_RULES
        expected = "approval_requested" if asked else "tool_call_intended"
        assert story.reply(call("risky", "again", **arguments))[-1] == expected


def keyed() -> Story:
    """Return a story with a call whose key the far end honours for a while."""
    story = Story(agent(tools=(ToolSpec("put", "", {}, "idempotent", key_window_ms=WINDOW_MS),)))
    story.message("Put.")
    story.reply(call("put"))
    return story


def test_a_key_is_used_again_while_the_far_end_knows_it() -> None:
    story = keyed()
    assert wake_at(story.state) == story.now + WINDOW_MS - 60_000
    story.now += WINDOW_MS // 2
    assert story.lose("put") == ["tool_call_lost"]
    assert story.result("put")[0] == "tool_call_succeeded"


def test_afterwards_the_outcome_is_unknown() -> None:
    story = keyed()
    story.lose("put")
    story.now += WINDOW_MS - 60_000
    told = story.tell(c.FireTimer(call="1.1.t0"))
    assert told == ["tool_call_unknown", "tool_call_failed", "model_call_intended"]
    assert wake_at(story.state) is None
    assert story.reply(call("put"))[-1] == "approval_requested"


def test_not_before() -> None:
    story = keyed()
    story.now += 1
    assert story.tell(c.FireTimer(call="1.1.t0")) == []
