"""Parts of what a run's timeline tells."""

from __future__ import annotations

from typing import Any

from perdure.api.shapes.runs import Source
from perdure.core.messages import Usage


def given(payload: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return a payload with those of the optional fields that are not None."""
    return payload | {name: value for name, value in optional.items() if value is not None}


def usage_of(usage: Usage) -> dict[str, int]:
    """Return what a model call used, as the timeline tells it."""
    told = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    read, written = usage.cache_read_tokens, usage.cache_write_tokens
    return given(told, cache_read_tokens=read or None, cache_write_tokens=written or None)


def is_blank(content: Any) -> bool:
    """Say whether a content says nothing."""
    return not (content.strip() if isinstance(content, str) else content)


def source_of(by: str) -> Source:
    """Return where a fact is from that `by` brought."""
    return "user" if by.startswith("person") else "worker"
