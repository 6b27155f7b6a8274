"""A child may do no more than its parents, whatever the rules."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.core.agent import AgentSpec
from perdure.core.authority import Bounded, weaker
from perdure.core.gate import Asked, Terms, Verdict
from tests.policy.desk import allow, ask, call, deny, policy, says
from tests.policy.made_up import made_up_call, made_up_policy

ROLES = ("finance", "board", "support")
NEVER = 10
TERMS = st.builds(
    Terms,
    needed=st.integers(1, 3),
    roles=st.lists(st.sampled_from(ROLES), unique=True).map(tuple),
    expires_ms=st.integers(1, 3),
).flatmap(
    lambda terms: st.builds(
        lambda ms, to: replace(terms, escalate_ms=ms, escalate_to=tuple(to)) if to else terms,
        st.integers(1, 3),
        st.lists(st.sampled_from(ROLES), unique=True),
    )
)
VERDICTS = st.one_of(
    st.builds(Verdict, st.sampled_from(("allow", "deny")), st.sampled_from("abc")),
    st.builds(Verdict, st.just("ask"), st.sampled_from("abc"), st.just("why"), TERMS),
)


def at_most(one: Verdict, other: Verdict) -> bool:
    """Say whether one verdict lets nothing through that the other would not."""
    if one.effect == "deny" or other.effect == "allow":
        return True
    if other.effect == "deny" or one.effect == "allow":
        return False
    return (
        one.terms.needed >= other.terms.needed
        and one.terms.expires_ms <= other.terms.expires_ms
        and (not other.terms.roles or len(one.terms.roles) > 0)
        and (not other.terms.roles or set(one.terms.roles) <= set(other.terms.roles))
        and set(one.terms.escalate_to) <= set(other.terms.escalate_to)
        and (one.terms.escalate_ms or NEVER) >= (other.terms.escalate_ms or 0)
    )


def worth(verdict: Verdict) -> tuple[object, ...]:
    """Return what a verdict lets through, without its names."""
    if verdict.effect != "ask":
        return (verdict.effect,)
    terms = verdict.terms
    later = (terms.escalate_ms, set(terms.escalate_to))
    return (verdict.effect, terms.needed, set(terms.roles), terms.expires_ms, later)


@given(VERDICTS, VERDICTS)
def test_the_weaker_is_at_most_both(one: Verdict, other: Verdict) -> None:
    both = weaker(one, other)
    assert at_most(both, one)
    assert at_most(both, other)


@given(VERDICTS, VERDICTS, VERDICTS)
def test_it_does_not_matter_who_is_asked_first(one: Verdict, two: Verdict, three: Verdict) -> None:
    assert worth(weaker(one, two)) == worth(weaker(two, one))
    assert worth(weaker(weaker(one, two), three)) == worth(weaker(one, weaker(two, three)))
    assert weaker(one, one) == one


@given(VERDICTS, VERDICTS)
def test_no_more_is_taken_away_than_needed(one: Verdict, other: Verdict) -> None:
    """What is at most the other stays as it is."""
    if at_most(one, other):
        assert worth(weaker(one, other)) == worth(one)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (Verdict("allow", "a"), Verdict("deny", "b"), "deny b"),
        (Verdict("ask", "a"), Verdict("allow", "b"), "ask a"),
        (Verdict("deny", "a"), Verdict("deny", "b"), "deny a"),
        (Verdict("allow", "a"), Verdict("allow", "b"), "allow a"),
        (Verdict("ask", "a"), Verdict("ask", "b", "", Terms(needed=2)), "ask b"),
    ],
)
def test_who_is_named(one: Verdict, other: Verdict, found: str) -> None:
    assert says(weaker(one, other)) == found


def test_questions_to_different_people_cannot_be_answered() -> None:
    one = Verdict("ask", "a", "", Terms(roles=("finance", "support")))
    other = Verdict("ask", "b", "", Terms(needed=2, roles=("board", "support")))
    assert weaker(one, other).terms == Terms(needed=2, roles=("support",))
    nobody = weaker(one, Verdict("ask", "c", "", Terms(roles=("board",))))
    assert (says(nobody), nobody.reason) == (
        "deny a",
        "the rules 'a' and 'c' ask people of different roles",
    )


@given(st.integers(0, 2**32))
def test_a_child_may_do_no_more_than_any_of_its_parents(seed: int) -> None:
    """Over policies, calls and families of all kinds; and what it is shown, they would be."""
    chance = Random(seed)
    gate = made_up_policy(chance)
    asked = made_up_call(chance)
    parents = tuple(made_up_call(chance).agent for _ in range(chance.randint(0, 3)))
    bounded = Bounded(gate, parents)
    verdict = bounded.judge(asked)
    for one in (asked.agent, *parents):
        own = gate.judge(Asked(asked.tenant, one, asked.tool, asked.arguments, asked.at))
        assert at_most(verdict, own)
        if bounded.offers(asked.tenant, asked.agent, asked.tool):
            assert gate.offers(asked.tenant, one, asked.tool)
        else:
            assert verdict.effect == "deny"


def test_a_grandchild_is_bounded_by_all_above_it() -> None:
    gate = policy(ask(agents=["boss"]), deny(agents=["careful"]), allow())
    boss, careful = AgentSpec("boss", model="m"), AgentSpec("careful", model="m")
    asked = call()
    assert says(Bounded(gate, ()).judge(asked)) == "allow yes"
    assert says(Bounded(gate, (boss,)).judge(asked)) == "ask who"
    assert says(Bounded(Bounded(gate, (careful,)), (boss,)).judge(asked)) == "deny no"
    assert says(Bounded(gate, (boss, careful)).judge(asked)) == "deny no"
    assert Bounded(gate, (boss,)).version == gate.version


def test_what_a_parent_was_not_granted_it_cannot_hand_down() -> None:
    gate = policy(deny(tools=["mail"]))
    asked = call(needs=("net.http",), grants=("net.*",))
    parent = AgentSpec("parent", model="m", grants=("fs.*",))
    verdict = Bounded(gate, (parent,)).judge(asked)
    assert says(verdict) == "deny not_granted"
    assert "the agent 'parent' was not granted" in verdict.reason
    assert not Bounded(gate, (parent,)).offers(asked.tenant, asked.agent, asked.tool)
