"""What is connected: workers, the tools that they offer, and whether a model can be asked."""

from __future__ import annotations

from typing import Any, Literal

from perdure.api.shapes.common import Shape


class Tool(Shape, frozen=True, kw_only=True):
    """A tool that agents may use now."""

    name: str
    description: str
    input_schema: dict[str, Any]
    source: Literal["builtin", "local", "worker"]
    side_effect: bool = False


class Worker(Shape, frozen=True, kw_only=True):
    """A connected worker."""

    worker_id: str
    capabilities: tuple[str, ...]
    tool_count: int
    gard: int | None = None
    draining: bool = False


class ToolsMeta(Shape, frozen=True, kw_only=True):
    """Who offers the tools."""

    workers_connected: int
    workers: tuple[Worker, ...]
    llm_available: bool


class Tools(Shape, frozen=True, kw_only=True):
    """All tools: built-ins first, and the first of a name."""

    data: tuple[Tool, ...]
    meta: ToolsMeta
