"""From what a user writes as a model to a model."""

from __future__ import annotations

import importlib.util

from perdure.adapters.models.direct import DirectModel
from perdure.core.errors import InvalidInput
from perdure.ports.models import Model

PROVIDERS = (
    "anthropic",
    "openai",
    "openai-responses",
    "alibaba",
    "azure",
    "bedrock",
    "cerebras",
    "cohere",
    "deepseek",
    "fireworks",
    "google",
    "google-cloud",
    "groq",
    "huggingface",
    "litellm",
    "mistral",
    "moonshotai",
    "nebius",
    "ollama",
    "openrouter",
    "sambanova",
    "together",
    "vercel",
    "vllm",
    "xai",
    "zai",
)
"""The better known prefixes; every other one that the installed pydantic-ai knows works too."""


def resolve(model: str | Model, /, api_key: str | None = None) -> Model:
    """Return the model that a name stands for; a model stands for itself.

    With `api_key` a named model uses that key, and looks for none in the environment.

    Raises `InvalidInput` for a name that nobody knows, or something that is no model.
    """
    if isinstance(model, str):
        return _named(model, api_key)
    if isinstance(model, type):
        raise InvalidInput(
            f"the model is the class {model.__name__}: expected an object, {model.__name__}(...)"
        )
    if hasattr(model, "reply"):
        return model
    raise InvalidInput(
        f"a {type(model).__name__} is no model: expected a name like "
        "'anthropic:claude-haiku-4-5', a function of the request, or an object with `reply`"
    )


def _named(name: str, api_key: str | None) -> DirectModel:
    prefix, colon, model_name = name.partition(":")
    if prefix == "scripted":
        raise InvalidInput(
            "the model 'scripted' has no script: hand over a ScriptedModel('Hello.', ...) or a "
            "function of the request in place of the name"
        )
    if not colon or not model_name:
        raise InvalidInput(
            f"the model {name!r} names no provider: expected <provider>:<model>, for example "
            f"'anthropic:claude-haiku-4-5'. Providers: {', '.join(PROVIDERS)}"
        )
    if prefix not in PROVIDERS and not _known_to_pydantic_ai(prefix):
        raise InvalidInput(
            f"the model {name!r} is of an unknown provider. Providers: {', '.join(PROVIDERS)}"
        )
    return DirectModel(name, api_key=api_key)


def _known_to_pydantic_ai(prefix: str) -> bool:
    if importlib.util.find_spec("pydantic_ai") is None:
        return False
    from pydantic_ai.providers import infer_provider_class

    try:
        infer_provider_class(prefix)
    except ImportError:
        return True
    except ValueError:
        return False
    return True
