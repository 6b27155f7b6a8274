"""Model: one complete reply to one request. The adapter's own classes never pass this line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from perdure.core.agent import ToolSpec
from perdure.core.errors import PerdureError
from perdure.core.events import ErrorClass
from perdure.core.messages import Message, ModelReply

OnText = Callable[[str], None]


class ModelRequest(msgspec.Struct, frozen=True, gc=False):
    """What a model is asked. `purpose` `compact` asks for a summary of `messages`."""

    model: str
    instructions: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_tokens: int | None = None
    purpose: Literal["reply", "compact"] = "reply"


class ModelError(PerdureError):
    """A model could not be asked, or answered with something that cannot be used.

    `status` is an HTTP status if there was one. `error_class` and `code` override what would be
    read from the status and the text.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_ms: int | None = None,
        error_class: ErrorClass | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_ms = retry_after_ms
        self.error_class = error_class
        self.code = code


class Model(Protocol):
    """A language model, real or scripted."""

    async def reply(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return the whole reply; `on_text` gets pieces of its text as they arrive.

        Raises `ModelError`. Never returns part of a reply: a stream that was cut is an error.
        """
        ...
