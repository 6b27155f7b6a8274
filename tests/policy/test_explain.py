"""Why a verdict is what it is: of every rule, which condition did not hold."""

from __future__ import annotations

from random import Random

import pytest

from perdure.core.gate import Asked
from perdure.policy.explain import explain
from tests.policy.desk import allow, ask, call, deny, policy
from tests.policy.made_up import made_up_call, made_up_policy

CENTS = {"path": "order.cents", "over": 1000}

# a condition, a call for which it does not hold, and what is said of it
FAILED = [
    ({"tenants": ["acme", "b*"]}, call(), "tenants: it is default, not acme or b*"),
    ({"agents": ["boss"]}, call(), "agents: it is support, not boss"),
    ({"tools": ["mail"]}, call(), "tools: it is pay, not mail"),
    ({"effects": ["read"]}, call(), "effects: it is once, not read"),
    ({"capabilities": ["net.*"]}, call(), "capabilities: the tool needs none, not net.*"),
    (
        {"capabilities": ["net.*"]},
        call(needs=("fs.read", "git.push")),
        "capabilities: the tool needs fs.read and git.push, not net.*",
    ),
    ({"arguments": [CENTS]}, call(order={"cents": 7}), "order.cents over 1000: it is 7"),
    (
        {"arguments": [{"path": "to", "one_of": ["a", True]}]},
        call(to="b"),
        "to one of 'a' or true: it is 'b'",
    ),
    ({"arguments": [{"path": "to", "present": True}]}, call(), "to present true: it is nothing"),
    (
        {"hours": {"from": "14:00", "days": ["mon", "tue"], "utc_offset_minutes": 60}},
        call(),
        "hours: it is mon 13:00, not 14:00 to 24:00 on mon, tue",
    ),
]


@pytest.mark.parametrize(("condition", "asked", "said"), FAILED)
def test_a_condition_that_does_not_hold_is_said(
    condition: dict[str, object], asked: Asked, said: str
) -> None:
    [read] = explain(policy(deny(**condition)), asked).rules
    assert (read.holds, read.failed) == (False, (said,))


def test_every_rule_is_there_in_its_order() -> None:
    gate = policy(allow("a", tools=["mail"]), ask("b"), deny("c", agents=["boss"], tools=["mail"]))
    found = explain(gate, call(needs=("net.http", "fs.read"), grants=("fs.*",)))
    assert (found.verdict.rule, found.needs, found.ungranted) == (
        "b",
        ("net.http", "fs.read"),
        ("net.http",),
    )
    assert [(read.rule, read.holds, len(read.failed)) for read in found.rules] == [
        ("a", False, 1),
        ("b", True, 0),
        ("c", False, 2),
    ]


def test_what_could_not_be_judged_is_said_where_it_counts_against_the_call() -> None:
    strict, lenient = explain(
        policy(deny(arguments=[CENTS]), allow(arguments=[CENTS])), call()
    ).rules
    assert strict.holds
    assert strict.unjudged == ("order.cents over 1000: it is nothing, which cannot be judged",)
    assert (lenient.failed, lenient.unjudged) == (("order.cents over 1000: it is nothing",), ())


def test_an_explanation_agrees_with_the_verdict() -> None:
    """Of made-up calls: the rule that decided holds, and no denial that holds is passed over."""
    chance = Random(9)
    for _ in range(100):
        gate = made_up_policy(chance)
        for _ in range(10):
            asked = made_up_call(chance)
            found = explain(gate, asked)
            holding = {read.rule: read.verdict for read in found.rules if read.holds}
            assert found.verdict == gate.judge(asked)
            if found.verdict.rule.startswith("r"):
                assert holding[found.verdict.rule] == found.verdict.effect
            assert ("deny" in holding.values()) <= (found.verdict.effect == "deny")
