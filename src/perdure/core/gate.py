"""What the gate is asked before a tool is called, and what it says.

A gate is a policy in force. `judge` is a pure function: the same question has the same verdict on
every node, now and in replay. Its `version` is recorded with every verdict.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from perdure.core.agent import AgentSpec, ToolSpec

APPROVAL_MS = 24 * 3600 * 1000
STANDING = "standing:"
"""The rule of a call that somebody approved ahead: this, and the id of the standing approval."""


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an approval takes: so many people, each with one of the roles (any, if none is named).

    After `expires_ms` it comes too late, and the call is denied. After `escalate_ms` it is for
    those who have one of the roles `escalate_to` instead.
    """

    needed: int = 1
    roles: tuple[str, ...] = ()
    expires_ms: int = APPROVAL_MS
    escalate_ms: int | None = None
    escalate_to: tuple[str, ...] = ()


class Asked(msgspec.Struct, frozen=True, gc=False):
    """May this agent make this call? `at` is in milliseconds since 1970.

    `uses` is how often the session has used each standing approval, by their ids.
    """

    tenant: str
    agent: AgentSpec
    tool: ToolSpec
    arguments: dict[str, Any]
    at: int
    uses: dict[str, int] = {}


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Allow, deny, or ask people on these terms; `rule` says which rule, `reason` why.

    The model is told the reason of a denial.
    """

    effect: Literal["allow", "deny", "ask"]
    rule: str
    reason: str = ""
    terms: Terms = Terms()


class Gate(Protocol):
    """A policy in force. `version` addresses its `body` by content; both are empty for no rules."""

    version: str
    body: bytes

    def judge(self, asked: Asked) -> Verdict:
        """Return the verdict on a call."""
        ...

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Say whether a model is shown a tool: False if every call of it would be denied."""
        ...


class NoRules:
    """The gate where there is no policy: what an agent's definition lists and grants, it may do."""

    version = ""
    body = b""

    def judge(self, asked: Asked) -> Verdict:
        """Deny what needs a capability that the agent was not granted; allow the rest."""
        missing = ungranted(asked.agent, asked.tool)
        if missing:
            return not_granted(asked.agent, asked.tool, missing)
        return Verdict("allow", "granted" if asked.tool.capabilities else "declared")

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Show what the agent has the capabilities for."""
        return not ungranted(agent, tool)


NO_RULES = NoRules()


def ungranted(agent: AgentSpec, tool: ToolSpec) -> tuple[str, ...]:
    """Return the capabilities that a tool needs and its agent was not granted."""
    return tuple(
        needed
        for needed in tool.capabilities
        if not any(covers(grant, needed) for grant in agent.grants)
    )


def covers(grant: str, capability: str) -> bool:
    """Say whether a grant covers a capability: `net.http` itself, `net.*` all below, `*` all."""
    if grant.endswith("*"):
        return capability.startswith(grant[:-1])
    return grant == capability


def not_granted(agent: AgentSpec, tool: ToolSpec, missing: tuple[str, ...]) -> Verdict:
    """Return the verdict on a call for which capabilities are missing."""
    return Verdict(
        "deny",
        "not_granted",
        f"{tool.name!r} needs {', '.join(missing)}, which the agent {agent.name!r} was not granted",
    )
