"""The policy of a tenant."""

from __future__ import annotations

from typing import Any

from perdure.api.shapes.common import Shape, Timestamp


class Policy(Shape, frozen=True, kw_only=True):
    """The rules in force. `version` addresses them by content; every verdict names it."""

    version: str
    policy: dict[str, Any]
    updated_at: Timestamp
