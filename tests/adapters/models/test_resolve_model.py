"""From names, functions and objects to models."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.adapters.models import DirectModel, ScriptedModel, resolve
from perdure.adapters.models.resolve import PROVIDERS
from perdure.core.errors import InvalidInput


def test_a_name_is_a_real_model() -> None:
    for name in ("anthropic:claude-haiku-4-5", "openai:gpt-5", "bedrock-mantle:openai.gpt-5"):
        model = resolve(name)
        assert isinstance(model, DirectModel)
        assert model.name == name


def test_a_model_stays_itself() -> None:
    model = ScriptedModel("Hello.")
    assert resolve(model) is model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("scripted", "ScriptedModel"),
        ("scripted:x", "ScriptedModel"),
        ("gpt-5", "names no provider"),
        ("openai:", "names no provider"),
        ("nobody:gpt-5", ", ".join(PROVIDERS)),
        (ScriptedModel, "is the class ScriptedModel"),
        (42, "int is no model"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(model)
    assert expected in str(caught.value)


def test_every_listed_provider_exists() -> None:
    from pydantic_ai.providers import infer_provider_class

    for name in PROVIDERS:
        try:
            infer_provider_class(name)
        except ImportError:  # its SDK is not installed here, and that is what it says
            continue
