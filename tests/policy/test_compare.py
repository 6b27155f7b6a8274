"""What changes from one policy to another: rules, and verdicts on calls made of the constants."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from perdure.policy.compare import changed_rules, compare, requests
from tests.policy.desk import allow, ask, call, deny, policy, says
from tests.policy.made_up import made_up_policy

CENTS = [{"path": "order.cents", "over": 1000}]
BASE = ask("large", tools=["pay"], arguments=CENTS, roles=["finance"])


def test_rules_are_told_apart_by_their_ids() -> None:
    old = policy(allow("a"), ask("b"), deny("c"))
    new = policy(allow("a"), ask("b", needed=2, reason="two"), deny("d"), default="deny")
    found = changed_rules(old, new)
    assert (found.added, found.removed, found.default) == (("d",), ("c",), True)
    assert found.changed == {"b": ("reason", "needed")}


# what becomes of BASE, and how a verdict changes by it
CHANGES: list[tuple[dict[str, Any], str, str]] = [
    ({"arguments": [{"path": "order.cents", "over": 1001}]}, "ask large", "allow declared"),
    ({"arguments": [{"path": "order.cents", "at_least": 1000}]}, "allow declared", "ask large"),
    ({"arguments": [{"path": "cents", "over": 1000}]}, "ask large", "allow declared"),
    ({"tools": ["pay*"]}, "allow declared", "ask large"),
    ({"tenants": ["acme"]}, "ask large", "allow declared"),
    ({"agents": ["support"]}, "ask large", "allow declared"),
    ({"effects": ["read"]}, "ask large", "allow declared"),
    ({"capabilities": ["bank.*"]}, "ask large", "allow declared"),
    ({"hours": {"from": "09:00", "to": "09:01"}}, "ask large", "allow declared"),
    ({"arguments": [{"path": "tools", "over": 1000}]}, "ask large", "allow declared"),
    ({"roles": ["board"]}, "ask large", "ask large"),
    ({"expires_minutes": 5}, "ask large", "ask large"),
    ({"escalate_minutes": 5, "escalate_to": ["board"]}, "ask large", "ask large"),
    ({"verdict": "deny", "roles": None}, "ask large", "deny large"),
]


@pytest.mark.parametrize(("change", "was", "now"), CHANGES)
def test_a_changed_condition_shows_in_a_verdict(change: dict[str, Any], was: str, now: str) -> None:
    rule = {key: value for key, value in {**BASE, **change}.items() if value is not None}
    old, new = policy(BASE), policy(rule)
    found = compare(old, new)
    pairs = {(says(each.old), says(each.new)): each for each in found.changes}
    example = pairs[was, now].example
    assert (says(old.judge(example)), says(new.judge(example))) == (was, now)
    assert found.calls >= pairs[was, now].calls > 0


def test_a_change_of_the_default_shows_in_a_verdict() -> None:
    found = compare(policy(BASE), policy(BASE, default="deny")).changes
    assert ("allow declared", "deny not_granted") in {(says(c.old), says(c.new)) for c in found}


def test_a_rule_that_was_in_the_shadow_of_another_is_found_where_they_meet() -> None:
    """Both speak of other things; only a call of which both speak shows the difference."""
    wide = deny("wide", tools=["pay"])
    narrow = allow("narrow", agents=["boss"], capabilities=["bank"])
    found = compare(policy(wide, narrow), policy(narrow)).changes
    assert ("deny wide", "allow narrow") in {(says(each.old), says(each.new)) for each in found}


def test_more_leave_comes_first() -> None:
    old = policy(ask("a", tools=["x"]), allow("b", tools=["y"]))
    found = compare(old, policy(allow("a", tools=["x"]), deny("b", tools=["y"])))
    assert [each.new.effect for each in found.changes] == ["allow", "deny"]


def test_nothing_changes_where_nothing_changed() -> None:
    chance = Random(10)
    for _ in range(20):
        gate = made_up_policy(chance)
        assert compare(gate, gate).changes == ()


def test_a_given_call_is_judged_too() -> None:
    """Here one to which no constant leads: a text that two globs match."""
    both = [{"path": "to", "matches": "a*"}, {"path": "to", "matches": "*b"}]
    old = policy(allow(capabilities=["bank"], arguments=both))
    never = [{"path": "to", "present": True}, {"path": "to", "present": False}]
    new = policy(deny(arguments=never))
    assert compare(old, new).changes == ()
    [change] = compare(old, new, [call(needs=("bank",), to="a-b")]).changes
    assert (says(change.old), says(change.new)) == ("allow yes", "deny not_granted")


def test_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.policy.compare.REQUESTS_MAX", 50)
    assert compare(policy(BASE), policy(BASE)).calls == 50


def test_around_a_rule_calls_fall_on_both_sides() -> None:
    """For every condition there is a call of which it fails alone, and one that meets all."""
    rule = {
        **BASE,
        "tenants": ["a*"],
        "agents": ["b"],
        "effects": ["once"],
        "hours": {"to": "09:00"},
    }
    gate = policy(rule)
    [ruling] = gate.rulings
    failing = []
    for asked in requests(gate.document.rule):
        about = gate.subject(asked.tenant, asked.agent, asked.tool)
        fixed = [key for key, holds in ruling.fixed.items() if not holds(about)]
        rest = [
            key for key, holds in ruling.changing.items() if not holds(asked.arguments, asked.at)
        ]
        failing.append((*fixed, *rest))
    alone = {each[0] for each in failing if len(each) == 1}
    assert () in failing
    assert alone == {"tenants", "agents", "tools", "effects", "arguments[0]", "hours"}
