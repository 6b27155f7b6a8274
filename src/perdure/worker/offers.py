"""What a worker tells its server of its agents: their definitions, and that it serves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.api.definition import shown_prompt
from perdure.api.shapes import AgentCreate
from perdure.core.agent import AgentSpec, ContextPolicy, ToolSpec
from perdure.wire.registration import AgentOffer, ToolOffer


def agent_body(spec: AgentSpec) -> AgentCreate:
    """Return the body that defines an agent on a server.

    Its `model_config` says in Norns' words what Norns has words for, and under `perdure` the
    whole definition: `msgspec.convert(model_config["perdure"], AgentSpec)` is `spec`.
    """
    config: dict[str, Any] = {
        "on_failure": "retry_last_step" if spec.on_failure == "retry" else "stop",
        "max_tokens": spec.max_tokens,
        "tools": {
            "mode": "allowlist",
            "allowed_tools": [tool.name for tool in _offered(spec)],
        },
        **_context(spec.context),
        "perdure": msgspec.to_builtins(spec),
    }
    return AgentCreate(
        name=spec.name,
        system_prompt=shown_prompt(spec),
        model=spec.model,
        max_steps=spec.limits.steps_max,
        model_config=config,
    )


def agent_offers(specs: Sequence[AgentSpec]) -> tuple[AgentOffer, ...]:
    """Return the agents that a worker serves, each with the names of its tools."""
    return tuple(
        AgentOffer(
            spec.name,
            tuple(tool.name for tool in _offered(spec)),
            {tool.name: tool.version for tool in _offered(spec) if tool.version},
        )
        for spec in specs
    )


def tool_offers(specs: Sequence[AgentSpec]) -> tuple[ToolOffer, ...]:
    """Return the tools of all agents; of two that have one name the first."""
    named: dict[str, ToolSpec] = {}
    for spec in specs:
        for tool in _offered(spec):
            named.setdefault(tool.name, tool)
    return tuple(
        ToolOffer(
            name=tool.name,
            description=tool.description,
            input_schema=tool.parameters,
            side_effect=tool.effect != "read",
            effect=tool.effect,
        )
        for tool in named.values()
    )


def _offered(spec: AgentSpec) -> list[ToolSpec]:
    """Return the tools that a worker carries out: the built-in ones are the runtime's."""
    return [tool for tool in spec.tools if tool.builtin is None]


def _context(policy: ContextPolicy) -> dict[str, Any]:
    if policy.strategy == "compact":
        fold = {"compact_at": policy.compact_at_tokens, "keep": policy.keep_messages}
        return {"context_strategy": "none", "context_policy": fold}
    if policy.strategy == "window":
        return {
            "context_strategy": "sliding_window",
            "context_window": policy.window_messages,
            "context_policy": None,
        }
    return {"context_strategy": "none", "context_policy": None}
