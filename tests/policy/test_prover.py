"""Never is proved, or a call is shown: whatever the rules, the policy itself agrees."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import InvalidInput, LimitExceeded, PerdureError
from perdure.core.gate import Asked, Verdict
from perdure.policy.compare import requests
from perdure.policy.conditions import glob
from perdure.policy.policy import Policy
from tests.policy.desk import allow, ask, call, deny, policy
from tests.policy.made_up import made_up_call, made_up_policy

prover = pytest.importorskip("perdure.adapters.policy.prover", exc_type=ModuleNotFoundError)

BANK = ("bank",)


def on(path: str, **asks: Any) -> dict[str, Any]:
    """Return a predicate."""
    return {"path": path, **asks}


NEVER: list[tuple[list[dict[str, Any]], Asked]] = [
    ([deny(tools=["pay"]), allow()], call()),
    ([allow(tools=["mail"])], call(needs=BANK)),
    ([allow(arguments=[on("a", over=10), on("a", under=10)])], call(needs=BANK)),
    ([allow(arguments=[on("a", equals="xb"), on("a", matches="b*")])], call(needs=BANK)),
    ([allow(arguments=[on("a", matches="a*"), on("a", matches="b*")])], call(needs=BANK)),
    ([allow(arguments=[on("a", equals="x"), on("a.b", present=True)])], call(needs=BANK)),
    ([allow(arguments=[on("a", at_least=1)]), deny(arguments=[on("a", over=0.5)])],
     call(needs=BANK)),
    ([deny("lo", arguments=[on("a", at_most=5)]), deny("hi", arguments=[on("a", over=5)])], call()),
    ([deny("day", hours={"from": "06:00", "to": "18:00"}),
      deny("night", hours={"from": "18:00", "to": "06:00"})], call()),
    ([allow(tenants=["a*"]), deny(tenants=["*"])], call(needs=BANK)),
    ([allow("a", tenants=["a*"], capabilities=["x"]), allow("b", tenants=["b*"],
      capabilities=["y"])], call(needs=("x", "y"))),
]  # fmt: skip

POSSIBLE: list[tuple[list[dict[str, Any]], Asked, str]] = [
    ([allow()], call(needs=BANK), "allow"),
    ([ask()], call(needs=BANK), "ask"),
    ([ask(arguments=[on("a", over=10)])], call(), "allow"),
    ([ask(arguments=[on("a", over=10)]), deny(arguments=[on("a", at_most=10)])], call(), "ask"),
    ([allow(arguments=[on("a", over=1), on("a", under=2)])], call(needs=BANK), "allow"),
    ([allow(arguments=[on("a", matches="x*"), on("a", matches="*é\U0001f600")])],
     call(needs=BANK), "allow"),
    ([allow(arguments=[on("a", one_of=["b", 7]), on("a", over=1)])], call(needs=BANK), "allow"),
    ([allow(arguments=[on("a", equals=True), on("b.c.d", present=False)])],
     call(needs=BANK), "allow"),
    ([allow(arguments=[on("a", present=True), on("a.b", matches='q"\\u{41}*')])],
     call(needs=BANK), "allow"),
    ([deny("day", hours={"from": "06:00", "to": "18:00"}),
      deny("night", hours={"from": "18:01", "to": "06:00"})], call(), "allow"),
    ([allow(tenants=["a*c"]), deny(tenants=["*b*"])], call(needs=BANK), "allow"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "asked"), NEVER)
def test_never_is_proved(rules: list[dict[str, Any]], asked: Asked) -> None:
    assert prover.find(policy(*rules), asked.agent, asked.tool) is None


@pytest.mark.parametrize(("rules", "asked", "effect"), POSSIBLE)
def test_a_call_is_shown_that_may_be_made(
    rules: list[dict[str, Any]], asked: Asked, effect: str
) -> None:
    gate = policy(*rules)
    way = prover.find(gate, asked.agent, asked.tool)
    assert (way.verdict.effect, gate.judge(way.asked)) == (effect, way.verdict)
    assert (way.asked.agent, way.asked.tool) == (asked.agent, asked.tool)


def test_what_was_proved_no_call_refutes() -> None:
    """Of made-up policies: never is never, and of those around the rules no call gets through."""
    chance = Random(12)
    found = {"never": 0, "allow": 0, "ask": 0}
    for _ in range(60):
        gate = made_up_policy(chance)
        one = made_up_call(chance)
        way = prover.find(gate, one.agent, one.tool)
        found[way.verdict.effect if way else "never"] += 1
        if way is None or way.verdict.effect == "ask":
            for near in (*requests(gate.document.rule), *(made_up_call(chance) for _ in range(50))):
                asked = Asked(near.tenant, one.agent, one.tool, near.arguments, near.at)
                effect = gate.judge(asked).effect
                assert effect == "deny" or (way is not None and effect == "ask"), asked
    assert min(found.values()) > 3, found


def test_dozens_of_globs_on_one_text_are_settled_at_once() -> None:
    """Never by what includes what, a call by an example: all texts there are would take minutes."""
    bad = [deny(f"d{n}", arguments=[on("url", matches=f"*bad{n}*x*")]) for n in range(30)]
    good = allow(arguments=[on("url", matches="https://*.example.com/*")])
    none = allow(arguments=[on("url", matches="https://*bad3*x*")])
    asked = call(needs=BANK)
    way = prover.find(policy(good, *bad), asked.agent, asked.tool)
    assert way.asked.arguments == {"url": "https://.example.com/"}
    assert prover.find(policy(none, *bad), asked.agent, asked.tool) is None


GLOBS = st.text("ab*", min_size=1, max_size=6)


@given(GLOBS, GLOBS, st.text("ab", max_size=8))
def test_what_is_known_of_two_globs_is_true_of_every_text(one: str, other: str, text: str) -> None:
    matches, also = glob(one)(text), glob(other)(text)
    if prover._includes(one, other):
        assert matches or not also
    if prover._apart(one, other):
        assert not (matches and also)


@pytest.mark.parametrize(
    ("outer", "inner", "includes"),
    [("*", "a*", True), ("a*", "a*b", True), ("*b*", "a*b", True), ("a*b", "a*", False),
     ("ab*", "a*b", False), ("a*", "ab", True), ("ab", "a*", False), ("a**", "a*", True)],
)  # fmt: skip
def test_one_glob_includes_another(outer: str, inner: str, includes: bool) -> None:
    assert prover._includes(outer, inner) is includes


def test_a_proof_that_the_policy_does_not_confirm_is_an_error() -> None:
    class Contrary(Policy):
        """A policy that says otherwise than its rules."""

        def judge(self, asked: Asked) -> Verdict:
            """Deny."""
            return Verdict("deny", "contrary")

    asked = call()
    with pytest.raises(PerdureError, match="the prover and the policy disagree"):
        prover.find(Contrary(policy(allow()).document), asked.agent, asked.tool)


def test_what_is_not_settled_in_time_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that a dozen globs match at once is in no list, and takes some thinking."""
    monkeypatch.setattr(prover, "SETTLED_MS_MAX", 1)
    several = [on("a", matches=f"*p{n}*q*") for n in range(12)]
    bad = [deny(f"d{n}", arguments=[on("a", matches=f"*p{n}*p{n + 1}*")]) for n in range(11)]
    asked = call(needs=BANK)
    with pytest.raises(LimitExceeded, match="could not be settled within 1 ms"):
        prover.find(policy(allow(arguments=several), *bad), asked.agent, asked.tool)


def test_characters_that_z3_has_not_are_refused() -> None:
    asked = call()
    gate = policy(deny(arguments=[on("a", equals="\U000f0000")]))
    with pytest.raises(InvalidInput, match="it has characters of private use"):
        prover.find(gate, asked.agent, asked.tool)
