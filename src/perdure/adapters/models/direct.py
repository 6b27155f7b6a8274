"""Real models, through pydantic-ai's `direct` API: one request, one reply, no loop of its own."""

from __future__ import annotations

import asyncio
import os

from perdure.adapters.models.connection import KEYLESS, Connection
from perdure.core.messages import ModelReply
from perdure.ports.models import ModelError, ModelRequest, OnText

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 120.0
REPLY_TIMEOUT_S = 1_800.0

KEYS = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "openai": ("OPENAI_API_KEY",),
    "openai-chat": ("OPENAI_API_KEY",),
    "openai-responses": ("OPENAI_API_KEY",),
}
"""Provider -> environment variables of which one holds its key; pydantic-ai knows the others'."""


class DirectModel:
    """A provider's model, named as pydantic-ai names it: "anthropic:claude-haiku-4-5".

    "openai:" is Chat Completions, which every compatible server speaks; "openai-responses:" is
    OpenAI's newer API. The key comes from `api_key` or the provider's environment variable, the
    address from `base_url` or the SDK's (ANTHROPIC_BASE_URL, OPENAI_BASE_URL). With an address of
    its own an OpenAI-compatible server may do without a key.

    Every `reply` is one HTTP request: whether it is repeated is decided where it is recorded.
    `read_timeout_s` limits the silence between two pieces, `reply_timeout_s` the whole reply.
    """

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        self.name = name
        self._api_key = api_key
        self._base_url = base_url
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()

    async def reply(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return the whole reply; `on_text` gets pieces of its text as they arrive.

        Raises `ModelError`: of a setting that is missing (before any connection is made), of what
        the provider answered, of a timeout, and of a reply that did not come to its end.
        """
        connection = await self._connected()
        try:
            async with asyncio.timeout(self._reply_timeout_s):
                return await connection.ask(request, on_text)
        except TimeoutError:
            text = f"{self.name} timed out: no whole reply in {self._reply_timeout_s:g} s"
        raise ModelError(text, error_class="transient", code="timeout")

    async def aclose(self) -> None:
        """Close the connections; a later `reply` opens new ones."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _connected(self) -> Connection:
        api_key = self._key()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Sockets belong to the loop that opened them; another one starts with new ones.
            self._loop, self._connection, self._opening = loop, None, asyncio.Lock()
        async with self._opening:
            if self._connection is None:
                # In a thread: the import takes over a second, and this loop has others to serve.
                self._connection = await asyncio.to_thread(self._open, api_key)
            return self._connection

    def _open(self, api_key: str | None) -> Connection:
        return Connection(
            self.name,
            api_key=api_key,
            base_url=self._base_url,
            connect_timeout_s=self._connect_timeout_s,
            read_timeout_s=self._read_timeout_s,
        )

    def _key(self) -> str | None:
        """Return the key to use; None where pydantic-ai or the SDK looks for it."""
        prefix = self.name.partition(":")[0]
        names = KEYS.get(prefix, ())
        if self._api_key or not names:
            return self._api_key
        if any(os.environ.get(name) for name in names):
            return None
        if prefix.startswith("openai") and (self._base_url or os.environ.get("OPENAI_BASE_URL")):
            return KEYLESS
        raise ModelError(
            f"{self.name} needs an API key: set the environment variable {names[0]} where the "
            "worker runs. To try things without a provider, use a ScriptedModel or a function "
            "as the model instead",
            error_class="validation",
            code="missing_api_key",
        )
