"""Standing approvals: which questions they answer, and that they answer nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.authority import Bounded
from perdure.core.errors import InvalidInput
from perdure.core.gate import Asked, Verdict
from perdure.core.limits import USES_MAX
from perdure.policy.policy import Policy
from perdure.policy.reading import read_predicates
from perdure.policy.standing import Standing, StandingApproval, declaration, why_not

PAY = ToolSpec("pay", "Pay.", {"type": "object"}, version="1")
CLERK = AgentSpec("clerk", "scripted", tools=(PAY,))
RULES = """
version = 1
name = "till"
[[rule]]
id = "much"
verdict = "deny"
reason = "too much"
tools = ["pay"]
arguments = [{ path = "cents", over = 9000 }]
[[rule]]
id = "large"
verdict = "ask"
reason = "large"
tools = ["pay"]
arguments = [{ path = "cents", over = 1000 }]
roles = ["finance"]
"""
POLICY = Policy.from_toml(RULES)
LIKE_THESE = read_predicates([{"path": "to", "equals": "ann"}], "here")
APPROVED = StandingApproval(
    id="7",
    agent="clerk",
    tool="pay",
    declared=declaration(PAY),
    policy=POLICY.version,
    arguments=LIKE_THESE,
    expires_at=2_000,
    roles=("finance", "board"),
)


def asked(cents: Any = 5_000, to: Any = "ann", **more: Any) -> Asked:
    given = Asked("t1", CLERK, PAY, {"cents": cents, "to": to}, 1_000)
    return replace(given, **more)


def verdict(asked: Asked, rules: Policy = POLICY, **changes: Any) -> Verdict:
    return Standing(rules, (replace(APPROVED, **changes),)).judge(asked)


def test_what_was_approved_ahead_is_not_asked_about_and_named() -> None:
    assert POLICY.judge(asked()).effect == "ask"
    assert verdict(asked()) == Verdict("allow", "standing:7")
    assert Standing(POLICY, (APPROVED,)).version == POLICY.version


def test_what_the_policy_denies_or_allows_stays_as_it_is() -> None:
    for cents in (9_001, 500):
        assert verdict(asked(cents)) == POLICY.judge(asked(cents))


@pytest.mark.parametrize(
    "asking",
    [
        asked(to="bob"),
        asked(to=None),
        asked(to=["ann"]),
        asked(at=2_000),
        asked(agent=replace(CLERK, name="clerk2")),
        asked(tool=replace(PAY, version="2")),
        asked(tool=replace(PAY, effect="idempotent")),
        asked(tool=replace(PAY, description="Pay in thousands.")),
    ],
    ids=["other", "missing", "other kind", "expired", "agent", "version", "effect", "words"],
)
def test_another_call_is_asked_about(asking: Asked) -> None:
    assert verdict(asking).rule == "large"


@pytest.mark.parametrize(
    "changes",
    [{"roles": ("board",)}, {"roles": ()}, {"policy": "another"}, {"tool": "mail"}],
    ids=["other roles", "no roles", "other policy", "other tool"],
)
def test_it_answers_only_what_it_is_bound_to(changes: dict[str, Any]) -> None:
    assert verdict(asked(), **changes).effect == "ask"


def test_a_rule_that_wants_several_people_is_never_answered_ahead() -> None:
    both = Policy.from_toml(RULES + "needed = 2\n")
    assert verdict(asked(), both, policy=both.version).effect == "ask"
    told = why_not(replace(APPROVED, policy=both.version), both, asked())
    assert told == "the rule 'large' wants 2 people each time"


def test_a_session_uses_it_so_often_and_no_more() -> None:
    assert verdict(asked(uses={"7": 1}), uses_per_session=2).effect == "allow"
    assert verdict(asked(uses={"7": 2}), uses_per_session=2).effect == "ask"
    assert verdict(asked(uses={"7": 99})).effect == "allow", "without a limit"


def test_what_is_not_counted_any_more_counts_as_used_up() -> None:
    others = {str(number): 1 for number in range(100, 100 + USES_MAX)}
    assert verdict(asked(uses=others), uses_per_session=2).effect == "ask"
    assert verdict(asked(uses=others)).effect == "allow"


def test_a_child_needs_also_what_its_parent_needs() -> None:
    boss = AgentSpec("boss", "scripted", tools=(PAY,))
    alone, under = Standing(POLICY, (APPROVED,)), replace(APPROVED, id="8", agent="boss")
    assert Bounded(alone, (boss,)).judge(asked()).effect == "ask"
    both = Standing(POLICY, (APPROVED, under))
    assert Bounded(both, (boss,)).judge(asked()).effect == "allow"
    limited = Standing(POLICY, (APPROVED, replace(under, uses_per_session=5)))
    assert Bounded(limited, (boss,)).judge(asked()).effect == "ask", "nobody would count"


def test_it_is_said_why_a_call_would_not_be_let_through() -> None:
    assert why_not(APPROVED, POLICY, asked()) is None
    assert why_not(APPROVED, POLICY, asked(to="bob")) == "the arguments are not like these"
    assert "'much' says deny" in (why_not(APPROVED, POLICY, asked(9_001)) or "")


@pytest.mark.parametrize(
    "value,said",
    [
        ([], "'arguments': found a list of 0"),
        ([{"path": "to"}], "found none, expected exactly one of"),
        ([{"path": "to", "over": "x"}], "'over': found 'x', expected a number"),
        ([{"path": "to", "equals": "\ud800"}], "expected texts in Unicode"),
        ([{"path": "to", "like": "x"}], "found the key 'like'"),
    ],
)
def test_predicates_are_read_as_those_of_a_rule(value: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        read_predicates(value, "here")
    assert str(wrong.value).startswith("here: ")
    assert said in str(wrong.value)
