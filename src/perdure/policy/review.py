"""What is allowed in a policy and probably not meant: rules that never match, and the like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import covers
from perdure.policy.conditions import outcome
from perdure.policy.policy import Policy, Ruling
from perdure.policy.regions import predicates, values
from perdure.policy.rules import Rule


def review(policy: Policy, agents: Iterable[AgentSpec] = ()) -> list[str]:
    """Return warnings about a policy, and about what it means for agents that are given."""
    found = list(_impossible(policy.document.rule))
    found += _overshadowed(policy.document.rule)
    agents = tuple(agents)
    if agents:
        found += _unmatched(policy, agents)
        for agent in agents:
            for tool in agent.tools:
                found += _of_tool(policy, agent, tool)
    return found


def _impossible(rules: tuple[Rule, ...]) -> Iterator[str]:
    for rule in rules:
        for path, asked in predicates((rule,)).items():
            if sum(predicate.matches is not None for predicate in asked) > 1:
                continue  # whether two globs have a text in common is not looked into
            judges = [outcome(predicate) for predicate in asked]
            unknown = rule.verdict != "allow"
            if not any(
                all(unknown if (judged := judge(one)) is None else judged for judge in judges)
                for one in values(asked)
            ):
                yield f"rule {rule.id!r} can never match: nothing is all that it asks of {path!r}"


def _overshadowed(rules: tuple[Rule, ...]) -> Iterator[str]:
    conditions = ("tenants", "agents", "tools", "capabilities", "effects", "arguments", "hours")
    for rule in rules:
        if rule.verdict == "deny" and not any(getattr(rule, name) for name in conditions):
            yield f"rule {rule.id!r} denies every call: no other rule matters"


def _unmatched(policy: Policy, agents: tuple[AgentSpec, ...]) -> Iterator[str]:
    """Tenants are not known here, and left out of account."""
    calls = [(agent, tool) for agent in agents for tool in agent.tools]
    for ruling in policy.rulings:
        if not any(_concerns(policy, ruling, agent, tool) for agent, tool in calls):
            yield (
                f"rule {ruling.rule.id!r} can never match the given agents: no tool of theirs is "
                "what it speaks of"
            )


def _concerns(policy: Policy, ruling: Ruling, agent: AgentSpec, tool: ToolSpec) -> bool:
    about = policy.subject("", agent, tool)
    return all(holds(about) for key, holds in ruling.fixed.items() if key != "tenants")


def _of_tool(policy: Policy, agent: AgentSpec, tool: ToolSpec) -> Iterator[str]:
    of_agent = f"the tool {tool.name!r} of agent {agent.name!r}"
    concerned = [each for each in policy.rulings if _concerns(policy, each, agent, tool)]
    needs = policy.subject("", agent, tool).needs
    lacking = [
        need
        for need in needs
        if not any(covers(grant, need) for grant in agent.grants)
        and not any(ruling.covers(need) for ruling in concerned)
    ]
    if lacking:
        yield (
            f"nobody grants {', '.join(lacking)}, which {of_agent} needs: every call of it is "
            "denied"
        )
    properties = tool.parameters.get("properties")
    for ruling in concerned:
        for path in predicates((ruling.rule,)):
            if (
                ruling.rule.verdict != "allow"
                and isinstance(properties, dict)
                and path.partition(".")[0] not in properties
            ):
                yield (
                    f"rule {ruling.rule.id!r} looks at {path!r}, which {of_agent} has not: what is "
                    "missing counts against the call"
                )
