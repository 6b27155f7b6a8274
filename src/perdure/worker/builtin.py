"""The tools that the runtime carries out itself: to wait, to ask a person, to launch agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from perdure.core.agent import Builtin, Effect
from perdure.core.errors import InvalidInput
from perdure.core.limits import WAIT_SECONDS_MAX
from perdure.worker.tool import Tool, tool

Seconds = Annotated[float, Meta(ge=0, le=WAIT_SECONDS_MAX, description="How long, in seconds.")]


def _wait(seconds: Seconds, reason: Annotated[str, "What for."] = "") -> None:
    """Wait before going on. Nothing runs meanwhile, and the wait survives restarts."""
    raise InvalidInput("`wait` is carried out by the runtime: it cannot be called")


def _ask_human(
    question: Annotated[str, "The question, with all that is needed to answer it."],
) -> str:
    """Ask a person and wait for the answer, however long it takes."""
    raise InvalidInput("`ask_human` is carried out by the runtime: it cannot be called")


def _launch_agent(
    agent_name: Annotated[str, "The agent's name."],
    message: Annotated[str, "What it is to do, with all that it needs to know."],
    session: Annotated[
        str | None, "A name: later launches with the same one go on in that conversation."
    ] = None,
    context: Annotated[
        dict[str, Any] | None, "What it is shown before the message: `messages` and `data`."
    ] = None,
) -> Any:
    """Have another agent do something, and wait for its answer. Several calls run in parallel."""
    raise InvalidInput("`launch_agent` is carried out by the runtime: it cannot be called")


def _list_agents() -> Any:
    """List the other agents and what they are for."""
    raise InvalidInput("`list_agents` is carried out by the runtime: it cannot be called")


def _builtin(
    name: Builtin, function: Callable[..., Any], effect: Effect = "read"
) -> Tool[..., Any]:
    made = tool(name=name, effect=effect)(function)
    made.spec = msgspec.structs.replace(made.spec, builtin=name)
    return made


wait = _builtin("wait", _wait)
ask_human = _builtin("ask_human", _ask_human)
launch_agent = _builtin("launch_agent", _launch_agent, "idempotent")
list_agents = _builtin("list_agents", _list_agents)
