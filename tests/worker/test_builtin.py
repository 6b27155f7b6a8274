"""The tools that the runtime carries out."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.errors import InvalidInput
from perdure.worker import Agent, ask_human, wait
from tests.worker.helpers import Desk


def test_their_schemas() -> None:
    """What the core reads of their arguments is what a model is shown."""
    assert wait.spec.builtin == wait.spec.name == "wait"
    assert ask_human.spec.builtin == ask_human.spec.name == "ask_human"
    seconds = wait.spec.parameters["properties"]["seconds"]
    assert (seconds["type"], seconds["minimum"]) == ("number", 0)
    assert wait.spec.parameters["properties"]["reason"]["type"] == "string"
    assert wait.spec.parameters["required"] == ["seconds"]
    assert ask_human.spec.parameters["properties"]["question"]["type"] == "string"
    assert ask_human.spec.parameters["required"] == ["question"]
    assert wait.arguments({"seconds": 3}) == {"seconds": 3}


@pytest.mark.parametrize(
    "builtin,arguments", [(wait, {"seconds": 1}), (ask_human, {"question": "?"})]
)
async def test_nobody_else_carries_them_out(builtin: Any, arguments: dict[str, Any]) -> None:
    """Neither a caller nor a worker."""
    with pytest.raises(InvalidInput, match="carried out by the runtime"):
        builtin(**arguments)
    async with Desk(builtin) as desk:
        assert not desk.worker.serves(desk.tool_task(arguments))


def test_their_names_are_reserved() -> None:
    """A tool of that name is a mistake."""

    def wait(seconds: int) -> None: ...

    with pytest.raises(InvalidInput, match="'wait' is the name of a tool of the runtime"):
        Agent("a", model="scripted", tools=[wait])
