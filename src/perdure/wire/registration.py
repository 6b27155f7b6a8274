"""What a worker says of itself when it joins, and what has to be true of it.

| feature | what may be sent once both sides named it |
| --- | --- |
| message_cache | `llm_task` with `messages_delta` instead of `messages` |
| results | `results`: several results in one frame |
| tasks | `tasks`: several tasks in one frame |
| text | `text`: pieces of models' replies while they come |
| progress | `progress`: the task is alive, its time starts anew |
| cancel | `cancel`: a task is owed no more |
| begin | `begin`, `proceed`, `cancel`: a `once` tool asks before it acts |
| credit | `credit`: the worker is sent no more tasks than it granted |
| holds | `holds`: the tasks that a worker went on with while it was not connected |
| native | the worker serves the agents it lists and no others; its tasks and results say all that \
perdure knows of them (`perdure` in a task, `kind` and what follows it in a result) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from perdure.core.agent import Effect
from perdure.wire.frames import FRAME_BYTES_MAX

FEATURES = frozenset(
    {
        "begin",
        "cancel",
        "credit",
        "holds",
        "message_cache",
        "native",
        "progress",
        "results",
        "tasks",
        "text",
    }
)
NORNS_FEATURES = frozenset({"message_cache"})
"""What peers of Norns ask for; they expect nothing about it in the reply to their join."""

CAPABILITIES = ("llm", "tools")
FRAME_BYTES_MIN = 1024
_EFFECTS = (None, "read", "idempotent", "once")


class ToolOffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that a worker has. `effect` is its class; Norns' workers say only `side_effect`."""

    name: str
    description: str
    input_schema: dict[str, Any]
    side_effect: bool = False
    effect: Effect | None = None

    def effect_class(self) -> Effect:
        """Return what the tool promises about being repeated."""
        return self.effect or ("idempotent" if self.side_effect else "read")


class AgentOffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An agent that a native worker serves, with its tools; those that have one by version."""

    name: str
    tools: tuple[str, ...] = ()
    versions: dict[str, str] = {}


class Registration(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A worker that joins. `concurrency` is how many tasks it wants at once; None: it did not say.

    `gard` is an id as text, whatever the peer wrote. `features` are those that we know as well.
    """

    worker_id: str
    tools: tuple[ToolOffer, ...]
    capabilities: tuple[str, ...] = ("tools",)
    features: frozenset[str] = frozenset()
    agents: tuple[AgentOffer, ...] = ()
    gard: str | None = None
    claim_token: str | None = None
    frame_bytes_max: int = FRAME_BYTES_MAX
    concurrency: int | None = None


class InvalidRegistration(msgspec.Struct, frozen=True):
    """Why a join is refused; `code` is for programs, `detail` for who reads the log."""

    code: str
    detail: str


def read_registration(payload: Mapping[str, Any]) -> Registration | InvalidRegistration:
    """Return the worker that a join's payload tells of, or the first thing wrong with it."""
    for is_right, code, detail in CHECKS:
        if not is_right(payload):
            return InvalidRegistration(code, detail)
    features = payload.get("features")
    gard = payload.get("gard")
    token = payload.get("claim_token")
    agreed = FEATURES.intersection(_texts(features))
    return Registration(
        worker_id=payload["worker_id"],
        tools=tuple(_tool(tool) for tool in payload["tools"]),
        capabilities=tuple(payload.get("capabilities", ("tools",))),
        features=agreed,
        agents=_agents(payload) if "native" in agreed else (),
        gard=None if gard is None else str(gard),
        claim_token=token if isinstance(token, str) else None,
        frame_bytes_max=payload.get("frame_bytes_max") or FRAME_BYTES_MAX,
        concurrency=payload.get("concurrency"),
    )


def _tool(tool: Mapping[str, Any]) -> ToolOffer:
    return ToolOffer(
        name=tool["name"],
        description=tool["description"],
        input_schema=tool["input_schema"],
        side_effect=tool.get("side_effect") is True,
        effect=tool.get("effect"),
    )


def _agents(payload: Mapping[str, Any]) -> tuple[AgentOffer, ...]:
    return tuple(
        AgentOffer(agent["name"], tuple(agent.get("tools", ())), agent.get("versions", {}))
        for agent in payload["agents"]
    )


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, str)]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _names_itself(payload: Mapping[str, Any]) -> bool:
    return _is_text(payload.get("worker_id")) and isinstance(payload.get("tools"), list)


def _has_tools(payload: Mapping[str, Any]) -> bool:
    return all(
        isinstance(tool, dict)
        and _is_text(tool.get("name"))
        and isinstance(tool.get("description"), str)
        and isinstance(tool.get("input_schema"), dict)
        and tool.get("effect") in _EFFECTS
        for tool in payload["tools"]
    )


def _has_capabilities(payload: Mapping[str, Any]) -> bool:
    found = payload.get("capabilities", [])
    return isinstance(found, list) and all(item in CAPABILITIES for item in found)


def _has_agents(payload: Mapping[str, Any]) -> bool:
    if "native" not in _texts(payload.get("features")):
        return True
    agents = payload.get("agents")
    return isinstance(agents, list) and all(
        isinstance(agent, dict)
        and _is_text(agent.get("name"))
        and _texts(tools := agent.get("tools", [])) == tools
        and isinstance(versions := agent.get("versions", {}), dict)
        and all(isinstance(version, str) for version in versions.values())
        for agent in agents
    )


def _has_limits(payload: Mapping[str, Any]) -> bool:
    return all(
        value is None or (type(value) is int and value >= least)
        for value, least in (
            (payload.get("frame_bytes_max"), FRAME_BYTES_MIN),
            (payload.get("concurrency"), 1),
        )
    )


CHECKS: tuple[tuple[Callable[[Mapping[str, Any]], bool], str, str], ...] = (
    (
        _names_itself,
        "missing_worker_id_or_tools",
        "worker_id must be a text that is not empty, tools a list",
    ),
    (
        _has_tools,
        "invalid_tools",
        "each tool needs a name, a description and an input_schema; effect is optional",
    ),
    (_has_capabilities, "invalid_capabilities", "capabilities is a list of llm and tools"),
    (
        _has_agents,
        "invalid_agents",
        "with the feature native, agents is a list of name, tools, versions",
    ),
    (
        _has_limits,
        "invalid_limits",
        f"frame_bytes_max is a number from {FRAME_BYTES_MIN}, concurrency one from 1",
    ),
)
"""What is checked, in this order, and the code of a failure. The first three are Norns'."""
