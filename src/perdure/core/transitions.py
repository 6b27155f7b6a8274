"""Every rule about what may happen when, as two tables. A missing entry is an error.

There are two coupled machines. A session is `idle`, or a run is in it: `acting` (tool calls,
timers and questions are open, or the next model call is about to be planned in the same commit),
`thinking` (a model was asked), `delayed` (a failed model call will be tried again), or `compacting`
(a model is folding the history). Each call has a life of its own: `intended` (it may be sent),
`begun` (a `once` call that may have acted and is never sent again), `unknown` (it may have acted,
and the tool's probe is to be asked), `undecided` (a person is to be asked), `pending` (people have
to approve it first), `exceeded` (it does not fit into the budget), `timing`, `asking`, `launched`
(a run of another agent does it); an answered call leaves the table through `done`. What the model
was told to be unknown may be resolved whenever it is known, and letters are delivered, in any
status.

The two machines are coupled in one way only, and `evolve` checks it: a model is asked, and a run
ends, when no call is open. Everything that decides is written elsewhere; everything that is
*allowed* is written here. The diagram in docs/internals/states.md is printed from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping

_ANY = ("idle", "acting", "thinking", "delayed", "compacting")
_ACTING = (
    "tool_call_intended",
    "tool_call_denied",
    "approval_requested",
    "approval_given",
    "approval_reassigned",
    "arguments_edited",
    "tool_call_begun",
    "tool_call_succeeded",
    "tool_call_failed",
    "tool_call_lost",
    "tool_call_unknown",
    "tool_call_reopened",
    "decision_requested",
    "people_reminded",
    "tool_call_cancelled",
    "budget_exceeded",
    "timer_started",
    "timer_fired",
    "question_asked",
    "question_answered",
    "child_launched",
    "child_restarted",
)

SESSION: Mapping[str, Mapping[str, str]] = {
    "idle": {
        "message_received": "idle",
        "session_forked": "idle",
        "history_inherited": "idle",
        "run_withdrawn": "idle",
        "letters_delivered": "idle",
        "tool_call_resolved": "idle",
        "run_started": "acting",
    },
    "acting": {
        "message_received": "acting",
        "history_inherited": "acting",
        "run_withdrawn": "acting",
        "letters_delivered": "acting",
        "tool_call_resolved": "acting",
        "budget_raised": "acting",
        **dict.fromkeys(_ACTING, "acting"),
        "model_call_intended": "thinking",
        "compaction_intended": "compacting",
        "retry_scheduled": "delayed",
        "run_completed": "idle",
        "run_failed": "idle",
        "run_cancelled": "idle",
    },
    "thinking": {
        "run_withdrawn": "thinking",
        "letters_delivered": "thinking",
        "tool_call_resolved": "thinking",
        "budget_raised": "thinking",
        "model_call_resent": "thinking",
        "model_replied": "acting",
        "model_call_failed": "acting",
        "run_failed": "idle",
        "run_cancelled": "idle",
    },
    "delayed": {
        "run_withdrawn": "delayed",
        "letters_delivered": "delayed",
        "tool_call_resolved": "delayed",
        "budget_raised": "delayed",
        "retry_fell_due": "acting",
        "run_failed": "idle",
        "run_cancelled": "idle",
    },
    "compacting": {
        "run_withdrawn": "compacting",
        "letters_delivered": "compacting",
        "tool_call_resolved": "compacting",
        "budget_raised": "compacting",
        "model_call_resent": "compacting",
        "context_compacted": "acting",
        "compaction_failed": "acting",
        "run_failed": "idle",
        "run_cancelled": "idle",
    },
}

CALL: Mapping[str, Mapping[str, str]] = {
    "absent": {
        "model_call_intended": "intended",
        "compaction_intended": "intended",
        "tool_call_intended": "intended",
        "tool_call_denied": "done",
        "tool_call_resolved": "done",
        "approval_requested": "pending",
        "budget_exceeded": "exceeded",
        "timer_started": "timing",
        "retry_scheduled": "timing",
        "question_asked": "asking",
        "child_launched": "launched",
    },
    "pending": {
        "approval_requested": "pending",
        "approval_given": "pending",
        "approval_reassigned": "pending",
        "arguments_edited": "pending",
        "people_reminded": "pending",
        "tool_call_intended": "intended",
        "child_launched": "launched",
        "tool_call_denied": "done",
        "tool_call_cancelled": "done",
    },
    "exceeded": {
        "budget_raised": "done",
        "tool_call_intended": "intended",
        "tool_call_denied": "done",
        "approval_requested": "pending",
        "tool_call_cancelled": "done",
    },
    "intended": {
        "model_call_resent": "intended",
        "model_replied": "done",
        "model_call_failed": "done",
        "context_compacted": "done",
        "compaction_failed": "done",
        "tool_call_begun": "begun",
        "tool_call_succeeded": "done",
        "tool_call_failed": "done",
        "tool_call_lost": "intended",
        "tool_call_unknown": "unknown",
        "tool_call_cancelled": "done",
    },
    "begun": {
        "tool_call_begun": "begun",
        "tool_call_succeeded": "done",
        "tool_call_failed": "done",
        "tool_call_unknown": "unknown",
        "tool_call_cancelled": "done",
    },
    "unknown": {
        "tool_call_succeeded": "done",
        "tool_call_failed": "done",
        "tool_call_reopened": "intended",
        "decision_requested": "undecided",
        "tool_call_cancelled": "done",
    },
    "undecided": {
        "people_reminded": "undecided",
        "tool_call_succeeded": "done",
        "tool_call_failed": "done",
        "tool_call_reopened": "intended",
        "tool_call_cancelled": "done",
    },
    "timing": {
        "timer_fired": "done",
        "retry_fell_due": "done",
        "tool_call_cancelled": "done",
    },
    "asking": {
        "people_reminded": "asking",
        "question_answered": "done",
        "tool_call_cancelled": "done",
    },
    "launched": {
        "child_restarted": "launched",
        "tool_call_succeeded": "done",
        "tool_call_failed": "done",
        "tool_call_cancelled": "done",
    },
}

STATUSES = _ANY
