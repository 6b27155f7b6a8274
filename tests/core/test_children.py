"""Launching agents, as one session decides it: who may be launched, and what a child's end does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.core import commands as c
from perdure.core.agent import Subagents
from perdure.core.family import Parent
from perdure.core.gate import Verdict
from tests.core.family import ABOVE, Family
from tests.core.rules import Rules, ask
from tests.core.story import SESSION, call


def family(subagents: Subagents | None = None, gate: Any = None) -> Family:
    """Return a session whose model is asked."""
    story = Family(subagents, gate)
    story.message()
    return story


def test_children_are_owed_their_start_and_answer_the_calls() -> None:
    story = family()
    assert story.launch("ann", "bob") == ["model_replied", "child_launched", "child_launched"]
    assert story.letters() == [("start", "ann"), ("start", "bob")]
    delivered = tuple(letter.id for letter in story.state.outbox)
    assert story.tell(c.ReportDelivered(letters=delivered)) == ["letters_delivered"]
    assert story.tell(c.ReportDelivered(letters=delivered)) == []
    assert story.ends(1, content="B") == ["tool_call_succeeded"]
    assert story.ends(0, content="A") == ["tool_call_succeeded", "model_call_intended"]
    assert [m.content for m in story.messages()[-2:]] == ["A", "B"]


def test_the_end_of_a_child_is_told_its_parent_however_it_comes() -> None:
    for end, event in (
        (lambda s: s.reply(text="done"), "run_completed"),
        (lambda s: s.cancel(), "run_cancelled"),
        (lambda s: s.fail("validation", "bad"), "run_failed"),
    ):
        story = Family()
        story.message(parent=ABOVE)
        assert end(story)[-1] == event
        (letter,) = story.state.outbox
        assert (letter.what, letter.agent, letter.key) == ("end", "chief", "k0")
        assert (letter.run, letter.call) == ("r0", "1.1.t0")
        assert story.log[letter.seq - 1] == story.log[-1]


def test_a_launch_into_a_busy_session_is_refused_there_and_never_queued() -> None:
    story = family()
    assert story.message(parent=ABOVE) == ["run_withdrawn"]
    assert story.log[-1].code == "busy"  # type: ignore[attr-defined]
    assert story.letters() == [("end", "chief")]


@pytest.mark.parametrize(
    "policy,arguments,rule,said",
    [
        (Subagents("disabled"), {}, "disabled", "may launch no others"),
        (Subagents("allowlist", ("bob",)), {}, "not_allowlisted", "It may launch: bob."),
        (
            Subagents(),
            {"agent_name": "eve"},
            "unknown_agent",
            "are: ann, bob, pet, chief.",
        ),
        (Subagents(), {"agent_name": "support"}, "self", "cannot launch itself"),
        (Subagents(depth_max=0), {}, "max_depth", "At most 0"),
        (Subagents(children_max=0), {}, "max_children", "at most 0"),
        (Subagents(), {"message": " "}, "invalid_arguments", "`message`"),
        (Subagents(), {"agent_name": 7}, "invalid_arguments", "`agent_name`"),
        (Subagents(), {"session": "x" * 65}, "invalid_arguments", "`session`"),
        (Subagents(), {"context": []}, "invalid_arguments", "`context`"),
        (Subagents(), {"context": {"messages": [{"role": "tool"}]}}, "invalid_arguments", "`role`"),
    ],
)
def test_who_may_not_be_launched_is_not(
    policy: Subagents, arguments: dict[str, Any], rule: str, said: str
) -> None:
    story = family(policy)
    told = story.reply(call("launch_agent", **{"agent_name": "ann", "message": "go", **arguments}))
    assert told == ["model_replied", "tool_call_denied", "model_call_intended"]
    assert story.denial()[0] == rule
    assert said in story.denial()[1]


def test_depth_counts_from_the_root() -> None:
    story = Family(Subagents(depth_max=2))
    deep = Parent("r0", "1.1.t0", "r0", (("chief", "k0"), ("boss", "k1")))
    story.message(parent=deep)
    story.launch("ann")
    assert story.denial()[0] == "max_depth"


def test_those_who_would_wait_for_one_another_are_named() -> None:
    story = family()
    story.launch("ann", session="desk")
    (letter,) = story.state.outbox
    again = Family()
    lineage = (("ann", letter.key), ("bob", "k"))
    again.message(parent=Parent("r9", "1.1.t0", "r1", lineage))
    again.launch("ann", session="desk")
    assert again.denial() == (
        "cycle",
        "These would wait for one another: ann -> bob -> support -> ann.",
    )


def test_named_sessions_are_shared_in_a_tree_and_with_nobody_else() -> None:
    def key(parent: Parent | None, **more: Any) -> str:
        story = Family()
        story.message(parent=parent)
        story.launch("ann", **more)
        return story.state.outbox[-1].key

    other = Parent("r0", "1.1.t0", "other", (("chief", "k0"),))
    assert key(ABOVE, session="desk") == key(ABOVE, session="desk")
    assert key(ABOVE, session="desk") != key(other, session="desk")
    assert key(ABOVE, session="desk") != key(ABOVE, session="attic")


def test_a_cancelled_parent_cancels_its_children() -> None:
    story = family()
    story.launch("ann", "bob")
    story.ends(0)
    assert story.cancel()[-2:] == ["tool_call_cancelled", "run_cancelled"]
    assert story.letters() == [("start", "ann"), ("start", "bob"), ("cancel", "bob")]
    child = story.state.outbox[-1].run
    assert story.child("1.1.t1", child, "cancelled") == []
    assert story.refused is not None


class TestStrategies:
    """What becomes of a run when a child fails."""

    def test_tell(self) -> None:
        story = family()
        story.launch("ann")
        assert story.ends(0, "failed", message="no luck")[0] == "tool_call_failed"
        assert story.messages()[-1].content == "no luck"

    def test_restart_in_a_fresh_session_and_not_for_ever(self) -> None:
        story = family(Subagents(on_failure="restart", restarts_max=2, restart_window_ms=1_000))
        story.launch("ann")
        first = story.state.calls["1.1.t0"].child
        assert first is not None
        for _ in range(2):
            assert story.ends(0, "failed", message="no luck") == ["child_restarted"]
        assert len({letter.run for letter in story.state.outbox}) == 3
        assert len({letter.key for letter in story.state.outbox}) == 3
        assert story.child("1.1.t0", first.run, "failed") == [], "it is waited for no more"
        story.now += 1_001
        assert story.ends(0, "failed") == ["child_restarted"], "in another window"
        story.ends(0, "failed")
        assert story.ends(0, "failed", message="enough")[0] == "tool_call_failed"

    @pytest.mark.parametrize("how,code", [("escalate", "child_failed"), ("abort", "aborted")])
    def test_the_run_fails_with_its_other_children(self, how: Any, code: str) -> None:
        story = family(Subagents(on_failure=how))
        story.launch("ann", "bob")
        assert story.ends(0, "failed")[-1] == "run_failed"
        assert story.state.run is not None
        assert story.state.run.code == code
        assert ("cancel", "bob") in story.letters()
        assert ("cancel", "ann") not in story.letters()

    def test_an_abort_goes_up_whatever_the_strategy(self) -> None:
        story = family(Subagents(on_failure="tell"))
        story.launch("ann")
        assert story.ends(0, "failed", code="aborted")[-1] == "run_failed"

    @pytest.mark.parametrize("code", ["busy", "cancelled", "not_started"])
    def test_what_was_no_failure_is_only_told(self, code: str) -> None:
        story = family(Subagents(on_failure="abort"))
        story.launch("ann")
        assert story.ends(0, "cancelled", code=code)[0] == "tool_call_failed"
        assert story.state.status == "thinking"


def test_who_is_there_is_listed_with_purposes() -> None:
    story = family()
    assert story.reply(call("list_agents"))[1:3] == ["tool_call_intended", "tool_call_succeeded"]
    told = msgspec.json.decode(story.messages()[-1].content)
    assert told[0] == {"name": "ann", "purpose": "Is ann."}
    closed = family(Subagents(may_list=False))
    closed.reply(call("list_agents"))
    assert closed.denial()[0] == "list_agents_disabled"


class TestTheGate:
    """A launch passes it as every call does, and a child's authority is never more than above."""

    def test_a_launch_may_need_approval(self) -> None:
        story = family(gate=Rules(launch_agent=ask()))
        assert story.launch("ann")[-1] == "approval_requested"
        assert story.decide() == ["approval_given", "child_launched"]
        assert story.log[-1].rule == "approved:large"  # type: ignore[attr-defined]

    def test_an_edited_launch_is_looked_at_again(self) -> None:
        story = family(gate=Rules(launch_agent=ask()))
        story.launch("ann")
        edited = {"agent_name": "support", "message": "go"}
        assert story.decide("edit", arguments=edited) == ["arguments_edited"]
        assert story.decide() == ["approval_given", "tool_call_denied", "model_call_intended"]
        assert story.denial()[0] == "self"

    def test_a_launch_may_be_denied(self) -> None:
        story = family(gate=Rules(launch_agent=Verdict("deny", "no_launch", "not today")))
        story.launch("ann")
        assert story.denial()[0] == "no_launch"

    def test_a_child_may_do_what_all_above_it_may(self) -> None:
        class OnlySupport(Rules):
            def judge(self, asked: Any) -> Verdict:
                mine = asked.agent.name == "support"
                return Verdict("allow" if mine else "deny", "own")

        def saves(lineage: tuple[tuple[str, str], ...]) -> str:
            story = Family(gate=OnlySupport())
            story.message(parent=Parent("r0", "1.1.t0", "r0", lineage) if lineage else None)
            return story.reply(call("save"))[1]

        assert saves(()) == "tool_call_intended"
        assert saves((("support", "k"),)) == "tool_call_intended"
        assert saves((("ann", "k"), ("support", "k"))) == "tool_call_denied"
        assert saves((("gone", "k"),)) == "tool_call_denied", "nobody knows what it might"


def test_what_came_with_the_message_goes_down_and_nothing_else() -> None:
    story = Family()
    story.message(meta={"gard": 7, "trigger": "webhook", "secret": "x"})
    story.launch("ann")
    assert story.log[-1].meta == {"gard": 7}  # type: ignore[attr-defined]
    assert story.state.outbox[0].agent == "ann"
    assert SESSION.agent == story.agent.spec.name
