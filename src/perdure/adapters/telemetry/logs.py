"""Telemetry as lines of the standard logging, under the logger `perdure`."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

WARNINGS = frozenset(
    {
        "agent.unreadable",
        "call.unserved",
        "cluster.unavailable",
        "endpoint.disabled",
        "gate.failed",
        "letter.refused",
        "service.failed",
        "session.conflict",
        "session.fenced",
        "session.quarantined",
        "session.unlike",
        "store.failed",
        "store.unavailable",
        "trigger.invalid",
        "trigger.refused",
        "trigger.waits",
    }
)


class LogTelemetry:
    """One line an event: the name, then its fields as JSON, so that no value can forge a line."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("perdure")

    def emit(self, name: str, **fields: Any) -> None:
        """Log one fact; what went wrong at level WARNING, the rest at DEBUG."""
        level = logging.WARNING if name in WARNINGS else logging.DEBUG
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s %s", name, msgspec.json.encode(fields).decode())
