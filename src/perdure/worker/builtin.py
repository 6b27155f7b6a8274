"""The tools that the runtime carries out itself: to wait, and to ask a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

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


def _builtin(name: Literal["wait", "ask_human"], function: Callable[..., Any]) -> Tool[..., Any]:
    made = tool(name=name, effect="read")(function)
    made.spec = msgspec.structs.replace(made.spec, builtin=name)
    return made


wait = _builtin("wait", _wait)
ask_human = _builtin("ask_human", _ask_human)
