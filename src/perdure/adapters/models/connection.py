"""One provider's client, kept open between calls, and one call through it.

Needs the extra `models`; imported by `direct`, when a model is asked for the first time.
"""

from __future__ import annotations

import inspect
from typing import Any

import httpx2
from pydantic_ai import messages as pai
from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class
from pydantic_ai.settings import ModelSettings

from perdure.adapters.models import conversation, streams
from perdure.adapters.models.failures import model_error
from perdure.core.limits import REPLY_BYTES_MAX
from perdure.core.messages import ModelReply
from perdure.ports.models import ModelError, ModelRequest, OnText

KEYLESS = "no-key"
"""Sent where a key is required by the SDK and not by the server."""


class Connection:
    """A pydantic-ai model whose HTTP client is ours: watched, without retries, with our limits."""

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
        self._timeout = httpx2.Timeout(read_timeout_s, connect=connect_timeout_s)
        self._http = httpx2.AsyncClient(
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=1_000, max_keepalive_connections=100),
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [streams.watch]},
        )
        self._model = self._build()
        key = getattr(getattr(self._model, "client", None), "api_key", None)
        self._secrets = tuple(s for s in (api_key, key) if isinstance(s, str) and s != KEYLESS)

    def _build(self) -> Model:
        try:
            if self._prefix in {"openai", "openai-chat"}:
                return OpenAIChatModel(self._model_name, provider=self._make("openai"))
            return infer_model(self._name, provider_factory=self._make)
        except ImportError as error:
            text, code = f"{self._name} needs another package: {error}", "extra_missing"
        except UserError as error:
            text, code = _setting_up(self._name, error)
        except (ValueError, TypeError) as error:
            text, code = f"{self._name} cannot be set up: {error}", "unknown_model"
        raise ModelError(text, error_class="validation", code=code)

    def _make(self, prefix: str) -> Provider[Any]:
        """Return the provider of this prefix, with our HTTP client where it takes one."""
        if prefix == "anthropic":
            return _anthropic(self._http, self._api_key, self._base_url, self._timeout)
        if prefix in {"openai", "openai-responses"}:
            return _openai(self._http, self._api_key, self._base_url, self._timeout)
        if prefix.startswith("gateway/"):
            return infer_provider(prefix)
        provider_class = infer_provider_class(prefix)
        taken = inspect.signature(provider_class.__init__).parameters
        given = {"http_client": self._http, "api_key": self._api_key, "base_url": self._base_url}
        if self._base_url and "base_url" not in taken:
            raise UserError(f"the provider {prefix!r} takes no base_url")
        wanted = {name: value for name, value in given.items() if value and name in taken}
        provider = provider_class(**wanted)
        if hasattr(provider.client, "max_retries"):
            provider.client.max_retries = 0
        return provider

    async def ask(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return the whole reply; raises `ModelError`."""
        messages = conversation.history(request, self._provider)
        parameters = conversation.parameters(request)
        settings = ModelSettings()
        if request.max_tokens is not None:
            settings["max_tokens"] = request.max_tokens
        if self._prefix not in {"anthropic", "openai", "openai-chat", "openai-responses"}:
            settings["timeout"] = self._read_timeout_s
        try:
            async with model_request_stream(
                self._model,
                messages,
                model_settings=settings,
                model_request_parameters=parameters,
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
        except Exception as error:  # noqa: BLE001  an SDK may raise anything; it is told, not hidden
            failure = model_error(error, self._name, self._secrets)
        # Outside of the handler: the original's text and headers may hold the key.
        raise failure

    def _reply(self, response: pai.ModelResponse, request: ModelRequest) -> ModelReply:
        """Return a response as a reply; raises `ModelError` if it is not a complete one."""
        finish = response.finish_reason
        raw = (response.provider_details or {}).get("finish_reason")
        if isinstance(self._model, OpenAIChatModel) and raw is None and finish != "content_filter":
            finish = None  # pydantic-ai fills in `stop`
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


def _anthropic(
    http: httpx2.AsyncClient, api_key: str | None, base_url: str | None, timeout: httpx2.Timeout
) -> Provider[Any]:
    from anthropic import AsyncAnthropic
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = AsyncAnthropic(
        api_key=api_key, base_url=base_url, http_client=http, timeout=timeout, max_retries=0
    )
    return AnthropicProvider(anthropic_client=client)


def _openai(
    http: httpx2.AsyncClient, api_key: str | None, base_url: str | None, timeout: httpx2.Timeout
) -> Provider[Any]:
    from openai import AsyncOpenAI
    from pydantic_ai.providers.openai import OpenAIProvider

    client = AsyncOpenAI(
        api_key=api_key, base_url=base_url, http_client=http, timeout=timeout, max_retries=0
    )
    return OpenAIProvider(openai_client=client)


def _setting_up(name: str, error: UserError) -> tuple[str, str]:
    text = str(error)
    code = "missing_api_key" if "environment variable" in text else "unknown_model"
    return f"{name} cannot be set up: {text}", code


def _news(event: pai.ModelResponseStreamEvent) -> tuple[str, int]:
    """Return the text an event adds to the reply, and how many bytes it adds in all."""
    text = ""
    other: Any = None
    if isinstance(event, pai.PartStartEvent):
        if isinstance(event.part, pai.TextPart):
            text = event.part.content
        elif isinstance(event.part, pai.ToolCallPart):
            other = event.part.args
        else:
            other = getattr(event.part, "content", None)
    elif isinstance(event, pai.PartDeltaEvent):
        if isinstance(event.delta, pai.TextPartDelta):
            text = event.delta.content_delta
        elif isinstance(event.delta, pai.ToolCallPartDelta):
            other = event.delta.args_delta
        else:
            other = getattr(event.delta, "content_delta", None)
    added = len(text.encode(errors="replace"))
    if other is not None:
        added += len(str(other).encode(errors="replace"))
    return text, added
