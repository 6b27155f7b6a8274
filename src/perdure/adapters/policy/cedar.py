"""A policy judged by Cedar: its rules become permits and forbids, and Cedar decides.

`allow` and `ask` are two actions, and `use` a third: the permission to use one capability that the
agent was not granted. A rule that denies forbids all three.

Cedar has whole numbers of 64 bits and no quantifiers. So a number is told by its place among the
policy's own constants (`regions.Scale`), and of globs on capabilities it is told which of them
match. Nothing is lost by either: rules can tell no more apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import cedarpy

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import Asked, Verdict, not_granted
from perdure.policy.conditions import glob, kind_of, minute_of_week, value_at, windows
from perdure.policy.policy import Policy
from perdure.policy.regions import Scale, predicates, scale
from perdure.policy.rules import Hours, Predicate, Rule, operator

_COMPARED = {"over": ">", "at_least": ">=", "under": "<", "at_most": "<="}


class CedarGate:
    """A gate with the rules of a policy and the engine of Cedar.

    What it cannot judge it raises, and the call is denied.
    """

    __slots__ = ("_entities", "_globs", "_policies", "_scales", "body", "policy", "text", "version")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.version = policy.version
        self.body = policy.body
        rules = policy.document.rule
        self._scales = {path: scale(asked) for path, asked in predicates(rules).items()}
        self._globs = {one: glob(one) for rule in rules for one in rule.capabilities}
        self.text = "\n".join(_policy(rule, self._scales) for rule in rules)
        self._policies = cedarpy.PolicySet.from_str(self.text)
        self._entities = cedarpy.Entities.from_json_str("[]")

    def judge(self, asked: Asked) -> Verdict:
        """Return Cedar's verdict on a call."""
        found = self.policy.candidates(asked.tenant, asked.agent, asked.tool)
        actions = [("ask", ""), ("allow", ""), *(("use", need) for need in found.ungranted)]
        facts = self._facts(asked)
        answers = cedarpy.is_authorized_batch(
            [_request(asked, action, {**facts, "need": need}) for action, need in actions],
            self._policies,
            self._entities,
        )
        wrong = [error for answer in answers for error in answer.diagnostics.errors]
        if wrong:
            raise RuntimeError(f"Cedar could not apply the policy: {wrong[0]}")
        named = [self._named(answer.diagnostics.reasons) for answer in answers]
        if not answers[0].allowed and named[0]:
            return named[0][0]
        missing = tuple(
            need
            for (_, need), answer in zip(actions, answers, strict=True)
            if need and not answer.allowed
        )
        if missing:
            return not_granted(asked.agent, asked.tool, missing)
        asks = sorted(named[0], key=lambda verdict: -verdict.terms.needed)
        return (*asks, *named[1], found.rest)[0]

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Say what the policy itself says: Cedar is asked about calls, and this is about none."""
        return self.policy.offers(tenant, agent, tool)

    def _named(self, reasons: Iterable[str]) -> list[Verdict]:
        """Return the verdicts of the rules that Cedar names, which it numbers in their order."""
        numbers = sorted(int(reason.removeprefix("policy")) for reason in reasons)
        return [self.policy.rulings[number].verdict for number in numbers]

    def _facts(self, asked: Asked) -> dict[str, Any]:
        about = self.policy.subject(asked.tenant, asked.agent, asked.tool)
        return {
            "tenant": about.tenant,
            "agent": about.agent,
            "tool": about.tool,
            "effect": about.effect,
            "capabilities": [
                one for one, matches in self._globs.items() if any(map(matches, about.needs))
            ],
            "minute": minute_of_week(asked.at),
            "arguments": {
                path: _told(value_at(asked.arguments, tuple(path.split("."))), places)
                for path, places in self._scales.items()
            },
        }


def _request(asked: Asked, action: str, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "principal": {"type": "Agent", "id": asked.agent.name},
        "action": {"type": "Action", "id": action},
        "resource": {"type": "Tool", "id": asked.tool.name},
        "context": facts,
    }


def _told(value: Any, places: Scale) -> dict[str, Any]:
    kind = kind_of(value)
    if kind == "number":
        return {"kind": kind, "number": places.place(value)}
    return {"kind": kind, kind: value} if kind in ("flag", "text") else {"kind": kind}


# ------------------------------------------------------------------------------ rules as policies


def _policy(rule: Rule, scales: Mapping[str, Scale]) -> str:
    if rule.verdict == "deny":
        head = "forbid(principal, action, resource)"
    else:
        actions = f'[Action::"{rule.verdict}", Action::"use"]'
        head = f"permit(principal, action in {actions}, resource)"
    conditions = " &&\n  ".join(_conditions(rule, scales)) or "true"
    return f'@id("{rule.id}")\n{head}\nwhen {{\n  {conditions}\n}};\n'


def _conditions(rule: Rule, scales: Mapping[str, Scale]) -> Iterable[str]:
    for key, fact in (("tenants", "tenant"), ("agents", "agent"), ("tools", "tool")):
        if patterns := getattr(rule, key):
            yield _any(f"context.{fact} like {_pattern(one)}" for one in patterns)
    if rule.capabilities:
        listed = ", ".join(map(_quoted, rule.capabilities))
        yield f"context.capabilities.containsAny([{listed}])"
        if rule.verdict != "deny":
            covered = " || ".join(f"context.need like {_pattern(one)}" for one in rule.capabilities)
            yield f'(action != Action::"use" || {covered})'
    if rule.effects:
        yield f"[{', '.join(map(_quoted, rule.effects))}].contains(context.effect)"
    for predicate in rule.arguments:
        yield _predicate(predicate, scales[predicate.path], against=rule.verdict != "allow")
    if rule.hours:
        yield _hours(rule.hours)


def _predicate(predicate: Predicate, places: Scale, *, against: bool) -> str:
    """Return a predicate; what it cannot judge holds if it is `against` the call."""
    value = f"context.arguments[{_quoted(predicate.path)}]"
    name = operator(predicate)
    wanted = getattr(predicate, name)
    if name == "present":
        return f'{value}.kind {"!=" if wanted else "=="} "nothing"'
    if name == "matches":
        tests = {"text": [f"{value}.text like {_pattern(wanted)}"]}
    elif name in _COMPARED:
        tests = {"number": [f"{value}.number {_COMPARED[name]} {places.place(wanted)}"]}
    else:
        tests = {}
        for one in wanted if name == "one_of" else (wanted,):
            tests.setdefault(kind_of(one), []).append(f"{value}.{_equals(one, places)}")
    found = [f'{value}.kind == "{kind}" && {_any(each)}' for kind, each in tests.items()]
    if against:
        found.append(" && ".join(f'{value}.kind != "{kind}"' for kind in tests))
    return _any(found)


def _equals(constant: Any, places: Scale) -> str:
    kind = kind_of(constant)
    if kind == "number":
        return f"number == {places.place(constant)}"
    return f"text == {_quoted(constant)}" if kind == "text" else f"flag == {str(constant).lower()}"


def _hours(hours: Hours) -> str:
    return _any(
        f"context.minute >= {start} && context.minute < {end}" for start, end in windows(hours)
    )


def _any(tests: Iterable[str]) -> str:
    return "(" + " || ".join(f"({test})" for test in tests) + ")"


def _quoted(text: str) -> str:
    """Return a text as Cedar writes it; what could mean something in it is spelt by number."""
    plain = (one if one.isascii() and one.isalnum() else f"\\u{{{ord(one):x}}}" for one in text)
    return f'"{"".join(plain)}"'


def _pattern(pattern: str) -> str:
    return '"' + "*".join(_quoted(part)[1:-1] for part in pattern.split("*")) + '"'
