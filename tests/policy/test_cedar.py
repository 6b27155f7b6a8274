"""Two engines, one policy: Cedar says what ours says.

`python -m tests.policy.test_cedar CALLS` compares them on so many calls, in half a minute for each
hundred thousand.
"""

from __future__ import annotations

import sys
from random import Random

import pytest

from tests.policy.desk import allow, call, deny, policy
from tests.policy.made_up import made_up_call, made_up_policy

cedar = pytest.importorskip("perdure.adapters.policy.cedar", exc_type=ModuleNotFoundError)

CALLS = 4_000
CALLS_PER_POLICY = 50


def differences(calls: int, seed: int) -> dict[str, int]:
    """Return how often the engines agreed on each verdict; fail on the first difference."""
    chance = Random(seed)
    agreed: dict[str, int] = {}
    for _ in range(calls // CALLS_PER_POLICY):
        ours = made_up_policy(chance)
        theirs = cedar.CedarGate(ours)
        for _ in range(CALLS_PER_POLICY):
            asked = made_up_call(chance)
            verdict = ours.judge(asked)
            assert theirs.judge(asked) == verdict, (theirs.text, asked)
            agreed[verdict.effect] = agreed.get(verdict.effect, 0) + 1
    return agreed


def test_both_engines_say_the_same() -> None:
    agreed = differences(CALLS, seed=31)
    assert sum(agreed.values()) == CALLS
    assert min(agreed[effect] for effect in ("allow", "ask", "deny")) > CALLS / 10


def test_a_difference_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one sign of the translation turned round."""
    monkeypatch.setitem(cedar._COMPARED, "over", ">=")
    with pytest.raises(AssertionError):
        differences(CALLS, seed=31)


def test_the_gate_is_that_of_its_policy() -> None:
    ours = policy(deny(tools=["pay"]))
    theirs = cedar.CedarGate(ours)
    assert (theirs.version, theirs.body) == (ours.version, ours.body)
    for asked in (call("pay"), call("mail"), call("mail", needs=("net.http",))):
        offered = theirs.offers(asked.tenant, asked.agent, asked.tool)
        assert offered is ours.offers(asked.tenant, asked.agent, asked.tool)


@pytest.mark.parametrize("text", ['a"b', "a\\", "a*b", "\n\t\0", "é\u202e\U0001f600", "${x}", "'"])
def test_whatever_a_text_says_it_is_only_text(text: str) -> None:
    rules = (
        deny(
            arguments=[
                {"path": f"{text}.x", "equals": text},
                {"path": f"{text}.x", "present": True},
            ]
        ),
        allow(tools=[text.replace("*", "") + "*"]),
    )
    ours = policy(*rules)
    theirs = cedar.CedarGate(ours)
    for asked in (
        call("pay", **{text: {"x": text}}),
        call("pay", **{text: {"x": "other"}}),
        call(text.replace("*", "") + "more", **{text: {"x": "other"}}),
    ):
        assert theirs.judge(asked) == ours.judge(asked)


def test_what_cedar_cannot_read_it_raises() -> None:
    """Then the call is denied. Half of a surrogate pair is no text of Cedar's."""
    theirs = cedar.CedarGate(policy(deny(arguments=[{"path": "to", "equals": "x"}])))
    with pytest.raises((RuntimeError, ValueError)):
        theirs.judge(call(to="\ud800"))


def test_a_policy_is_a_text_of_cedars() -> None:
    """Which its own tools can read: a rule is a policy with the rule's id."""
    text = cedar.CedarGate(policy(deny("never", tools=["pay"]), allow("always"))).text
    assert text.count("forbid(") == text.count("permit(") == 1
    assert '@id("never")' in text


if __name__ == "__main__":
    print(differences(int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1))
