"""Policies for tests: a verdict for each tool."""

from __future__ import annotations

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import Asked, Terms, Verdict

HOUR_MS = 3_600_000


class Rules:
    """A policy as a table: tool -> verdict; the rest is allowed."""

    body = b"rules"

    def __init__(self, version: str = "p1", **verdicts: Verdict) -> None:
        self.version = version
        self.verdicts = verdicts

    def judge(self, asked: Asked) -> Verdict:
        """Look the tool up."""
        return self.verdicts.get(asked.tool.name, Verdict("allow", "rest"))

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Show everything."""
        return True


def ask(needed: int = 1, *roles: str, expires_ms: int = HOUR_MS) -> Verdict:
    """Return a verdict that asks so many people with one of the roles."""
    return Verdict("ask", "large", "more than 10 euros", Terms(needed, roles, expires_ms))
