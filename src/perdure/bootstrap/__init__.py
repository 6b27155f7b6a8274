"""The composition root: the one place that chooses adapters."""

from __future__ import annotations

from perdure.adapters.clock import SystemClock
from perdure.bootstrap.opening import (
    MEMORY_URL,
    SQLITE_PREFIX,
    back_up,
    is_shared,
    open_cluster,
    open_reader,
    open_store,
    policy_engine,
    sqlite_path,
    sqlite_version,
    store_facts,
)
from perdure.bootstrap.prices import prices_of
from perdure.bootstrap.runtime import Runtime, Worker
from perdure.bootstrap.service import KEY_VARIABLES, open_service
from perdure.runtime.followers import quarantined
from perdure.runtime.handles import RecordedEvent, Run, TextDelta, recorded
from perdure.runtime.node import Node
from perdure.worker import Agent

__all__ = [
    "KEY_VARIABLES",
    "MEMORY_URL",
    "SQLITE_PREFIX",
    "Agent",
    "Node",
    "RecordedEvent",
    "Run",
    "Runtime",
    "SystemClock",
    "TextDelta",
    "Worker",
    "back_up",
    "is_shared",
    "open_cluster",
    "open_reader",
    "open_service",
    "open_store",
    "policy_engine",
    "prices_of",
    "quarantined",
    "recorded",
    "sqlite_path",
    "sqlite_version",
    "store_facts",
]
