"""What a client's socket is told of a run: the events of its timeline under the channel's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from perdure.api.shapes.runs import Event
from perdure.api.timeline import BUILTINS


class Push(NamedTuple):
    """A message for everybody who has joined the agent's topic."""

    event: str
    payload: dict[str, Any]


# An event of the timeline -> the name of the push, and which fields of the payload it carries.
PUSHES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "run_started": ("agent_started", ()),
    "llm_response": ("llm_response", ("step", "finish_reason", "content", "tool_calls")),
    "tool_call": ("tool_call", ("name", "arguments")),
    "tool_result": ("tool_result", ("tool_call_id", "name", "content", "kind", "data")),
    "waiting_for_user": ("waiting_for_user", ("tool_call_id", "question")),
    "waiting_for_timer": ("waiting_timer", ("seconds", "reason")),
    "context_compacted": ("context_compacted", ("step", "dropped", "kept")),
    "run_completed": ("completed", ("output",)),
    "run_failed": ("error", ("error",)),
}


def push(event: Event, agent_id: int, run_id: int) -> Push | None:
    """Return what is pushed when `event` happens; None for what Norns' channel does not tell.

    Calls that were denied, and those that no worker carries out, are told by their results alone.
    """
    row = PUSHES.get(event.event_type)
    payload = event.payload
    if row is None:
        return None
    if event.event_type == "tool_call" and (
        payload["name"] in BUILTINS or payload.get("verdict") == "deny"
    ):
        return None
    name, fields = row
    told = {field: payload[field] for field in fields if field in payload}
    return Push(name, {"agent_id": agent_id, "run_id": run_id, **told})


def resumed(agent_id: int, run_id: int) -> Push:
    """Return what is pushed when a node goes on with a run that another had begun."""
    return Push("agent_resumed", {"agent_id": agent_id, "run_id": run_id})
