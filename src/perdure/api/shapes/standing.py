"""Standing approvals: what people approved ahead."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from perdure.api.limits import (
    KEY_CHARS_MAX,
    LINE_CHARS_MAX,
    STANDING_MINUTES_MAX,
    USES_PER_SESSION_MAX,
)
from perdure.api.shapes.common import Id, Shape, Timestamp

Uses = Annotated[int, Meta(ge=1, le=USES_PER_SESSION_MAX)]


class StandingApproval(Shape, frozen=True, kw_only=True):
    """Calls of a `tool` by an `agent`, with `arguments` like these, that nobody is asked about.

    `arguments` are predicates as a rule of a policy has them. `by` gave it, with the `roles`. Each
    session may use it `uses_per_session` times; null is without limit. Its `standing` says whether
    it answers anything: it is bound to the policy and to what was declared of the tool.
    """

    id: Id
    agent: str
    tool: str
    arguments: list[dict[str, Any]]
    expires_at: Timestamp
    uses_per_session: int | None = None
    by: str = ""
    roles: tuple[str, ...] = ()
    reason: str = ""
    policy: str
    standing: Literal["in_force", "expired", "policy_changed", "tool_changed", "revoked"]
    inserted_at: Timestamp


class StandingApprovalCreate(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Approve ahead what is like a call that waits for approval.

    `arguments` say what is like it. `digest` is that of the arguments that were looked at. It is
    good for `expires_minutes`, in each session `uses_per_session` times.
    """

    run_id: Id
    call: Annotated[str, Meta(max_length=KEY_CHARS_MAX)]
    arguments: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    expires_minutes: Annotated[int, Meta(ge=1, le=STANDING_MINUTES_MAX)]
    uses_per_session: Uses | None = None
    digest: Annotated[str, Meta(max_length=KEY_CHARS_MAX)] | None = None
    reason: Annotated[str, Meta(max_length=LINE_CHARS_MAX)] | None = None
