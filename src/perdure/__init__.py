"""Perdure: a durable runtime for LLM agents.

An agent that has run for hours survives a crash, a deploy, and a lost process, and goes on at the
exact step where it stopped.
"""

from __future__ import annotations

from perdure.bootstrap import Runtime
from perdure.core.agent import ContextPolicy, Limits
from perdure.core.errors import (
    InvalidInput,
    LimitExceeded,
    NotFound,
    PerdureError,
    Refused,
    RunCancelled,
    RunFailed,
    StoreLocked,
    StoreRefused,
    Unavailable,
)
from perdure.core.messages import ModelReply, ToolRequest, Usage
from perdure.ports.models import ModelError, ModelRequest
from perdure.runtime.handles import RecordedEvent, Run, TextDelta
from perdure.runtime.settings import NodeSettings
from perdure.worker import Agent, Tool, ToolContext, ask_human, tool, wait

__all__ = [
    "Agent",
    "ContextPolicy",
    "InvalidInput",
    "LimitExceeded",
    "Limits",
    "ModelError",
    "ModelReply",
    "ModelRequest",
    "NodeSettings",
    "NotFound",
    "PerdureError",
    "RecordedEvent",
    "Refused",
    "Run",
    "RunCancelled",
    "RunFailed",
    "Runtime",
    "StoreLocked",
    "StoreRefused",
    "TextDelta",
    "Tool",
    "ToolContext",
    "ToolRequest",
    "Unavailable",
    "Usage",
    "ask_human",
    "tool",
    "wait",
]
