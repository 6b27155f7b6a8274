"""Standing approvals: what people approved ahead, in front of the gate that would ask them.

A standing approval answers a question and nothing else: what a policy denies stays denied. It is
data, and the verdict is a pure function of it; how often a session has used it is counted in that
session's own log, so the number holds whatever crashes, on however many nodes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from perdure.core import ids
from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import STANDING, Asked, Gate, Verdict
from perdure.core.limits import USES_MAX
from perdure.policy.conditions import on_argument
from perdure.policy.rules import Predicate

_canonical = msgspec.json.Encoder(order="sorted").encode


class StandingApproval(msgspec.Struct, frozen=True):
    """Calls of a `tool` by an `agent`, with `arguments` like these, until `expires_at`.

    `declared` addresses what was declared of the tool, and `policy` is the version of the rules
    under which it was given: it answers for no others. Who gave it had the `roles`. Each session
    may use it `uses_per_session` times, None is without limit. Times are milliseconds since 1970.
    """

    id: str
    agent: str
    tool: str
    declared: str
    policy: str
    arguments: tuple[Predicate, ...]
    expires_at: int
    uses_per_session: int | None = None
    roles: tuple[str, ...] = ()


def declaration(tool: ToolSpec) -> str:
    """Return the content address of everything that is declared of a tool."""
    return ids.digest(_canonical(tool))


class _Answer:
    """A standing approval made ready to be applied."""

    __slots__ = ("_tests", "approval", "verdict")

    def __init__(self, approval: StandingApproval) -> None:
        self.approval = approval
        self.verdict = Verdict("allow", f"{STANDING}{approval.id}")
        self._tests = tuple(on_argument(one, False) for one in approval.arguments)

    def missing(self, asked: Asked, question: Verdict, policy: str) -> str | None:
        """Return why a question is not answered; None if it is."""
        approval, terms = self.approval, question.terms
        if asked.at >= approval.expires_at:
            return "it has expired"
        if approval.policy != policy:
            return "the policy is another one"
        if terms.needed > 1:
            return f"the rule {question.rule!r} wants {terms.needed} people each time"
        if terms.roles and not set(terms.roles) & set(approval.roles):
            return f"the rule {question.rule!r} wants one of the roles {', '.join(terms.roles)}"
        if not all(holds(asked.arguments, asked.at) for holds in self._tests):
            return "the arguments are not like these"
        if self._is_used_up(asked.uses):
            return "the session has used it as often as it may"
        if approval.declared != declaration(asked.tool):
            return "the tool is declared otherwise"
        return None

    def _is_used_up(self, uses: dict[str, int]) -> bool:
        limit = self.approval.uses_per_session
        if limit is None:
            return False
        uncounted = limit if len(uses) >= USES_MAX else 0
        return uses.get(self.approval.id, uncounted) >= limit


class Standing:
    """A gate, and what people approved ahead of its questions."""

    __slots__ = ("_answers", "body", "gate", "version")

    def __init__(self, gate: Gate, approvals: Iterable[StandingApproval]) -> None:
        self.gate = gate
        self.version = gate.version
        self.body = gate.body
        self._answers: dict[tuple[str, str], list[_Answer]] = {}
        for one in approvals:
            self._answers.setdefault((one.agent, one.tool), []).append(_Answer(one))

    def judge(self, asked: Asked) -> Verdict:
        """Return the gate's verdict, or the leave that answers its question."""
        verdict = self.gate.judge(asked)
        if verdict.effect != "ask":
            return verdict
        for answer in self._answers.get((asked.agent.name, asked.tool.name), ()):
            if answer.missing(asked, verdict, self.version) is None:
                return answer.verdict
        return verdict

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Say what the gate says."""
        return self.gate.offers(tenant, agent, tool)


def why_not(approval: StandingApproval, gate: Gate, asked: Asked) -> str | None:
    """Return why a standing approval would not let a call through; None if it would."""
    question = gate.judge(asked)
    if question.effect != "ask":
        return f"no rule asks about this call: {question.rule!r} says {question.effect}"
    return _Answer(approval).missing(asked, question, gate.version)
