"""What waits for people makes itself heard: reminders, and others who are asked in the end.

Both are timers of the session: their times are in its log, so that they outlive every process.
"""

from __future__ import annotations

from perdure.core import events as e
from perdure.core.decision import Draft, Refusal
from perdure.core.state import Call

NOBODY_DECIDED = "nobody had decided in time"


def first_reminder(draft: Draft) -> int | None:
    """Return when people are reminded of what they are asked now; None for never."""
    reminders = draft.context.agent.spec.reminders
    return None if reminders is None else draft.now + reminders.after_ms


def make_heard(draft: Draft, call: Call) -> Refusal | None:
    """Ask others about a call, or remind people of it, if it is time."""
    now, approval = draft.now, call.approval
    if approval is not None and approval.escalate_at is not None and now >= approval.escalate_at:
        by = f"rule:{approval.rule}"
        draft.add(
            e.ApprovalReassigned(
                at=now, call=call.id, roles=approval.escalate_to, by=by, reason=NOBODY_DECIDED
            )
        )
        return None
    if call.remind_at is None or now < call.remind_at:
        return Refusal("not_due", f"call {call.id!r} is due at {call.next_at()}, and it is {now}")
    reminders, count = draft.context.agent.spec.reminders, call.reminded + 1
    again = reminders is not None and count < reminders.times
    draft.add(
        e.PeopleReminded(
            at=now, call=call.id, count=count, remind_at=first_reminder(draft) if again else None
        )
    )
    return None
