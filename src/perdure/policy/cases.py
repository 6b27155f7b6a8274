"""Cases for a policy: calls as data, each with the verdict that is expected of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from perdure.core.agent import AgentSpec, Effect, ToolSpec
from perdure.core.errors import InvalidInput
from perdure.core.gate import Asked, Verdict
from perdure.policy.regions import in_that_week
from perdure.policy.rules import Name, Text

NOON = in_that_week(12 * 60)
"""When a call is made that does not say when: on Monday, 2026-01-05, 12:00 UTC."""


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call, and what the policy should say: a verdict and, if it is named, the rule.

    What it does not say of its agent's grants, and of its tool's effect and capabilities, is taken
    from the agent if that is given; else there are none, and the effect is `once`.
    """

    tool: Text
    expect: Literal["allow", "ask", "deny"]
    rule: str | None = None
    name: Text | None = None
    tenant: Text = "default"
    agent: Name = "agent"
    grants: tuple[Text, ...] | None = None
    effect: Effect | None = None
    capabilities: tuple[Text, ...] | None = None
    arguments: dict[str, Any] = {}
    at: datetime | None = None

    def passes(self, verdict: Verdict) -> bool:
        """Say whether a verdict is the one that was expected."""
        return verdict.effect == self.expect and self.rule in (None, verdict.rule)


class _Cases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    case: Annotated[tuple[Case, ...], msgspec.Meta(min_length=1)]


def read_cases(text: str, where: str) -> tuple[Case, ...]:
    """Return the cases in a TOML text, each under [[case]]. Raises `InvalidInput`."""
    try:
        return msgspec.convert(tomllib.loads(text), _Cases).case
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{where}: expected TOML: {error}") from None
    except msgspec.ValidationError as error:
        said = str(error)
        raise InvalidInput(
            f"{where}: {said[:1].lower()}{said[1:]}: expected cases, each under [[case]] with "
            "'tool' and 'expect'"
        ) from None


def request(case: Case, agents: Mapping[str, AgentSpec]) -> Asked:
    """Return the call of a case. Raises `InvalidInput` if a given agent lacks the tool."""
    agent = agents.get(case.agent)
    if agent is None:
        agent = AgentSpec(case.agent, model="none")
        tool = ToolSpec(case.tool, "", {})
    else:
        tools = {each.name: each for each in agent.tools}
        if case.tool not in tools:
            listed = ", ".join(tools) or "none"
            raise InvalidInput(f"agent {agent.name!r} has no tool {case.tool!r}, but: {listed}")
        tool = tools[case.tool]
    if case.grants is not None:
        agent = msgspec.structs.replace(agent, grants=case.grants)
    given = {"effect": case.effect, "capabilities": case.capabilities}
    said = {name: value for name, value in given.items() if value is not None}
    tool = msgspec.structs.replace(tool, **said)
    return Asked(case.tenant, agent, tool, case.arguments, NOON if case.at is None else ms(case.at))


def ms(at: datetime) -> int:
    """Return a time in milliseconds since 1970; one without an offset is in UTC."""
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)
