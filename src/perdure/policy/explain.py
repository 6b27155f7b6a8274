"""Why a verdict is what it is: every rule, and which of its conditions did not hold."""

from __future__ import annotations

import msgspec

from perdure.core.gate import Asked, Verdict
from perdure.policy.conditions import (
    DAY_MINUTES,
    WEEK_MINUTES,
    Subject,
    minute_of_week,
    outcome,
    value_at,
)
from perdure.policy.policy import Policy, Ruling
from perdure.policy.reading import shown
from perdure.policy.rules import DAYS, Hours, Predicate, Rule, operator


class Reading(msgspec.Struct, frozen=True):
    """What became of one rule: it holds, or `failed` says what did not.

    `unjudged` are conditions that could not be judged and counted against the call.
    """

    rule: str
    verdict: str
    failed: tuple[str, ...]
    unjudged: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether all conditions of the rule hold."""
        return not self.failed


class Explanation(msgspec.Struct, frozen=True):
    """The verdict on a call, and what became of every rule, in the order of the file."""

    verdict: Verdict
    needs: tuple[str, ...]
    ungranted: tuple[str, ...]
    rules: tuple[Reading, ...]


def explain(policy: Policy, asked: Asked) -> Explanation:
    """Return the verdict on a call with its reasons."""
    about = policy.subject(asked.tenant, asked.agent, asked.tool)
    return Explanation(
        verdict=policy.judge(asked),
        needs=about.needs,
        ungranted=policy.candidates(asked.tenant, asked.agent, asked.tool).ungranted,
        rules=tuple(_read(ruling, about, asked) for ruling in policy.rulings),
    )


def _read(ruling: Ruling, about: Subject, asked: Asked) -> Reading:
    rule = ruling.rule
    failed = [_unfixed(rule, key, about) for key, holds in ruling.fixed.items() if not holds(about)]
    failed += [
        _unchanged(rule, key, asked)
        for key, holds in ruling.changing.items()
        if not holds(asked.arguments, asked.at)
    ]
    unjudged = [
        f"{said(predicate)}: it is {shown(_value(predicate, asked))}, which cannot be judged"
        for predicate in rule.arguments
        if outcome(predicate)(_value(predicate, asked)) is None
    ]
    against = rule.verdict != "allow"
    return Reading(rule.id, rule.verdict, tuple(failed), tuple(unjudged) if against else ())


def _unfixed(rule: Rule, key: str, about: Subject) -> str:
    wanted = " or ".join(getattr(rule, key))
    if key == "capabilities":
        return f"capabilities: the tool needs {' and '.join(about.needs) or 'none'}, not {wanted}"
    found = {
        "tenants": about.tenant,
        "agents": about.agent,
        "tools": about.tool,
        "effects": about.effect,
    }[key]
    return f"{key}: it is {found}, not {wanted}"


def _unchanged(rule: Rule, key: str, asked: Asked) -> str:
    if key == "hours":
        assert rule.hours is not None
        return f"hours: it is {_clock(rule.hours, asked.at)}, not {_spoken(rule.hours)}"
    predicate = rule.arguments[int(key[len("arguments[") : -1])]
    return f"{said(predicate)}: it is {shown(_value(predicate, asked))}"


def _value(predicate: Predicate, asked: Asked) -> object:
    return value_at(asked.arguments, tuple(predicate.path.split(".")))


def said(predicate: Predicate) -> str:
    """Return what a predicate asks, in words."""
    name = operator(predicate)
    wanted = getattr(predicate, name)
    several = " or ".join(map(shown, wanted)) if isinstance(wanted, tuple) else shown(wanted)
    return f"{predicate.path} {name.replace('_', ' ')} {several}"


def _clock(hours: Hours, at: int) -> str:
    minute = (minute_of_week(at) + hours.utc_offset_minutes) % WEEK_MINUTES
    day, minute = divmod(minute, DAY_MINUTES)
    return f"{DAYS[day]} {minute // 60:02}:{minute % 60:02}"


def _spoken(hours: Hours) -> str:
    return f"{hours.start} to {hours.end} on {', '.join(hours.days)}"
