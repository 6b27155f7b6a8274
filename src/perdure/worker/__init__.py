"""What an author of agents writes with, and the worker that executes their calls."""

from __future__ import annotations

from perdure.worker.agent import Agent
from perdure.worker.builtin import ask_human, launch_agent, list_agents, wait
from perdure.worker.context import ToolContext
from perdure.worker.local import LocalWorker
from perdure.worker.processes import ISOLATED_VARIABLE
from perdure.worker.redaction import RedactingFilter
from perdure.worker.tool import Tool, tool

__all__ = [
    "ISOLATED_VARIABLE",
    "Agent",
    "LocalWorker",
    "RedactingFilter",
    "Tool",
    "ToolContext",
    "ask_human",
    "launch_agent",
    "list_agents",
    "tool",
    "wait",
]
