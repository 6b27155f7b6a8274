"""A desk to try policies at: rules as keyword arguments, calls in one line."""

from __future__ import annotations

import json
from typing import Any

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import Asked, Verdict
from perdure.policy.policy import Policy

MONDAY_NOON = 1_767_614_400_000
"""2026-01-05, 12:00 UTC."""


def policy(*rules: dict[str, Any], **more: Any) -> Policy:
    """Return the policy with these rules."""
    return Policy.from_json(
        json.dumps({"version": 1, "name": "desk", "rule": rules, **more}).encode()
    )


def allow(id_: str = "yes", **conditions: Any) -> dict[str, Any]:
    """Return a rule that allows."""
    return {"id": id_, "verdict": "allow", **conditions}


def ask(id_: str = "who", **conditions: Any) -> dict[str, Any]:
    """Return a rule that asks."""
    return {"id": id_, "verdict": "ask", "reason": "somebody should look", **conditions}


def deny(id_: str = "no", **conditions: Any) -> dict[str, Any]:
    """Return a rule that denies."""
    return {"id": id_, "verdict": "deny", "reason": "that is not done", **conditions}


def call(
    tool: str = "pay",
    *,
    needs: tuple[str, ...] = (),
    grants: tuple[str, ...] = (),
    tenant: str = "default",
    agent: str = "support",
    effect: Any = "once",
    at: int = MONDAY_NOON,
    **arguments: Any,
) -> Asked:
    """Return a call of a tool."""
    return Asked(
        tenant,
        AgentSpec(agent, model="m", grants=grants),
        ToolSpec(tool, "", {}, effect=effect, capabilities=needs),
        arguments,
        at,
    )


def says(verdict: Verdict) -> str:
    """Return a verdict as `deny no`."""
    return f"{verdict.effect} {verdict.rule}"
