"""What a child may do, it may do only if each of those that launched it may.

Verdicts are ordered: a denial is weaker than a question, and a question than leave. Of two
questions neither need be the weaker one: what answers both is put together of them.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import Asked, Gate, Terms, Verdict
from perdure.core.limits import USES_MAX

_ORDER = ("deny", "ask", "allow")
_UNCOUNTED = dict.fromkeys(map(str, range(-USES_MAX, 0)), 0)
"""In a child's session the uses of its parents' standing approvals are not counted: those that are
limited answer nothing there."""


def weaker(one: Verdict, other: Verdict) -> Verdict:
    """Return the most that both verdicts let through; of two alike, the first is named.

    Two questions become one that asks for the larger number of people, with roles that both take,
    in the shorter time. Where both name roles and share none, nobody can answer: it is denied. It
    is escalated only if both are, to roles that both name, in the longer time.
    """
    if one.effect != other.effect:
        return min(one, other, key=lambda verdict: _ORDER.index(verdict.effect))
    if one.effect != "ask":
        return one
    stricter = other if other.terms.needed > one.terms.needed else one
    roles = _shared(one.terms.roles, other.terms.roles)
    if roles is None:
        why = f"the rules {one.rule!r} and {other.rule!r} ask people of different roles"
        return Verdict("deny", stricter.rule, why)
    terms = Terms(
        needed=stricter.terms.needed,
        roles=roles,
        expires_ms=min(one.terms.expires_ms, other.terms.expires_ms),
        **_escalated(one.terms, other.terms),
    )
    return Verdict("ask", stricter.rule, stricter.reason, terms)


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the roles in both, where none named is all; None if both name some and share none."""
    if not one or not other:
        return one or other
    return tuple(role for role in one if role in other) or None


def _escalated(one: Terms, other: Terms) -> dict[str, Any]:
    """Return when, and to whom, both would escalate."""
    roles = tuple(role for role in one.escalate_to if role in other.escalate_to)
    if not roles or one.escalate_ms is None or other.escalate_ms is None:
        return {}
    return {"escalate_ms": max(one.escalate_ms, other.escalate_ms), "escalate_to": roles}


class Bounded:
    """The gate for a child: what it asks for is also judged as if each of its parents asked.

    `parents` are those that launched it, one another's children, in any order. What they list as
    their own tools does not matter: their grants and the rules about them do.
    """

    __slots__ = ("body", "gate", "parents", "version")

    def __init__(self, gate: Gate, parents: tuple[AgentSpec, ...]) -> None:
        self.gate = gate
        self.parents = parents
        self.version = gate.version
        self.body = gate.body

    def judge(self, asked: Asked) -> Verdict:
        """Return the weakest of the verdicts on the child and on each of its parents."""
        verdict = self.gate.judge(asked)
        for parent in self.parents:
            as_parent = replace(asked, agent=parent, uses=_UNCOUNTED)
            verdict = weaker(verdict, self.gate.judge(as_parent))
        return verdict

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Say whether the gate would show the tool to the child and to each of its parents."""
        return all(self.gate.offers(tenant, each, tool) for each in (agent, *self.parents))
