"""From a catalog's agent to the definition that a run works under.

The rules are Norns': what is missing or cannot be used falls back to its default, so that an agent
which was stored once can always be run. What a `model_config` may hold:

- `context_strategy`: `none` shows the model everything; anything else the last `context_window`
  messages (default 20);
- `context_policy`: `{"compact_at": tokens, "keep": messages}` folds older history into a summary
  instead; `keep` is 20 if it is not given;
- `on_failure`: `retry_last_step`, or `stop`, the default;
- `max_tokens`: of one reply;
- `budget`: what each run may spend, as with a message; one that cannot be read is refused;
- `durability`: what the store has to give: `memory`, `os`, `fsynced` or `replicated(n)`;
- `tools`: `{"mode": "allowlist", "allowed_tools": [...]}` leaves out the other tools of workers;
- `subagents`: `{"mode": "open" | "allowlist" | "disabled", "allowed_agents": [...],
  "allow_list_agents": true, "max_depth": 3}` says which agents it may launch; also `max_children`,
  `on_failure`, `max_restarts`, `restart_window_ms` and `then`, see `Subagents`;
- `subagent_conversation`: `per_parent` has it run always in one session for the same parent;
- `reminders`: `{"after_seconds": n, "times": n}` reminds people of what they are asked; three times
  if `times` is not given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from perdure.api.budgets import configured
from perdure.core.agent import AgentSpec, ContextPolicy, Limits, Reminders, Subagents, ToolSpec
from perdure.core.limits import (
    REMINDERS_MAX,
    RESTARTS_MAX,
    WAIT_SECONDS_MAX,
    WINDOW_MESSAGES_MAX,
)

CONTEXT_WINDOW = 20
KEEP_MESSAGES = 20

WAIT = ToolSpec(
    name="wait",
    description="Wait before going on. Nothing runs meanwhile, and the wait survives restarts.",
    parameters={
        "type": "object",
        "properties": {
            "seconds": {"type": "integer", "description": "How long, in seconds."},
            "reason": {"type": "string", "description": "What for."},
        },
        "required": ["seconds"],
    },
    effect="read",
    builtin="wait",
)
ASK_HUMAN = ToolSpec(
    name="ask_human",
    description="Ask a person and wait for the answer, however long it takes.",
    parameters={
        "type": "object",
        "properties": {
            "question": {
                "type": "string",
                "description": "The question, with all that is needed to answer it.",
            }
        },
        "required": ["question"],
    },
    effect="read",
    builtin="ask_human",
)
LAUNCH_AGENT = ToolSpec(
    name="launch_agent",
    description="Have another agent do something, and wait for its answer. Several calls run in "
    "parallel.",
    parameters={
        "type": "object",
        "properties": {
            "agent_name": {"type": "string", "description": "The agent's name."},
            "message": {
                "type": "string",
                "description": "What it is to do, with all that it needs to know.",
            },
            "session": {
                "type": "string",
                "description": "A name: later launches with it go on in that conversation.",
            },
            "context": {
                "type": "object",
                "description": "What it is shown before the message.",
                "properties": {
                    "messages": {"type": "array", "items": {"type": "object"}},
                    "data": {"type": "object"},
                },
            },
        },
        "required": ["agent_name", "message"],
    },
    effect="idempotent",
    builtin="launch_agent",
)
LIST_AGENTS = ToolSpec(
    name="list_agents",
    description="List the other agents and what they are for.",
    parameters={"type": "object", "properties": {}},
    effect="read",
    builtin="list_agents",
)
BUILTINS = (WAIT, ASK_HUMAN, LAUNCH_AGENT, LIST_AGENTS)


def agent_spec(
    *,
    name: str,
    model: str,
    system_prompt: str = "",
    model_config: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    tools: Iterable[ToolSpec] = (),
    purpose: str = "",
) -> AgentSpec:
    """Return the definition of an agent that may use `tools` and the built-in ones.

    The built-in tools are always offered, and no other tool can take their names; of two tools of
    one name the first counts. A tool that the agent's allowlist does not name is left out.
    """
    config = model_config or {}
    return AgentSpec(
        name=name,
        model=model,
        instructions=system_prompt,
        tools=offered(config, tools),
        limits=Limits(steps_max=_count(max_steps) or Limits().steps_max),
        context=context_policy(config),
        on_failure="retry" if config.get("on_failure") == "retry_last_step" else "stop",
        max_tokens=_count(config.get("max_tokens")),
        durability=_text(config.get("durability")),
        purpose=purpose,
        subagents=subagents(config),
        reminders=reminders(config),
        budget=configured(config.get("budget"), f"agent {name!r}"),
    )


def shown_prompt(spec: AgentSpec) -> str:
    """Return what stands for an agent's instructions where they may not be blank."""
    return spec.instructions if spec.instructions.strip() else f"You are {spec.name}."


