"""The policy of a tenant."""

from __future__ import annotations

from typing import Any

from msgspec import field

from perdure.api.shapes.common import Shape, Timestamp


class Policy(Shape, frozen=True, kw_only=True):
    """The rules in force. `version` addresses them by content; every verdict names it.

    Without a policy both are empty: what agents list and are granted is allowed.
    """

    version: str = ""
    policy: dict[str, Any] = field(default_factory=dict)
    updated_at: Timestamp | None = None


class PolicyUpdate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules that are to be in force, in the form of a policy's file."""

    policy: dict[str, Any]
