"""Agents with every field that a definition has: a new field fails here until it has values."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from perdure.core.agent import AgentSpec, ContextPolicy, Limits, Reminders, Subagents, ToolSpec
from perdure.core.budget import Budget

NAMES: Final = st.from_regex(r"[A-Za-z][a-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: name not in ("wait", "ask_human", "launch_agent", "list_agents", "model")
)
TEXTS: Final = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=40
).map(lambda text: text.strip())
COUNTS: Final = st.integers(1, 400)
SECRETS: Final = ("shop", "vault")
REFERENCES: Final = st.sampled_from(["env:SHOP_KEY", "file:/run/secrets/shop", "vault:a/b#c"])

FIELDS: Final[dict[type[msgspec.Struct], dict[str, st.SearchStrategy[Any]]]] = {
    Limits: {
        "steps_max": COUNTS,
        "tokens_max": st.none() | COUNTS,
        "wall_ms_max": st.none() | COUNTS,
    },
    ContextPolicy: {
        "strategy": st.sampled_from(["none", "window", "compact"]),
        "window_messages": COUNTS,
        "compact_at_tokens": COUNTS,
        "keep_messages": COUNTS,
    },
    Subagents: {
        "mode": st.sampled_from(["open", "allowlist", "disabled"]),
        "allowed": st.lists(NAMES, max_size=2).map(tuple),
        "may_list": st.booleans(),
        "depth_max": COUNTS,
        "children_max": COUNTS,
        "on_failure": st.sampled_from(["tell", "restart", "escalate", "abort"]),
        "restarts_max": st.integers(1, 100),
        "restart_window_ms": COUNTS,
        "then": st.sampled_from(["tell", "escalate", "abort"]),
        "session": st.sampled_from(["fresh", "per_parent"]),
    },
    Reminders: {"after_ms": st.integers(1_000, 10**9), "times": st.integers(1, 100)},
    ToolSpec: {
        "name": NAMES,
        "description": TEXTS,
        "parameters": st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, st.just({}))}
        ),
        "effect": st.sampled_from(["read", "idempotent", "once"]),
        "probe": st.booleans(),
        "on_unknown": st.sampled_from(["tell", "ask"]),
        "timeout_ms": COUNTS,
        "capabilities": st.lists(NAMES, max_size=2).map(tuple),
        "isolated": st.booleans(),
        "builtin": st.none(),  # only perdure's own tools have it
        "version": TEXTS,
        "credentials": st.lists(st.sampled_from(SECRETS), unique=True).map(tuple),
        "key_window_ms": st.none() | COUNTS,
    },
}


def _structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **FIELDS[kind])


ROLES = st.lists(NAMES, max_size=2).map(tuple)
FIELDS[AgentSpec] = {
    "name": NAMES,
    "model": st.sampled_from(["openai:gpt-5", "anthropic:claude-sonnet-5"]),
    "instructions": TEXTS,
    "tools": st.lists(_structs(ToolSpec), max_size=3, unique_by=lambda tool: tool.name).map(tuple),
    "limits": _structs(Limits),
    "context": _structs(ContextPolicy),
    "on_failure": st.sampled_from(["retry", "stop"]),
    "resume": st.sampled_from(["eager", "lazy"]),
    "max_tokens": st.none() | COUNTS,
    "model_timeout_ms": st.none() | COUNTS,
    "credentials": st.fixed_dictionaries(
        dict.fromkeys(SECRETS, REFERENCES), optional={"model": REFERENCES}
    ),
    "durability": st.sampled_from([None, "memory", "fsynced", "replicated(3)"]),
    "grants": st.lists(NAMES, max_size=2).map(tuple),
    "purpose": TEXTS,
    "subagents": _structs(Subagents),
    "reminders": st.none() | _structs(Reminders),
    "budget": st.none() | st.builds(Budget, tokens_max=st.none() | COUNTS, roles=ROLES),
}

SPECS: Final[st.SearchStrategy[AgentSpec]] = _structs(AgentSpec)
EVERY_FIELD: Final = [(kind, name) for kind in FIELDS for name in kind.__struct_fields__]


def changes(kind: type[msgspec.Struct], name: str) -> st.SearchStrategy[tuple[Any, Any]]:
    """Return two values of a field that differ."""
    values = FIELDS[kind][name]
    return st.tuples(values, values).filter(lambda pair: pair[0] != pair[1])
