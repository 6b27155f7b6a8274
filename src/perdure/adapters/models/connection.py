"""One provider's client, kept open between calls, and one call through it.

The extra `models` is imported by what is called here, never by importing this.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from perdure.adapters.models import conversation, streams
from perdure.adapters.models.failures import model_error
from perdure.core.limits import REPLY_BYTES_MAX
from perdure.core.messages import ModelReply
from perdure.ports.models import ModelError, ModelRequest, OnText

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai import messages as pai
    from pydantic_ai.models import Model
    from pydantic_ai.providers import Provider

KEYLESS = "no-key"
"""Sent where the SDK wants a key and the server does not."""

CHAT = frozenset({"openai", "openai-chat"})
OWN_CLIENT = CHAT | {"anthropic", "openai-responses"}
"""Prefixes whose SDK client is made here."""


class Connection:
    """A pydantic-ai model whose HTTP client is ours: watched, without retries, with our limits.

    Making one imports all that a call needs, which takes about a second: do it in a thread.
    """

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None,
        base_url: str | None,
        connect_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        """Make the client. Raises `ModelError` if the name, a key or a package is missing."""
        self._name = name
        self._prefix, _, self._model_name = name.partition(":")
        self._provider = self._prefix.removesuffix("-chat")
        self._api_key = api_key
        self._base_url = base_url
        self._read_timeout_s = read_timeout_s
        text, code = "", ""
        try:
            self._http = _http_client(connect_timeout_s, read_timeout_s)
            self._model = self._build()
        except ImportError as error:
            text = f"not everything for it is installed ({error}): pip install 'perdure[models]'"
            code = "extra_missing"
        except (RuntimeError, ValueError, TypeError) as error:  # a UserError is a RuntimeError
            text = str(error)
            code = "missing_api_key" if "environment variable" in text else "unknown_model"
        if text:
            told = f"{name} cannot be set up: {text}"
            raise ModelError(told, error_class="validation", code=code)
        key = getattr(getattr(self._model, "client", None), "api_key", None)
        openai = sys.modules.get("pydantic_ai.models.openai")
        self._is_chat = openai is not None and isinstance(self._model, openai.OpenAIChatModel)
        self._secrets = tuple(s for s in (api_key, key) if isinstance(s, str) and s != KEYLESS)

    def _build(self) -> Model:
        import pydantic_ai.direct
        import pydantic_ai.settings  # noqa: F401  `ask` runs on the event loop and finds it loaded
        from pydantic_ai.models import infer_model

        if self._prefix not in CHAT:
            return infer_model(self._name, provider_factory=self._make)
        from pydantic_ai.models.openai import OpenAIChatModel

        return OpenAIChatModel(self._model_name, provider=self._make("openai"))

    def _make(self, prefix: str) -> Provider[Any]:
        """Return the provider of this prefix, with our HTTP client where it takes one."""
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.providers import infer_provider, infer_provider_class

        given = {"http_client": self._http, "api_key": self._api_key, "base_url": self._base_url}
        if prefix in OWN_CLIENT:
            return _own_client(prefix, **given)
        if prefix.startswith("gateway/"):
            return infer_provider(prefix)
        provider_class = infer_provider_class(prefix)
        taken = inspect.signature(provider_class.__init__).parameters
        if self._base_url and "base_url" not in taken:
            raise UserError(f"the provider {prefix!r} takes no base_url")
        if self._api_key and "api_key" not in taken:
            raise UserError(f"the provider {prefix!r} takes no api_key: leave out its credential")
        wanted: dict[str, Any] = {name: it for name, it in given.items() if it and name in taken}
        provider = provider_class(**wanted)
        if hasattr(provider.client, "max_retries"):
            provider.client.max_retries = 0
        return provider

    async def ask(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return the whole reply; raises `ModelError`."""
        from pydantic_ai.direct import model_request_stream
        from pydantic_ai.settings import ModelSettings

        settings = ModelSettings()
        if request.max_tokens is not None:
            settings["max_tokens"] = request.max_tokens
        if self._prefix not in OWN_CLIENT:
            settings["timeout"] = self._read_timeout_s
        try:
            async with model_request_stream(
                self._model,
                conversation.history(request, self._provider),
                model_settings=settings,
                model_request_parameters=conversation.parameters(request),
                instrument=False,
            ) as stream:
                size = 0
                async for event in stream:
                    text, added = _news(event)
                    size += added
                    if size > REPLY_BYTES_MAX:
                        raise streams.too_large()  # noqa: TRY301  closes the stream on its way
                    if text:
                        on_text(conversation.well_formed(text))
                response = stream.get()
            return self._reply(response, request)
        except Exception as error:  # noqa: BLE001  an SDK may raise anything
            failure = model_error(error, self._name, self._secrets)
        # Outside of the handler: the original's text and headers may hold the key.
        raise failure

    def _reply(self, response: pai.ModelResponse, request: ModelRequest) -> ModelReply:
        """Return a response as a reply; raises `ModelError` if it is not a complete one."""
        finish: str | None = response.finish_reason
        raw = (response.provider_details or {}).get("finish_reason")
        if self._is_chat and raw is None and finish != "content_filter":
            finish = None  # pydantic-ai filled in a `stop` that nobody sent
        if finish == "error":
            raise streams.incomplete(f"{self._name} broke it off ({raw or 'error'})")
        if finish is None and raw is None:
            raise streams.incomplete("it came without a finish reason")
        reply = conversation.reply(response, self._provider, finish or str(raw))
        if request.purpose == "compact" and not str(reply.content).strip():
            raise streams.incomplete("a summary was asked for, and it is empty")
        return reply

    async def aclose(self) -> None:
        """Close the HTTP client."""
        await self._http.aclose()


def _http_client(connect_timeout_s: float, read_timeout_s: float) -> httpx2.AsyncClient:
    import httpx2

    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(read_timeout_s, connect=connect_timeout_s),
        limits=httpx2.Limits(max_connections=1_000, max_keepalive_connections=100),
        # The end of a stream is looked for in its bytes; a compressed one could not be read.
        headers={"Accept-Encoding": "identity"},
        event_hooks={"response": [streams.watch]},
    )


def _own_client(prefix: str, *, http_client: Any, **given: Any) -> Provider[Any]:
    """Return a provider on an SDK client that tries once and has our HTTP client's timeouts."""
    given |= {"http_client": http_client, "timeout": http_client.timeout, "max_retries": 0}
    if prefix == "anthropic":
        from anthropic import AsyncAnthropic
        from pydantic_ai.providers.anthropic import AnthropicProvider

        return AnthropicProvider(anthropic_client=AsyncAnthropic(**given))
    from openai import AsyncOpenAI
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIProvider(openai_client=AsyncOpenAI(**given))


def _news(event: Any) -> tuple[str, int]:
    """Return the text that an event of a stream adds to the reply, and the bytes it adds in all."""
    if event.event_kind == "part_start":
        part, kind = event.part, event.part.part_kind
        content = part.args if kind == "tool-call" else getattr(part, "content", None)
    elif event.event_kind == "part_delta":
        part, kind = event.delta, event.delta.part_delta_kind
        content = part.args_delta if kind == "tool_call" else getattr(part, "content_delta", None)
    else:
        return "", 0
    news = "" if content is None else str(content)
    return (news if kind == "text" else ""), len(news.encode(errors="replace"))
