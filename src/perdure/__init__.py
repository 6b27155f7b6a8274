"""Perdure: a durable runtime for LLM agents.

An agent that has run for hours survives a crash, a deploy, and a lost process, and goes on at the
exact step where it stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.core.agent import ContextPolicy, Limits, Reminders, Subagents
from perdure.core.budget import Budget
from perdure.core.errors import (
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    PerdureError,
    Quarantined,
    Refused,
    RunCancelled,
    RunFailed,
    StoreLocked,
    StoreRefused,
    Unavailable,
    WorkerRefused,
)
from perdure.core.ids import SessionId
from perdure.core.messages import (
    AssistantMessage,
    ModelReply,
    ToolMessage,
    ToolRequest,
    Usage,
    UserMessage,
)
from perdure.core.runs import RunRow
from perdure.policy.policy import Policy
from perdure.ports.credentials import (
    Credential,
    CredentialError,
    CredentialProvider,
    CredentialRefused,
    Secret,
)
from perdure.ports.models import ModelError, ModelRequest
from perdure.runtime.handles import RecordedEvent, Run, TextDelta
from perdure.runtime.settings import NodeSettings
from perdure.worker import (
    Agent,
    RedactingFilter,
    Tool,
    ToolContext,
    ask_human,
    launch_agent,
    list_agents,
    tool,
    wait,
)

if TYPE_CHECKING:
    from perdure.bootstrap import Runtime, Worker

__all__ = [
    "Agent",
    "AssistantMessage",
    "Budget",
    "ContextPolicy",
    "Credential",
    "CredentialError",
    "CredentialProvider",
    "CredentialRefused",
    "InvalidInput",
    "KeyReused",
    "LimitExceeded",
    "Limits",
    "ModelError",
    "ModelReply",
    "ModelRequest",
    "NodeSettings",
    "NotFound",
    "PerdureError",
    "Policy",
    "Quarantined",
    "RecordedEvent",
    "RedactingFilter",
    "Refused",
    "Reminders",
    "Run",
    "RunCancelled",
    "RunFailed",
    "RunRow",
    "Runtime",
    "Secret",
    "SessionId",
    "StoreLocked",
    "StoreRefused",
    "Subagents",
    "TextDelta",
    "Tool",
    "ToolContext",
    "ToolMessage",
    "ToolRequest",
    "Unavailable",
    "Usage",
    "UserMessage",
    "Worker",
    "WorkerRefused",
    "ask_human",
    "launch_agent",
    "list_agents",
    "tool",
    "wait",
]


def __getattr__(name: str) -> Any:
    """Import `Runtime` and `Worker`, and with them every adapter, only when they are asked for."""
    if name in ("Runtime", "Worker"):
        from perdure import bootstrap  # noqa: PLC0415  that it is late is the point

        return getattr(bootstrap, name)
    raise AttributeError(f"module 'perdure' has no attribute {name!r}")
