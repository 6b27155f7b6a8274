"""When a rule holds: each of its conditions as a function, with its name in the file.

A predicate on an argument has three outcomes: it holds, it does not, or it cannot be judged, since
the value is missing or of another kind. What cannot be judged is not let through: it counts as met
in a rule that denies or asks, and as not met in one that allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import Any, NamedTuple

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.policy.rules import DAYS, Hours, Predicate, Rule, operator

DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
_EPOCH_MINUTE = 3 * DAY_MINUTES
"""1970 began on a Thursday; weeks begin on Monday."""

Matches = Callable[[str], bool]
Fixed = Callable[["Subject"], bool]
Changing = Callable[[Mapping[str, Any], int], bool]
"""What depends on the arguments of a call, or on when it is made (in milliseconds since 1970)."""
Outcome = bool | None
"""None: it cannot be judged."""

_KINDS = {type(None): "nothing", bool: "flag", int: "number", float: "number", str: "text"}


class Subject(NamedTuple):
    """What of a call is known before its arguments and its time."""

    tenant: str
    agent: str
    tool: str
    effect: str
    needs: tuple[str, ...]


def subject(tenant: str, agent: AgentSpec, tool: ToolSpec, named: bool) -> Subject:
    """Return what is known of a call; if `named`, one without capabilities needs `tool:NAME`."""
    needs = tool.capabilities
    if named and not needs:
        needs = (f"tool:{tool.name}",)
    return Subject(tenant, agent.name, tool.name, tool.effect, needs)


# ------------------------------------------------------------------------------------------- globs


def glob(pattern: str) -> Matches:
    """Return what says whether a text matches: `*` is any characters, the rest is itself.

    It takes time in proportion to the text: after its beginning and end, the parts between stars
    are found from left to right.
    """
    if "*" not in pattern:
        return pattern.__eq__
    first, *middle, last = pattern.split("*")
    edges = len(first) + len(last)
    inside = [part for part in middle if part]
    if not inside:
        return lambda text: len(text) >= edges and text.startswith(first) and text.endswith(last)

    def matches(text: str) -> bool:
        if len(text) < edges or not text.startswith(first) or not text.endswith(last):
            return False
        at, end = len(first), len(text) - len(last)
        for part in inside:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return matches


def any_glob(patterns: tuple[str, ...]) -> Matches:
    """Return what says whether a text matches one of several globs."""
    every = [glob(pattern) for pattern in patterns]
    return lambda text: any(matches(text) for matches in every)


# ------------------------------------------------------------------------------------ fixed facts


def fixed(rule: Rule) -> dict[str, Fixed]:
    """Return the conditions of a rule that neither arguments nor time can change, by their keys."""
    found: dict[str, Fixed] = {}
    if rule.tenants:
        tenants = any_glob(rule.tenants)
        found["tenants"] = lambda about: tenants(about.tenant)
    if rule.agents:
        agents = any_glob(rule.agents)
        found["agents"] = lambda about: agents(about.agent)
    if rule.tools:
        tools = any_glob(rule.tools)
        found["tools"] = lambda about: tools(about.tool)
    if rule.capabilities:
        capabilities = any_glob(rule.capabilities)
        found["capabilities"] = lambda about: any(map(capabilities, about.needs))
    if rule.effects:
        effects = rule.effects
        found["effects"] = lambda about: about.effect in effects
    return found


def changing(rule: Rule) -> dict[str, Changing]:
    """Return the other conditions of a rule: `arguments[0]` and so on, and `hours`."""
    found: dict[str, Changing] = {}
    for number, predicate in enumerate(rule.arguments):
        found[f"arguments[{number}]"] = on_argument(predicate, rule.verdict != "allow")
    if rule.hours is not None:
        spans = windows(rule.hours)
        found["hours"] = lambda arguments, at: within(spans, minute_of_week(at))
    return found


def on_argument(predicate: Predicate, if_unknown: bool) -> Changing:
    """Return what says whether a predicate holds; `if_unknown` where it cannot be judged."""
    judge = outcome(predicate)
    parts = tuple(predicate.path.split("."))

    def holds(arguments: Mapping[str, Any], at: int) -> bool:
        judged = judge(value_at(arguments, parts))
        return if_unknown if judged is None else judged

    return holds


# -------------------------------------------------------------------------------------- arguments


def value_at(arguments: Mapping[str, Any], parts: tuple[str, ...]) -> Any:
    """Return what a path leads to; None if there is nothing, or null."""
    value: Any = arguments
    for part in parts:
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def kind_of(value: Any) -> str:
    """Return what predicates tell apart: nothing, flag, number, text, or other."""
    kind = _KINDS.get(type(value), "other")
    return "other" if kind == "number" and isinstance(value, float) and math.isnan(value) else kind


def outcome(predicate: Predicate) -> Callable[[Any], Outcome]:
    """Return what judges the value at a predicate's path."""
    name = operator(predicate)
    wanted = getattr(predicate, name)
    if name == "present":
        return lambda value: (value is not None) is wanted
    if name == "matches":
        matches = glob(wanted)
        return lambda value: matches(value) if isinstance(value, str) else None
    if name in ("equals", "one_of"):
        return _among(wanted if name == "one_of" else (wanted,))
    return _compared(name, wanted)


def _among(wanted: tuple[Any, ...]) -> Callable[[Any], Outcome]:
    """True and 1 are equal in Python, and not in JSON: constants are kept by their kind."""
    by_kind: dict[str, set[Any]] = {}
    for constant in wanted:
        by_kind.setdefault(kind_of(constant), set()).add(constant)

    def among(value: Any) -> Outcome:
        constants = by_kind.get(kind_of(value))
        return None if constants is None else value in constants

    return among


def _compared(name: str, bound: float) -> Callable[[Any], Outcome]:
    compare = {"over": gt, "at_least": ge, "under": lt, "at_most": le}[name]
    return lambda value: compare(value, bound) if kind_of(value) == "number" else None


# ------------------------------------------------------------------------------------------- hours


def minute_of_week(at: int) -> int:
    """Return the minute of the week, from Monday 00:00 UTC; `at` is in milliseconds since 1970."""
    return (at // 60_000 + _EPOCH_MINUTE) % WEEK_MINUTES


def windows(hours: Hours) -> tuple[tuple[int, int], ...]:
    """Return the minutes of the week in UTC, each span without its end, in which hours hold."""
    start, end = _minutes(hours.start), _minutes(hours.end)
    length = end - start if end > start else end - start + DAY_MINUTES
    spans = []
    for day in hours.days:
        begin = DAYS.index(day) * DAY_MINUTES + start - hours.utc_offset_minutes
        begin %= WEEK_MINUTES
        spans.append((begin, min(begin + length, WEEK_MINUTES)))
        if begin + length > WEEK_MINUTES:
            spans.append((0, begin + length - WEEK_MINUTES))
    return tuple(sorted(spans))


def within(spans: tuple[tuple[int, int], ...], minute: int) -> bool:
    """Say whether a minute of the week is in one of these spans."""
    return any(start <= minute < end for start, end in spans)


def _minutes(clock: str) -> int:
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)
