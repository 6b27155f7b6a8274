"""Cases: calls as data, made whole by the agents that are given."""

from __future__ import annotations

import pytest

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.errors import InvalidInput
from perdure.core.gate import Verdict
from perdure.policy.cases import read_cases, request
from tests.policy.desk import MONDAY_NOON

SUPPORT = AgentSpec(
    "support",
    model="m",
    tools=(ToolSpec("pay", "", {}, effect="idempotent", capabilities=("bank",)),),
    grants=("net.*",),
)


def test_a_case_says_what_matters_and_the_rest_is_plain() -> None:
    [case] = read_cases('[[case]]\ntool = "pay"\nexpect = "deny"', "cases.toml")
    asked = request(case, {})
    assert (asked.tenant, asked.agent.name, asked.agent.grants) == ("default", "agent", ())
    assert (asked.tool.effect, asked.tool.capabilities, asked.arguments) == ("once", (), {})
    assert asked.at == MONDAY_NOON


def test_what_a_case_does_not_say_is_taken_from_its_agent() -> None:
    text = '[[case]]\nagent = "support"\ntool = "pay"\nexpect = "deny"\n'
    given = {"support": SUPPORT}
    [case] = read_cases(text, "cases.toml")
    asked = request(case, given)
    assert (asked.agent, asked.tool) == (SUPPORT, SUPPORT.tools[0])
    [case] = read_cases(text + 'grants = []\neffect = "read"\ncapabilities = ["x"]\n', "cases.toml")
    asked = request(case, given)
    assert (asked.agent.grants, asked.tool.effect, asked.tool.capabilities) == ((), "read", ("x",))


@pytest.mark.parametrize("at", ["2026-01-05T12:00:00", "2026-01-05T13:00:00+01:00"])
def test_a_time_without_an_offset_is_in_utc(at: str) -> None:
    [case] = read_cases(f'[[case]]\ntool = "pay"\nexpect = "deny"\nat = {at}', "cases.toml")
    assert request(case, {}).at == MONDAY_NOON


def test_a_case_passes_by_its_verdict_and_by_the_rule_if_it_is_named() -> None:
    text = '[[case]]\ntool = "pay"\nexpect = "deny"\n'
    [any_rule] = read_cases(text, "")
    [that_rule] = read_cases(text + 'rule = "no"', "")
    verdicts = [Verdict("deny", "no"), Verdict("deny", "other"), Verdict("allow", "no")]
    assert [any_rule.passes(verdict) for verdict in verdicts] == [True, True, False]
    assert [that_rule.passes(verdict) for verdict in verdicts] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cases.toml: object missing required field `case`"),
        ("case = []", "cases.toml: expected `array` of length >= 1"),
        ('[[case]]\ntool = "x"', "object missing required field `expect` - at `$.case[0]`"),
        ('[[case]]\ntool = "x"\nexpect = "yes"', "invalid enum value 'yes'"),
        ('[[case]]\ntool = "x"\nexpect = "deny"\ntol = 1', "unknown field `tol`"),
        ("[[case]\n", "cases.toml: expected TOML: "),
    ],
)
def test_cases_that_are_wrong_are_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as found:
        read_cases(text, "cases.toml")
    assert said in str(found.value)


def test_a_tool_that_its_agent_has_not_is_refused() -> None:
    [case] = read_cases('[[case]]\nagent = "support"\ntool = "mail"\nexpect = "deny"', "")
    with pytest.raises(InvalidInput, match="agent 'support' has no tool 'mail', but: pay"):
        request(case, {"support": SUPPORT})
