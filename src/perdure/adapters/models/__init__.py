"""Models: real ones through pydantic-ai (the extra `models`), scripts and functions without it."""

from __future__ import annotations

from perdure.adapters.models.direct import DirectModel
from perdure.adapters.models.resolve import resolve
from perdure.adapters.models.scripted import ScriptedModel, asks, call, says

__all__ = ["DirectModel", "ScriptedModel", "asks", "call", "resolve", "says"]
