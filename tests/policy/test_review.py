"""What is allowed in a policy and probably not meant."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.policy.review import review
from tests.policy.desk import allow, ask, deny, policy

REFUND = ToolSpec(
    "refund", "", {"properties": {"cents": {}, "order": {}}}, capabilities=("bank.refund",)
)
LOOK = ToolSpec("look", "", {"properties": {}}, effect="read")
SUPPORT = AgentSpec("support", model="m", tools=(REFUND, LOOK), grants=("bank.*",))


def on(*predicates: dict[str, Any]) -> list[dict[str, Any]]:
    """Return predicates on one path."""
    return [{"path": "cents", **predicate} for predicate in predicates]


@pytest.mark.parametrize(
    "predicates",
    [
        on({"over": 10}, {"under": 10}),
        on({"over": 10}, {"at_most": 10}),
        on({"equals": "a"}, {"equals": "b"}),
        on({"equals": "a"}, {"matches": "b*"}),
        on({"matches": "b*"}, {"over": 1}),
        on({"present": False}, {"equals": 1}),
    ],
)
def test_an_allow_rule_that_contradicts_itself_never_matches(predicates: Any) -> None:
    [warning] = review(policy(allow("never", arguments=predicates)))
    assert warning == "rule 'never' can never match: nothing is all that it asks of 'cents'"


@pytest.mark.parametrize(
    "predicates",
    [
        on({"over": 10}, {"under": 11}),
        on({"at_least": 10}, {"at_most": 10}),
        on({"matches": "a*"}, {"matches": "*b"}),
        on({"one_of": ["a", "b"]}, {"matches": "b*"}),
        on({"present": False}),
    ],
)
def test_a_rule_that_may_match_is_left_alone(predicates: Any) -> None:
    assert review(policy(allow(arguments=predicates))) == []


def test_a_denial_may_match_what_cannot_be_judged() -> None:
    assert review(policy(deny(arguments=on({"over": 10}, {"under": 10})))) == []
    never = on({"present": True}, {"present": False})
    assert len(review(policy(deny(arguments=never)))) == 1


def test_a_rule_that_denies_every_call_leaves_nothing_to_the_others() -> None:
    assert review(policy(allow(), deny("all"))) == [
        "rule 'all' denies every call: no other rule matters"
    ]


def warnings(*rules: dict[str, Any], agent: AgentSpec = SUPPORT, **more: Any) -> list[str]:
    return review(policy(*rules, **more), [agent])


def test_a_rule_that_speaks_of_no_tool_is_named() -> None:
    said = "rule 'typo' can never match the given agents: no tool of theirs is what it speaks of"
    for conditions in (
        {"tools": ["refnd"]},
        {"agents": ["suport"]},
        {"capabilities": ["net.*"]},
        {"effects": ["idempotent"]},
        {"tools": ["look"], "capabilities": ["bank.*"]},
    ):
        assert warnings(allow("typo", **conditions)) == [said]
    assert warnings(allow("right", tools=["ref*"], tenants=["anybody"])) == []


def test_a_capability_that_nobody_grants_is_named() -> None:
    poor = AgentSpec("poor", model="m", tools=(REFUND, LOOK))
    said = "nobody grants {}, which the tool '{}' of agent 'poor' needs: every call of it is denied"
    assert warnings(deny(tools=["look"]), agent=poor) == [said.format("bank.refund", "refund")]
    assert warnings(ask(tools=["refund"]), agent=poor) == []
    assert warnings(ask(tools=["refund"]), agent=poor, default="deny") == [
        said.format("tool:look", "look")
    ]


def test_an_argument_that_a_tool_has_not_is_named_where_that_counts_against_it() -> None:
    large = [{"path": "cents.value", "over": 10}]
    assert warnings(deny(tools=["refund"], arguments=large)) == []
    assert warnings(allow(arguments=large)) == []
    said = (
        "rule 'wide' looks at 'cents.value', which the tool 'look' of agent 'support' has not: "
        "what is missing counts against the call"
    )
    assert warnings(deny("wide", arguments=large)) == [said]
