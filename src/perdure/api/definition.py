"""From a catalog's agent to the definition that a run works under.

The rules are Norns': what is missing or cannot be used falls back to its default, so that an agent
which was stored once can always be run. What a `model_config` may hold:

- `context_strategy`: `none` shows the model everything; anything else the last `context_window`
  messages (default 20);
- `context_policy`: `{"compact_at": tokens, "keep": messages}` folds older history into a summary
  instead; `keep` is 20 if it is not given;
- `on_failure`: `retry_last_step`, or `stop`, the default;
- `max_tokens`: of one reply;
- `durability`: what the store has to give: `memory`, `os`, `fsynced` or `replicated(n)`;
- `tools`: `{"mode": "allowlist", "allowed_tools": [...]}` leaves out the other tools of workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from perdure.core.agent import AgentSpec, ContextPolicy, Limits, ToolSpec
from perdure.core.limits import WINDOW_MESSAGES_MAX

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
BUILTINS = (WAIT, ASK_HUMAN)


def agent_spec(
    *,
    name: str,
    model: str,
    system_prompt: str = "",
    model_config: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    tools: Iterable[ToolSpec] = (),
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


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    """Return a positive integer, also one written as text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    usable = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if usable else None
