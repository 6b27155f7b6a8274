"""`Policy`: rules in force, as the gate that the core asks.

Any rule that denies wins. Else every capability that the tool needs has to be granted to the agent,
or covered by a rule that allows or asks. Else the strictest rule that asks wins, else the call is
allowed. The order of the rules decides only which of several is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from perdure.core import ids
from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import Asked, Terms, Verdict, covers, not_granted
from perdure.policy.conditions import Subject, any_glob, changing, fixed, subject
from perdure.policy.limits import CANDIDATES_MAX
from perdure.policy.reading import read_json, read_toml
from perdure.policy.rules import Document, Rule

_canonical = msgspec.json.Encoder(order="sorted").encode
_MINUTE_MS = 60_000


class Ruling:
    """A rule made ready to be applied."""

    __slots__ = ("_covered", "_tests", "changing", "fixed", "rule", "verdict")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.fixed = fixed(rule)
        self.changing = changing(rule)
        self.verdict = Verdict(rule.verdict, rule.id, rule.reason, _terms(rule))
        self._tests = tuple(self.changing.values())
        self._covered = any_glob(rule.capabilities or ("*",))

    def concerns(self, about: Subject) -> bool:
        """Say whether the rule can hold for a call, whatever its arguments and its time."""
        return all(holds(about) for holds in self.fixed.values())

    def holds(self, arguments: Mapping[str, Any], at: int) -> bool:
        """Say whether the rule holds for a call that it concerns."""
        for test in self._tests:  # noqa: SIM110  a generator costs more than most tests
            if not test(arguments, at):
                return False
        return True

    def covers(self, capability: str) -> bool:
        """Say whether the rule stands for a grant of a capability where it holds."""
        return self.rule.verdict != "deny" and self._covered(capability)


class Candidates(NamedTuple):
    """The rules that concern a call, before its arguments and its time are looked at.

    `asks` has the strictest first. `ungranted` are the capabilities that the tool needs and its
    agent was not granted. `rest` is the verdict if no rule gives one.
    """

    denies: tuple[Ruling, ...]
    asks: tuple[Ruling, ...]
    allows: tuple[Ruling, ...]
    ungranted: tuple[str, ...]
    rest: Verdict


class Policy:
    """Rules in force. `version` is the content address of `body`, the policy as canonical JSON.

    Policies with the same rules in the same order have the same version, from whatever text.
    """

    __slots__ = ("_candidates", "body", "document", "rulings", "version")

    def __init__(self, document: Document) -> None:
        self.document = document
        self.rulings = tuple(map(Ruling, document.rule))
        self.body = _canonical(document)
        self.version = ids.digest(self.body)
        self._candidates: dict[tuple[Any, ...], Candidates] = {}

    @classmethod
    def from_toml(cls, text: str, where: str = "policy") -> Policy:
        """Return the policy in a TOML text; `where` is what errors call it.

        Raises `InvalidInput` with the place, what was found there and what was expected.
        """
        return cls(read_toml(text, where))

    @classmethod
    def from_json(cls, body: bytes, where: str = "policy") -> Policy:
        """Return the policy in a JSON text, as `body` is one. Raises as `from_toml` does."""
        return cls(read_json(body, where))

    @property
    def name(self) -> str:
        """What the policy is called."""
        return self.document.name

    def judge(self, asked: Asked) -> Verdict:
        """Return the verdict on a call."""
        found = self.candidates(asked.tenant, asked.agent, asked.tool)
        arguments, at = asked.arguments, asked.at
        for ruling in found.denies:
            if ruling.holds(arguments, at):
                return ruling.verdict
        opening = [ruling for ruling in (*found.asks, *found.allows) if ruling.holds(arguments, at)]
        missing = tuple(
            need for need in found.ungranted if not any(ruling.covers(need) for ruling in opening)
        )
        if missing:
            return not_granted(asked.agent, asked.tool, missing)
        return opening[0].verdict if opening else found.rest

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Say whether a call of a tool might be made, with some arguments at some time."""
        found = self.candidates(tenant, agent, tool)
        if any(not ruling.changing for ruling in found.denies):
            return False
        opening = (*found.asks, *found.allows)
        return all(any(ruling.covers(need) for ruling in opening) for need in found.ungranted)

    def candidates(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> Candidates:
        """Return the rules that concern a tool in the hands of an agent, once looked for."""
        key = (tenant, agent.name, agent.grants, tool.name, tool.effect, tool.capabilities)
        found = self._candidates.get(key)
        if found is None:
            if len(self._candidates) >= CANDIDATES_MAX:
                self._candidates.clear()
            found = self._candidates[key] = self._look_for(self.subject(tenant, agent, tool), agent)
        return found

    def subject(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> Subject:
        """Return what the conditions of this policy's rules are asked about a tool."""
        return subject(tenant, agent, tool, named=self.document.default == "deny")

    def _look_for(self, about: Subject, agent: AgentSpec) -> Candidates:
        concerned = [ruling for ruling in self.rulings if ruling.concerns(about)]
        of: dict[str, list[Ruling]] = {"deny": [], "ask": [], "allow": []}
        for ruling in concerned:
            of[ruling.rule.verdict].append(ruling)
        return Candidates(
            denies=tuple(of["deny"]),
            asks=tuple(sorted(of["ask"], key=lambda ruling: -ruling.verdict.terms.needed)),
            allows=tuple(of["allow"]),
            ungranted=tuple(
                need
                for need in about.needs
                if not any(covers(grant, need) for grant in agent.grants)
            ),
            rest=Verdict("allow", "granted" if about.needs else "declared"),
        )


def _terms(rule: Rule) -> Terms:
    default = Terms()
    return Terms(
        needed=rule.needed or default.needed,
        roles=rule.roles or default.roles,
        expires_ms=(
            rule.expires_minutes * _MINUTE_MS if rule.expires_minutes else default.expires_ms
        ),
        escalate_ms=rule.escalate_minutes * _MINUTE_MS if rule.escalate_minutes else None,
        escalate_to=rule.escalate_to or default.escalate_to,
    )
