"""A fork begins with a part of another session's history, and with nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import ContextPolicy
from perdure.core.fork import Cut, Prefix, inherited
from perdure.core.history import malformed
from perdure.core.messages import INHERITED_CONTEXT, AssistantMessage, Message, UserMessage
from perdure.core.state import decode_snapshot, encode_snapshot
from tests.core.story import Story, agent, call, compacting
from tests.core.test_properties import AGENTS, STEP, perform

Groups = tuple[tuple[Message, ...], ...]


def prefix_of(story: Story, step: int, run: str = "r1") -> Prefix:
    """Return the prefix of a run after a step."""
    log = list(enumerate(story.log, 1))
    cut, mine = Cut(step), False
    for seq, event in log:
        mine = mine or (isinstance(event, e.RunStarted) and event.run == run)
        if mine and not cut.feed(seq, event):
            break
    return cut.prefix()


def history(story: Story, step: int, run: str = "r1") -> Groups:
    """Return what a fork of a run would inherit; assert that it is whole."""
    prefix = prefix_of(story, step, run)
    log = enumerate(story.log, 1)
    found = inherited(prefix, [(seq, one) for seq, one in log if seq <= prefix.upto])
    assert malformed(message for group in found for message in group) == []
    return found


def contents(groups: Groups) -> list[Any]:
    """Return what was said, group by group."""
    return [group[0].content if len(group) == 1 else [m.content for m in group] for group in groups]


def origin(step: int = 1) -> e.Origin:
    """Return where a fork is from."""
    return e.Origin("support", "s0", "r0", step, 9, "00ff")


def three_steps() -> Story:
    """Return a run of three steps: two tool calls and an answer."""
    story = Story()
    story.message("go")
    story.reply(call("look"), text="first")
    story.result("look", "seen")
    story.reply(call("save"), text="second")
    story.result("save", "saved")
    story.reply(text="third")
    return story


STEPS = [
    (0, ["go"]),
    (1, ["go", ["first", "seen"]]),
    (2, ["go", ["first", "seen"], ["second", "saved"]]),
    (3, ["go", ["first", "seen"], ["second", "saved"], "third"]),
]


@pytest.mark.parametrize(("step", "expected"), STEPS)
def test_the_history_after_a_step(step: int, expected: list[Any]) -> None:
    assert contents(history(three_steps(), step)) == expected


def asked_in_mid_turn(story: Story) -> None:
    story.reply(call("ask_human", question="Sure?"), text="hm")


def looked_and_asked(story: Story) -> None:
    story.reply(call("look"), call("ask_human", question="Sure?"), text="hm")
    story.result("look", "seen")


def cancelled_before_it_began(story: Story) -> None:
    story.reply(call("pay"), text="hm")
    story.cancel()


def cancelled_in_a_read(story: Story) -> None:
    story.reply(call("look"), call("wait", seconds=5), text="hm")
    story.cancel()


def cancelled_after_it_began(story: Story) -> None:
    story.reply(call("pay"), text="hm")
    story.begin("pay")
    story.cancel()


def paid_and_asked(story: Story) -> None:
    story.reply(call("pay"), call("ask_human", question="Sure?"), text="hm")
    story.begin("pay")
    story.result("pay", "paid")


def nobody_knows(story: Story) -> None:
    story.reply(call("pay"), text="hm")
    story.begin("pay")
    story.lose("pay")


def saved_perhaps(story: Story) -> None:
    story.reply(call("save"), text="hm")
    story.cancel()


def it_did_not_happen(story: Story) -> None:
    nobody_knows(story)
    story.resolve("pay", "did_not_happen")
    story.cancel()


DROPPED: list[Callable[[Story], None]] = [
    asked_in_mid_turn,
    looked_and_asked,
    cancelled_before_it_began,
    cancelled_in_a_read,
    it_did_not_happen,
]


@pytest.mark.parametrize("unanswered", DROPPED)
def test_a_turn_without_all_of_its_answers_is_dropped(unanswered: Callable[[Story], None]) -> None:
    story = Story()
    story.message("go")
    unanswered(story)
    assert contents(history(story, 1)) == ["go"]


KEPT: list[tuple[Callable[[Story], None], str]] = [
    (cancelled_after_it_began, "Cancelled. The call had begun"),
    (paid_and_asked, "Not answered"),
    (nobody_knows, "The call had begun: whether it took effect is unknown"),
    (saved_perhaps, "The call may have been sent"),
]


@pytest.mark.parametrize(("unanswered", "told"), KEPT)
def test_a_turn_stays_of_which_something_may_have_been_done(
    unanswered: Callable[[Story], None], told: str
) -> None:
    story = Story()
    story.message("go")
    unanswered(story)
    assert told in str(contents(history(story, 1))[-1])
    if unanswered is paid_and_asked:
        assert "paid" in contents(history(story, 1))[-1]


def test_a_fork_sees_what_its_run_saw_of_a_long_conversation() -> None:
    story = Story(agent(context=ContextPolicy("window", window_messages=2)))
    for said in ("one", "two", "three"):
        story.message(said)
        story.reply(text=f"answer to {said}")
    last = story.log[-1]
    assert isinstance(last, e.RunCompleted)
    found = contents(history(story, 1, last.run))
    assert found == ["(Earlier messages are left out.)", "answer to two", "three",
                     "answer to three"]  # fmt: skip


def test_what_was_folded_stays_folded() -> None:
    story = Story(compacting(100, 2))
    story.message("go")
    for said in ("first", "second"):
        story.reply(call("look"), text=said, tokens=200)
        story.result("look", "seen")
        if story.state.status == "compacting":
            story.reply(text="a summary")
    story.reply(text="third")
    before, after = history(story, 0), history(story, 3)
    assert contents(before) == ["go"]
    assert str(contents(after)[0]).startswith("Summary of the earlier conversation:\na summary")


def test_a_fork_begins_its_session_and_asks_the_model_at_once() -> None:
    groups = history(three_steps(), 1)
    story = Story()
    told = story.message("now otherwise", inherited=groups, fork_of=origin(), meta={"gard": 1})
    assert told == ["session_forked", "history_inherited", "history_inherited",
                    "message_received", "run_started", "model_call_intended"]  # fmt: skip
    assert story.contents() == ["go", "first", "seen", "now otherwise"]
    run = story.state.run
    assert run is not None
    assert (run.first_seq, run.meta, run.input_tokens) == (1, {"gard": 1}, 0)
    assert decode_snapshot(encode_snapshot(story.state)) == story.state


def test_a_fork_may_go_on_without_a_message() -> None:
    story = Story()
    told = story.message(None, inherited=history(three_steps(), 1), fork_of=origin(),
                         meta={"trigger": "fork"})  # fmt: skip
    assert told[-3:] == ["history_inherited", "run_started", "model_call_intended"]
    story.reply(text="done")
    assert story.contents() == ["go", "first", "seen", "done"]
    assert story.state.run is not None
    assert story.state.run.meta == {"trigger": "fork"}
    story.message("and now?")
    assert story.state.run.meta is None
    assert story.state.run.first_seq == len(story.log) - 2


def test_a_window_forgets_what_was_inherited_message_by_message() -> None:
    story = Story(agent(context=ContextPolicy("window", window_messages=3)))
    story.message("now", inherited=history(three_steps(), 2), fork_of=origin(2))
    asked = story.log[-1]
    assert isinstance(asked, e.ModelCallIntended)
    shown = story.history().messages(asked.first, asked.upto)
    assert [one.content for one in shown][1:] == ["second", "saved", "now"]


def test_only_a_session_that_has_not_begun_can_be_a_fork() -> None:
    story = Story()
    story.message("hello")
    assert story.message("now", inherited=(), fork_of=origin()) == []
    assert story.refused is not None
    assert story.refused.code == "not_fresh"


CONTEXT = (
    (UserMessage("I am Ada"),),
    (AssistantMessage("Hello, Ada"),),
    (UserMessage({"tier": "gold"}, kind=INHERITED_CONTEXT),),
)


@pytest.mark.parametrize("mode", ["queue", "steer", "interrupt"])
def test_a_context_comes_right_before_its_message(mode: Any) -> None:
    story = Story()
    story.message("earlier")
    story.reply(call("look"))
    story.message("help", mode, inherited=CONTEXT)
    if mode != "interrupt":
        story.result("look")
        story.reply(text="ok")
    seen = story.contents()
    at = seen.index("help")
    assert seen[at - 3 : at] == ["I am Ada", "Hello, Ada", {"tier": "gold"}]
    if mode != "steer":
        assert story.state.run is not None
        first = story.log[story.state.run.first_seq - 1]
        assert isinstance(first, e.HistoryInherited)


@settings(max_examples=100, deadline=None)
@given(AGENTS, st.lists(STEP, max_size=40), st.integers(0, 4), st.lists(STEP, max_size=10))
def test_whatever_happened_a_fork_of_it_is_whole_and_lawful(
    definition: Any, before: list[Any], step: int, after: list[Any]
) -> None:
    source = Story(definition)
    source.message("go")
    for one in before:
        perform(source, one)
    started = [one.run for one in source.log if isinstance(one, e.RunStarted)]
    story = Story(definition)
    groups = history(source, step, started[-1])
    story.tell(c.SendMessage(id="fork", inherited=groups, fork_of=origin(step)))
    assert story.state.run is not None
    for one in after:
        perform(story, one)
        if not any(
            call.kind in ("tool", "timer", "question") for call in story.state.calls.values()
        ):
            story.messages()
