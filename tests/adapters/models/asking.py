"""Asking a model over real HTTP, in one line."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from perdure.adapters.models import DirectModel
from perdure.core.agent import ToolSpec
from perdure.core.messages import Message, ModelReply, UserMessage
from perdure.ports.models import ModelError, ModelRequest
from perdure.testing.stub_provider import StubProvider

KINDS = ("anthropic", "openai")
KEY = "sk-test-0123456789abcdef"
ADD = ToolSpec(
    "add",
    "Adds two numbers.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)


def url(kind: str, stub: StubProvider) -> str:
    """Where this format is spoken."""
    return stub.anthropic_url if kind == "anthropic" else stub.openai_url


@asynccontextmanager
async def model_of(kind: str, stub: StubProvider, **options: Any) -> AsyncIterator[DirectModel]:
    """A model that asks the stub in this format."""
    options = {"api_key": KEY, "base_url": url(kind, stub)} | options
    model = DirectModel(f"{kind}:some-model", **options)
    try:
        yield model
    finally:
        await model.aclose()


def request(*messages: Message, **fields: Any) -> ModelRequest:
    """A request with one tool; without messages it says hello."""
    known: dict[str, Any] = {"model": "some-model", "instructions": "Be brief.", "tools": (ADD,)}
    return ModelRequest(messages=messages or (UserMessage("Hello."),), **(known | fields))


async def ask(model: Any, *messages: Message, **fields: Any) -> tuple[ModelReply, list[str]]:
    """The reply, and the pieces of its text."""
    pieces: list[str] = []
    reply = await model.reply(request(*messages, **fields), pieces.append)
    return reply, pieces


async def refusal(model: Any, *messages: Message, **fields: Any) -> ModelError:
    """What a request that fails fails with."""
    with pytest.raises(ModelError) as caught:
        await ask(model, *messages, **fields)
    return caught.value


class Stopwatch:
    """Measures a part of a test in seconds."""

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._start
