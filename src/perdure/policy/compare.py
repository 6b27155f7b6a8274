"""What changes from one policy to another: rules, and verdicts on calls made up for the purpose.

The calls are made of the constants in both policies. Around each rule one thing is changed at a
time, and where two rules speak of the same call, they are made to meet. That finds what a rule was
changed for; it is no proof that nothing else changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import msgspec

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import Asked, Verdict
from perdure.policy.conditions import outcome, windows
from perdure.policy.policy import Policy
from perdure.policy.regions import examples, in_that_week, minutes, predicates, values
from perdure.policy.rules import Predicate, Rule

REQUESTS_MAX = 200_000
_ANYTHING: dict[str, Any] = {
    "tenants": "default",
    "agents": "agent",
    "tools": "tool",
    "capabilities": (),
    "effects": "once",
    "grants": ("*",),
    "minute": 0,
}
"""A call of which no rule has anything to say, unless it speaks of every call."""

Point = dict[str, Any]
"""A call as what is chosen for each thing that rules look at; arguments under `_argument`."""


class RulesChanged(msgspec.Struct, frozen=True):
    """Which rules differ, by their ids; of the changed ones, in which keys."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]
    default: bool


class Change(msgspec.Struct, frozen=True):
    """A verdict that became another one: on which call for example, and on how many."""

    old: Verdict
    new: Verdict
    example: Asked
    calls: int


class Comparison(msgspec.Struct, frozen=True):
    """The changes of verdicts, more leave before less, and how many calls were looked at."""

    changes: tuple[Change, ...]
    calls: int


def changed_rules(old: Policy, new: Policy) -> RulesChanged:
    """Return how the rules of two policies differ."""
    before = {rule.id: rule for rule in old.document.rule}
    after = {rule.id: rule for rule in new.document.rule}
    changed = {
        name: tuple(
            key
            for key in Rule.__struct_fields__
            if getattr(before[name], key) != getattr(after[name], key)
        )
        for name in before
        if name in after and before[name] != after[name]
    }
    return RulesChanged(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=changed,
        default=old.document.default != new.document.default,
    )


def compare(old: Policy, new: Policy, also: Iterable[Asked] = ()) -> Comparison:
    """Return which verdicts differ, on calls made up from both policies and on some given ones."""
    rules = (*old.document.rule, *new.document.rule)
    first: dict[tuple[str, ...], tuple[Verdict, Verdict, Asked]] = {}
    counted: Counter[tuple[str, ...]] = Counter()
    calls = 0
    for asked in islice(chain(also, requests(rules)), REQUESTS_MAX):
        calls += 1
        was, now = old.judge(asked), new.judge(asked)
        if (was.effect, was.terms) != (now.effect, now.terms):
            key = (was.effect, was.rule, now.effect, now.rule)
            first.setdefault(key, (was, now, asked))
            counted[key] += 1
    changes = [Change(*first[key], counted[key]) for key in first]
    order = ("allow", "ask", "deny")
    changes.sort(key=lambda change: (order.index(change.new.effect), -change.calls))
    return Comparison(tuple(changes), calls)


def requests(rules: tuple[Rule, ...]) -> Iterator[Asked]:
    """Return calls around each rule and where two rules meet, made of the constants in all."""
    axes = _axes(rules)
    paths = tuple(predicates(rules))
    bases = [_base(rule) for rule in rules]
    for base in ({}, *bases):
        yield _asked({**_ANYTHING, **base}, paths)
        for other in bases:
            yield _asked({**_ANYTHING, **base, **other}, paths)
        for key, choices in axes.items():
            for choice in choices:
                yield _asked({**_ANYTHING, **base, key: choice}, paths)


def _axes(rules: tuple[Rule, ...]) -> dict[str, list[Any]]:
    """Return what may be chosen for each thing that rules look at."""
    axes: dict[str, list[Any]] = {key: _some(rules, key) for key in ("tenants", "agents", "tools")}
    capabilities = [(one,) for one in _some(rules, "capabilities")]
    axes["capabilities"] = [(), *capabilities]
    axes["effects"] = ["read", "idempotent", "once"]
    axes["grants"] = [(), ("*",), *capabilities]
    axes["minute"] = minutes(rules)
    for path, asked in predicates(rules).items():
        axes[_argument(path)] = values(asked)
    return axes


def _some(rules: tuple[Rule, ...], key: str) -> list[str]:
    patterns = dict.fromkeys(pattern for rule in rules for pattern in getattr(rule, key))
    return list(dict.fromkeys(one for pattern in patterns for one in examples(pattern)))


def _base(rule: Rule) -> Point:
    """Return what has to be chosen so that a rule holds, if that is found."""
    chosen: Point = {}
    for key in ("tenants", "agents", "tools"):
        if patterns := getattr(rule, key):
            chosen[key] = examples(patterns[0])[0] or "x"
    if rule.capabilities:
        chosen["capabilities"] = (examples(rule.capabilities[0])[0] or "x",)
    if rule.effects:
        chosen["effects"] = rule.effects[0]
    if rule.hours:
        chosen["minute"] = windows(rule.hours)[0][0]
    for path, asked in predicates((rule,)).items():
        chosen[_argument(path)] = fitting(asked)
    return chosen


def _argument(path: str) -> str:
    """Return the key of an argument, which may be called as anything else here is."""
    return f"argument {path}"


def fitting(asked: tuple[Predicate, ...]) -> Any:
    """Return a value of which all predicates hold; None if none was found, or if nothing does."""
    judges = [outcome(predicate) for predicate in asked]
    return next((one for one in values(asked) if all(judge(one) for judge in judges)), None)


def _asked(point: Point, paths: tuple[str, ...]) -> Asked:
    arguments: dict[str, Any] = {}
    for path in paths:
        if (value := point.get(_argument(path))) is not None:
            _put(arguments, path.split("."), value)
    agent = AgentSpec(point["agents"], model="none", grants=point["grants"])
    tool = ToolSpec(
        point["tools"], "", {}, effect=point["effects"], capabilities=point["capabilities"]
    )
    return Asked(point["tenants"], agent, tool, arguments, in_that_week(point["minute"]))


def _put(arguments: dict[str, Any], parts: list[str], value: Any) -> None:
    """Put a value where a path leads, unless something else is in the way."""
    inside: Any = arguments
    for part in parts[:-1]:
        inside = inside.setdefault(part, {})
        if not isinstance(inside, dict):
            return
    inside.setdefault(parts[-1], value)