def offered(config: Mapping[str, Any], tools: Iterable[ToolSpec]) -> tuple[ToolSpec, ...]:
    """Return the tools that a model is offered: built-ins, then what the allowlist lets through."""
    allowed = allowlist(config)
    found = {tool.name: tool for tool in BUILTINS}
    for tool in tools:
        if allowed is None or tool.name in allowed:
            found.setdefault(tool.name, tool)
    return tuple(found.values())


def allowlist(config: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the names of the tools that an agent may use; None: all."""
    policy = config.get("tools")
    if not isinstance(policy, Mapping) or policy.get("mode") != "allowlist":
        return None
    names = policy.get("allowed_tools")
    if not isinstance(names, list):
        return frozenset()
    return frozenset(name for name in names if isinstance(name, str))


def subagents(config: Mapping[str, Any]) -> Subagents:
    """Return which agents an agent may launch; what cannot be used falls back to its default."""
    given = config.get("subagents")
    policy: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    usual, names = Subagents(), policy.get("allowed_agents")
    depth = policy.get("max_depth")
    has_depth = isinstance(depth, int) and not isinstance(depth, bool) and depth >= 0
    return Subagents(
        mode=_one_of(policy.get("mode"), ("open", "allowlist", "disabled")),
        allowed=tuple(n for n in names if isinstance(n, str)) if isinstance(names, list) else (),
        may_list=policy.get("allow_list_agents") is not False,
        depth_max=int(depth) if has_depth and depth is not None else usual.depth_max,
        children_max=_count(policy.get("max_children")) or usual.children_max,
        on_failure=_one_of(policy.get("on_failure"), ("tell", "restart", "escalate", "abort")),
        restarts_max=min(_count(policy.get("max_restarts")) or usual.restarts_max, RESTARTS_MAX),
        restart_window_ms=_count(policy.get("restart_window_ms")) or usual.restart_window_ms,
        then=_one_of(policy.get("then"), ("tell", "escalate", "abort")),
        session=_one_of(config.get("subagent_conversation"), ("fresh", "per_parent")),
    )


def _one_of(value: Any, known: tuple[str, ...]) -> Any:
    """Return a value that is known; the first of them for any other."""
    return value if value in known else known[0]


def context_policy(config: Mapping[str, Any]) -> ContextPolicy:
    """Return which part of the history the model is shown."""
    compaction = compaction_policy(config)
    if compaction is not None:
        compact_at, keep = compaction["compact_at"], compaction["keep"]
        return ContextPolicy("compact", compact_at_tokens=compact_at, keep_messages=keep)
    if context_strategy(config) == "none":
        return ContextPolicy("none")
    return ContextPolicy("window", min(context_window(config), WINDOW_MESSAGES_MAX))


def context_strategy(config: Mapping[str, Any]) -> str:
    """Return `none` or `sliding_window`, as an agent's object shows it."""
    return "none" if config.get("context_strategy") == "none" else "sliding_window"


def context_window(config: Mapping[str, Any]) -> int:
    """Return how many messages the window holds, as an agent's object shows it."""
    return _count(config.get("context_window")) or CONTEXT_WINDOW


def compaction_policy(config: Mapping[str, Any]) -> dict[str, int] | None:
    """Return `compact_at` and `keep`, as an agent's object shows them; None without compaction."""
    policy = config.get("context_policy")
    if not isinstance(policy, Mapping):
        return None
    compact_at = _count(policy.get("compact_at"))
    keep = _count(policy.get("keep", KEEP_MESSAGES))
    if compact_at is None or keep is None:
        return None
    return {"compact_at": compact_at, "keep": min(keep, WINDOW_MESSAGES_MAX)}


def reminders(config: Mapping[str, Any]) -> Reminders | None:
    """Return how often people are reminded; None for never."""
    wanted = config.get("reminders")
    if not isinstance(wanted, Mapping):
        return None
    after_s = _count(wanted.get("after_seconds"))
    times = _count(wanted.get("times", Reminders(0).times))
    if after_s is None or times is None:
        return None
    return Reminders(min(after_s, WAIT_SECONDS_MAX) * 1000, min(times, REMINDERS_MAX))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    """Return a positive integer, also one written as text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    usable = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if usable else None
