"""When a condition holds: globs, predicates on arguments, hours."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.policy.conditions import glob
from perdure.policy.rules import OPERATORS
from tests.policy.desk import allow, ask, call, deny, policy, says


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("pay", ("pay",), ("", "Pay", "pay ", "payroll", "prepay")),
        ("*", ("", "pay", "a\nb"), ()),
        ("pay*", ("pay", "payroll"), ("prepay", "pa")),
        ("*pay", ("pay", "prepay"), ("payroll",)),
        ("a*a", ("aa", "aba"), ("a", "ab")),
        ("a*b*c", ("abc", "a-b-c", "abbcc"), ("acb", "ac")),
        ("*a*b*", ("ab", "xaxbx"), ("ba",)),
        ("a**b", ("ab", "axb"), ("a",)),
        ("[a-z].?", ("[a-z].?",), ("b.c", "bcd")),
        ("https://*.example.com/*", ("https://a.example.com/b",), ("https://example.com/b",)),
    ],
)
def test_a_star_is_anything_and_the_rest_is_itself(
    pattern: str, matching: tuple[str, ...], other: tuple[str, ...]
) -> None:
    matches = glob(pattern)
    assert [text for text in matching if not matches(text)] == []
    assert [text for text in other if matches(text)] == []


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=12))
def test_globs_are_the_regular_expressions_they_look_like(pattern: str, text: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert glob(pattern)(text) == (re.fullmatch(expression, text) is not None)


def test_a_glob_with_many_stars_is_no_trap() -> None:
    """A regular expression of this shape would not come back."""
    assert not glob("*a" * 90 + "*b")("a" * 100_000)


# what a predicate asks, the values of which it is true, false, and which it cannot judge
PREDICATES: list[tuple[dict[str, Any], list[Any], list[Any], list[Any]]] = [
    ({"over": 10}, [11, 10.5, 2**80], [10, 10.0, -5], ["11", True, [11], {}, None]),
    ({"at_least": 10}, [10, 10.0, 11], [9, 9.99], ["10", False, None]),
    ({"under": 10.5}, [10, -(2**80)], [10.5, 11], ["1", None]),
    ({"at_most": 10}, [10, 9.5], [10.5], ["1", None]),
    ({"equals": 1}, [1, 1.0], [2], [True, "1", [1], None]),
    ({"equals": True}, [True], [False], [1, "true", None]),
    ({"equals": "yes"}, ["yes"], ["no", "", "Yes"], [True, 1, ["yes"], None]),
    ({"equals": ""}, [""], ["x"], [0, False, None]),
    ({"one_of": ["a", 7]}, ["a", 7, 7.0], ["b", 8], [True, [], None]),
    ({"matches": "/etc/*"}, ["/etc/passwd"], ["/tmp/etc/", ""], [["/etc/passwd"], 7, None]),
    ({"present": True}, [0, "", False, [], {}], [None], []),
    ({"present": False}, [None], [0, "", False, [], {}], []),
    ({"over": 0}, [], [], [float("nan")]),
]


@pytest.mark.parametrize(("asked", "true", "false", "unknown"), PREDICATES)
def test_what_cannot_be_judged_counts_against_the_call(
    asked: dict[str, Any], true: list[Any], false: list[Any], unknown: list[Any]
) -> None:
    arguments = [{"path": "order.value", **asked}]
    gates = [policy(rule(arguments=arguments)) for rule in (allow, ask, deny)]

    def holds(value: Any) -> list[bool]:
        found = [gate.judge(call(order={"value": value})) for gate in gates]
        return [verdict.rule != "declared" for verdict in found]

    assert [value for value in true if holds(value) != [True] * 3] == []
    assert [value for value in false if holds(value) != [False] * 3] == []
    assert [value for value in unknown if holds(value) != [False, True, True]] == []


def test_every_operator_is_in_the_table() -> None:
    assert {name for asked, *_ in PREDICATES for name in asked} == set(OPERATORS)


@pytest.mark.parametrize("arguments", [{}, {"order": None}, {"order": "7"}, {"order": [{"id": 7}]}])
def test_a_path_goes_through_objects_only(arguments: dict[str, Any]) -> None:
    """Where it leads nowhere, there is nothing."""
    missing = policy(allow(arguments=[{"path": "order.id", "present": False}]))
    assert says(missing.judge(call(**arguments))) == "allow yes"


def test_null_is_nothing() -> None:
    gate = policy(deny(arguments=[{"path": "approver", "present": False}]))
    assert says(gate.judge(call(approver=None))) == "deny no"


def test_optional_arguments_are_judged_where_they_are_there() -> None:
    """The way out of "what is missing counts against the call"."""
    there = {"path": "mode", "present": True}
    gate = policy(deny(arguments=[there, {"path": "mode", "equals": "force"}]))
    assert says(gate.judge(call())) == "allow declared"
    assert says(gate.judge(call(mode="force"))) == "deny no"
    assert says(gate.judge(call(mode=["force"]))) == "deny no"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


# hours, times at which they hold, times at which they do not (2026-01-05 is a Monday; UTC)
HOURS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"from": "09:00", "to": "17:00"},
        ["2026-01-05T09:00", "2026-01-11T16:59:59.999"],
        ["2026-01-05T08:59:59.999", "2026-01-05T17:00"],
    ),
    (
        {"from": "22:00", "to": "06:00", "days": ["fri"]},
        ["2026-01-09T22:00", "2026-01-10T05:59"],
        ["2026-01-09T05:00", "2026-01-10T06:00", "2026-01-10T22:00"],
    ),
    (
        {"from": "22:00", "to": "06:00", "days": ["sun"]},
        ["2026-01-11T23:00", "2026-01-05T05:59", "2026-01-12T00:00"],
        ["2026-01-05T22:00", "2026-01-11T05:00"],
    ),
    ({"days": ["sat", "sun"]}, ["2026-01-10T00:00", "2026-01-11T23:59"], ["2026-01-12T00:00"]),
    ({"from": "12:00"}, ["2026-01-05T23:59"], ["2026-01-06T00:00", "2026-01-06T11:59"]),
    (
        {"from": "09:00", "to": "10:00", "days": ["mon"], "utc_offset_minutes": 600},
        ["2026-01-04T23:00", "2026-01-04T23:59"],
        ["2026-01-05T09:00", "2026-01-05T00:00"],
    ),
    (
        {"from": "20:00", "days": ["sun"], "utc_offset_minutes": -330},
        ["2026-01-05T01:30", "2026-01-05T05:29"],
        ["2026-01-05T01:29", "2026-01-05T05:30", "2026-01-12T05:30"],
    ),
    ({"days": ["thu"]}, ["1970-01-01T00:00", "1969-12-25T12:00"], ["1970-01-02T00:00"]),
]


@pytest.mark.parametrize(("hours", "inside", "outside"), HOURS)
def test_hours_are_those_of_a_clock_with_an_offset(
    hours: dict[str, Any], inside: list[str], outside: list[str]
) -> None:
    gate = policy(deny(hours=hours))
    assert {says(gate.judge(call(at=ms(time)))) for time in inside} == {"deny no"}
    assert {says(gate.judge(call(at=ms(time)))) for time in outside} == {"allow declared"}
