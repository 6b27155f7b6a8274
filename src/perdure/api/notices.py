"""Notices: which events of a run's timeline endpoints are told about, and what they are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from perdure.api.shapes.endpoints import NoticeType
from perdure.api.shapes.runs import Event

PAYLOAD_BYTES_MAX = 16 * 1024
"""A larger payload is left out of a notice: it can be asked for."""

TYPES: Mapping[str, NoticeType] = {
    "run_started": "run.started",
    "waiting_for_user": "run.waiting",
    "decision_requested": "run.waiting",
    "approval_requested": "run.waiting",
    "approval_reassigned": "run.waiting",
    "people_reminded": "run.reminded",
    "budget_exceeded": "run.waiting",
    "run_completed": "run.completed",
    "run_failed": "run.failed",
}
"""An event of the timeline -> the type of its notice; others make none."""

_encode = msgspec.json.Encoder().encode


class Notice(NamedTuple):
    """What endpoints are told: the type by which they choose, and the data."""

    type: NoticeType
    data: dict[str, Any]


def notice(event: Event, run_id: int, agent_id: int, conversation_id: int) -> Notice | None:
    """Return what endpoints are told when `event` happens; None for nothing.

    The data has the event as `GET /runs/{id}/events` has it. A payload that is too large is left
    out, and `complete` is false.
    """
    type_ = TYPES.get(event.event_type)
    if type_ is None:
        return None
    if type_ == "run.failed" and event.payload.get("error_code") == "cancelled":
        type_ = "run.cancelled"
    whole = len(_encode(event.payload)) <= PAYLOAD_BYTES_MAX
    told = event if whole else msgspec.structs.replace(event, payload={})
    about = {"run_id": run_id, "agent_id": agent_id, "conversation_id": conversation_id}
    return Notice(type_, {**about, "event": msgspec.to_builtins(told), "complete": whole})
