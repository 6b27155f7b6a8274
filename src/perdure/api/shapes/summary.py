"""The trace summary: a run at a glance, a few kB however long it was."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from perdure.api.shapes.common import Shape
from perdure.api.shapes.runs import RunStatus

CallClass = Literal["ok", "error", "pending"]
SignalKind = Literal[
    "loop",
    "max_steps",
    "tool_failing",
    "unknown_tool",
    "no_tool_use",
    "parked_unanswered",
    "retry_storm",
    "unreturned_call",
]


class SummaryAgent(Shape, frozen=True, kw_only=True):
    """The agent of a summarised run."""

    id: int
    name: str
    model: str
    max_steps: int


class Counters(Shape, frozen=True, kw_only=True):
    """How much there was of everything."""

    steps: int = 0
    llm_calls: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    duplicates_skipped: int = 0
    subagents: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    duration_ms: int = 0


class ToolCount(Shape, frozen=True, kw_only=True):
    """How often a tool was called."""

    calls: int
    errors: int
    pending: int


class SummaryEntry(Shape, frozen=True, kw_only=True, rename={"call_class": "class"}):
    """Consecutive calls of a tool with the same outcome; or a marker of what is left out.

    `call` and `result` are short excerpts.
    """

    seq: tuple[int, int]
    step: int | str | UnsetType = UNSET
    call_class: CallClass | UnsetType = UNSET
    count: int | UnsetType = UNSET
    call: str | UnsetType = UNSET
    result: str | UnsetType = UNSET
    elided: int | UnsetType = UNSET
    calls: int | UnsetType = UNSET
    tools: tuple[str, ...] | UnsetType = UNSET


class Signal(Shape, frozen=True, kw_only=True):
    """Something that deserves a look."""

    kind: SignalKind
    severity: Literal["high", "medium"]
    detail: str
    seq: int | None = None


class Drill(Shape, frozen=True, kw_only=True):
    """Where to look closer: sequences of events."""

    first_failure: int | None = None
    terminal: int | None = None


class Summary(Shape, frozen=True, kw_only=True):
    """A run at a glance, without what was said in it."""

    run_id: int
    agent: SummaryAgent
    parent_run_id: int | None = None
    depth: int = 0
    verdict: RunStatus
    reason: Literal[
        "completed",
        "parked",
        "running",
        "max_steps_exceeded",
        "tool_error_terminal",
        "llm_error",
        "failed",
    ]
    headline: str
    counters: Counters
    tools_used: dict[str, ToolCount]
    timeline: tuple[SummaryEntry, ...]
    signals: tuple[Signal, ...]
    drill: Drill
