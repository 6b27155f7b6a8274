"""The gate and people: what is allowed, what is asked, and what a decision is bound to."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core import commands as c
from perdure.core import ids
from perdure.core.agent import ToolSpec
from perdure.core.gate import Asked, Verdict, covers
from perdure.core.limits import TOOL_CALLS_PER_STEP_MAX, USES_MAX
from perdure.core.runs import run_row
from perdure.core.state import decode_snapshot, encode_snapshot
from tests.core.rules import HOUR_MS, Rules, ask
from tests.core.story import SESSION, Story, agent, call


class Broken(Rules):
    """A policy that fails."""

    def judge(self, asked: Asked) -> Verdict:
        """Fail."""
        raise ZeroDivisionError("a rule divides by zero")


def paying(gate: Rules, tool: str = "save", **arguments: Any) -> Story:
    """Return a story in which a model has just asked for a call."""
    story = Story(gate=gate)
    story.message("Pay.")
    story.reply(call(tool, **(arguments or {"cents": 1999})))
    return story


def refusal(story: Story) -> str:
    assert story.refused is not None
    return story.refused.code


def test_the_verdict_is_in_the_commit_of_the_intent() -> None:
    story = Story(gate=Rules(look=Verdict("allow", "lookups")))
    story.message("Look.")
    assert story.log[-1].policy == "p1"
    assert story.reply(call("look")) == ["model_replied", "tool_call_intended"]
    assert (story.log[-1].rule, story.log[-1].policy) == ("lookups", "p1")
    story.result("look")
    assert story.log[-1].policy is None, "the log names a policy when it changes"


def test_a_denial_says_why_and_the_run_goes_on() -> None:
    story = paying(Rules(save=Verdict("deny", "no-saving", "the archive is closed")))
    assert [story.kinds()[-2], story.log[-2].rule] == ["tool_call_denied", "no-saving"]
    assert "'no-saving' denies it: the archive is closed" in story.log[-2].content
    assert story.state.status == "thinking"


def test_a_gate_that_fails_denies() -> None:
    story = paying(Broken())
    assert story.log[-2].rule == "gate_failed"
    assert "divides by zero" in story.log[-2].content


@pytest.mark.parametrize(
    "grants,rule",
    [((), "not_granted"), (("net.http",), "granted"), (("net.*",), "granted"), (("*",), "granted"),
     (("net",), "not_granted"), (("network.*",), "not_granted")],
)  # fmt: skip
def test_a_capability_has_to_be_granted(grants: tuple[str, ...], rule: str) -> None:
    fetch = ToolSpec("fetch", "Fetch.", {}, effect="read", capabilities=("net.http",))
    story = Story(agent(tools=(fetch,), grants=grants))
    story.message("Fetch.")
    story.reply(call("fetch"))
    event = next(one for one in story.log if getattr(one, "name", "") == "fetch")
    assert event.rule == rule


def test_grants_cover_what_begins_like_them() -> None:
    assert covers("tool:pay", "tool:pay")
    assert not covers("tool:pay", "tool:payroll")
    assert covers("tool:pay*", "tool:payroll")


def test_an_approved_call_is_intended_with_what_was_approved() -> None:
    story = paying(Rules(save=ask()))
    requested = story.log[-1]
    assert story.kinds()[-1] == "approval_requested"
    assert (requested.arguments, requested.reason) == ({"cents": 1999}, "more than 10 euros")
    assert requested.expires_at == story.now + HOUR_MS
    row = run_row(SESSION, story.state)
    assert row.status == "waiting"
    [asked] = row.waiting_for
    assert (asked["what"], asked["digest"]) == ("approval", requested.digest)
    assert story.decide(digest=requested.digest) == ["approval_given", "tool_call_intended"]
    intended = story.log[-1]
    assert (intended.rule, intended.key) == ("approved:large", requested.key)
    assert intended.digest == ids.arguments_digest({"cents": 1999})
    assert story.result("save")[0] == "tool_call_succeeded"


def test_a_denied_call_is_not_made_and_the_model_hears_why() -> None:
    story = paying(Rules(save=ask()))
    assert story.decide("deny", reason="it was paid already")[0] == "tool_call_denied"
    denied = next(one for one in story.log if getattr(one, "by", "") == "ann")
    assert denied.content == "This call was not made. ann denied it: it was paid already"


def test_exactly_one_decision_wins_and_the_late_are_told_whose() -> None:
    story = paying(Rules(save=ask()))
    story.decide("deny", by="ann")
    for late in ("approve", "deny", "edit", "reassign"):
        assert story.decide(late, by="bob") == []
        assert refusal(story) == "already_decided"
        assert story.refused is not None
        assert f"denied by ann at {story.now}" in story.refused.message


def test_who_comes_late_is_told_so_also_while_a_newer_run_is_in_progress() -> None:
    story = paying(Rules(save=ask()))
    story.decide("deny", by="ann")
    story.reply(text="Then not.")
    story.message("Something else.")
    assert story.decide(by="bob", run="r1") == []
    assert refusal(story) == "already_decided"


def test_nobody_decided_in_time() -> None:
    story = paying(Rules(save=ask(expires_ms=1_000)))
    story.now += 1_000
    assert story.decide() == []
    assert refusal(story) == "expired"
    assert story.tell(c.FireTimer(call="1.1.t0"))[0] == "tool_call_denied"
    assert story.decide() == []
    assert refusal(story) == "already_decided"


def test_so_many_different_people_with_a_role_are_needed() -> None:
    story = paying(Rules(save=ask(2, "finance", "board")))
    assert story.decide(by="eve", held=("intern",)) == []
    assert refusal(story) == "not_entitled"
    assert story.decide(by="ann", held=("intern", "finance")) == ["approval_given"]
    assert story.log[-1].role == "finance"
    assert story.decide(by="ann", held=("finance",)) == []
    assert refusal(story) == "already_approved"
    assert story.decide(by="bob", held=("board",)) == ["approval_given", "tool_call_intended"]


def test_a_decision_on_other_arguments_is_refused_with_both_digests() -> None:
    story = paying(Rules(save=ask()))
    mine, other = story.log[-1].digest, ids.arguments_digest({"cents": 1})
    assert story.decide(digest=other) == []
    assert refusal(story) == "arguments_changed"
    assert story.refused is not None
    assert mine in story.refused.message
    assert other in story.refused.message


def test_edited_arguments_are_approved_anew_and_are_what_is_sent() -> None:
    story = paying(Rules(save=ask(2)))
    before = story.log[-1].digest
    story.decide(by="ann")
    assert story.decide("edit", by="bob", arguments={"cents": 999}) == ["arguments_edited"]
    assert story.decide(by="ann", digest=before) == []
    assert refusal(story) == "arguments_changed"
    story.decide(by="ann")
    assert story.decide(by="cid") == ["approval_given", "tool_call_intended"]
    assert story.state.calls["1.1.t0"].arguments == {"cents": 999}


def test_what_a_rule_denies_nobody_can_edit_in() -> None:
    class Small(Rules):
        def judge(self, asked: Asked) -> Verdict:
            return ask() if asked.arguments["cents"] < 5_000 else Verdict("deny", "too-much", "no")

    story = paying(Small())
    assert story.decide("edit", arguments={"cents": 9_999}) == []
    assert refusal(story) == "denied"


def test_others_can_be_asked_instead() -> None:
    story = paying(Rules(save=ask(1, "finance")))
    assert story.decide("reassign", held=("finance",)) == []
    assert refusal(story) == "no_roles"
    moved = story.decide("reassign", held=("finance",), roles=("board",), reason="too much for me")
    assert moved == ["approval_reassigned"]
    assert story.decide(held=("finance",)) == []
    assert refusal(story) == "not_entitled"
    assert story.decide(by="bob", held=("board",)) == ["approval_given", "tool_call_intended"]


@pytest.mark.parametrize(
    "now,events,code",
    [
        (Verdict("allow", "rest"), ["approval_given", "tool_call_intended"], None),
        (Verdict("deny", "closed"), ["tool_call_denied", "model_call_intended"], "policy_changed"),
        (ask(2), ["approval_requested"], "policy_changed"),
    ],
    ids=["allows", "denies", "asks more"],
)
def test_an_approval_is_bound_to_the_policy(now: Verdict, events: list[str], code: Any) -> None:
    story = paying(Rules(save=ask()))
    story.gate = Rules("p2", save=now)
    assert story.decide() == events
    assert (None if story.refused is None else story.refused.code) == code
    if now.effect == "ask":
        assert story.decide(by="ann") == ["approval_given"]
        assert story.decide(by="bob") == ["approval_given", "tool_call_intended"]


def test_an_approval_is_bound_to_the_version_of_the_tool() -> None:
    for changed in ({"version": "2"}, {"effect": "once"}):
        story = paying(Rules(save=ask()))
        tool = {"effect": "idempotent", **changed}
        story.agent = agent(tools=(ToolSpec("save", "", {}, **tool),))
        assert story.decide()[0] == "tool_call_denied"
        assert refusal(story) == "tool_changed"
        assert story.decide(by="bob") == []
        assert story.refused is not None
        assert "denied by tool_changed" in story.refused.message, "nobody said no"


def test_a_run_that_ends_gives_its_approvals_up() -> None:
    story = paying(Rules(save=ask()))
    run = story.state.run
    assert run is not None
    assert story.tell(c.CancelRun(id="c", run=run.id)) == ["tool_call_cancelled", "run_cancelled"]
    assert "was not made" in story.log[-2].content
    assert story.decide() == []
    assert refusal(story) in ("not_pending", "not_running")


def test_each_use_of_a_standing_approval_is_counted_where_it_is_recorded() -> None:
    class Ahead(Rules):
        def judge(self, asked: Asked) -> Verdict:
            return Verdict("allow", "standing:7") if asked.uses.get("7", 0) < 3 else ask()

    story = Story(gate=Ahead())
    story.message("Pay four.")
    kinds = story.reply(*(call("save", f"id-{n}", n=n) for n in range(4)))
    assert kinds[1:] == ["tool_call_intended"] * 3 + ["approval_requested"]
    assert story.state.uses == {"7": 3}
    story.lose("save")
    assert story.state.uses == {"7": 3}, "it is one use, however often it is sent"
    assert decode_snapshot(encode_snapshot(story.state)) == story.state


def test_so_many_standing_approvals_are_counted() -> None:
    class Many(Rules):
        def judge(self, asked: Asked) -> Verdict:
            return Verdict("allow", f"standing:{asked.arguments['n']}")

    story = Story(gate=Many())
    story.message("Pay.")
    story.reply(*(call("save", f"id-{n}", n=n) for n in range(TOOL_CALLS_PER_STEP_MAX)))
    for _ in range(TOOL_CALLS_PER_STEP_MAX):
        story.result("save")
    story.reply(call("save", n=USES_MAX))
    assert len(story.state.uses) == USES_MAX
