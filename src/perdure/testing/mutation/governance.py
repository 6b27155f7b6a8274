"""A broken gate, approvals that hold for something else, and a ledger that forgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.decision import Draft
from perdure.core.evolve import evolve as real_evolve
from perdure.core.gate import Terms, Verdict
from perdure.core.state import State
from perdure.testing.mutation.patches import Patches

APPROVALS = "perdure.core.approvals"


def _always(patches: Patches, name: str, answer: Any) -> None:
    patches.name(APPROVALS, name, lambda original: lambda *given: answer)


def gate_failure_allows(patches: Patches) -> None:
    """Allow a call when the gate fails."""

    def wrap(original: Callable[..., Verdict]) -> Callable[..., Verdict]:
        def judged(*given: Any) -> Verdict:
            verdict = original(*given)
            return Verdict("allow", "rest") if verdict.rule == "gate_failed" else verdict

        return judged

    patches.name(APPROVALS, "_judged", wrap)


def approval_of_any_arguments(patches: Patches) -> None:
    """Take a decision on other arguments for one on those that the call has."""
    _always(patches, "_other_arguments", None)

    def wrap(original: Callable[[Draft, Any], Any]) -> Callable[[Draft, Any], Any]:
        def decided(draft: Draft, command: c.DecideApproval) -> Any:
            answer = original(draft, command)
            if draft.events and isinstance(draft.events[0], e.ApprovalGiven) and command.digest:
                draft.events[0] = replace(draft.events[0], digest=command.digest)
            return answer

        return decided

    patches.name(APPROVALS, "decide_approval", wrap)


def approval_by_anybody(patches: Patches) -> None:
    """Let whoever asks approve, in whatever role."""
    _always(patches, "_not_entitled", None)


def one_is_enough(patches: Patches) -> None:
    """Take one approval for as many as a rule needs."""

    def wrap(original: Callable[..., Verdict]) -> Callable[..., Verdict]:
        def judged(*given: Any) -> Verdict:
            verdict = original(*given)
            terms = verdict.terms
            return replace(verdict, terms=Terms(1, terms.roles, terms.expires_ms))

        return judged

    patches.name(APPROVALS, "_judged", wrap)


def same_person_counts_twice(patches: Patches) -> None:
    """Count the approvals of one person as those of several."""

    def wrap(original: Callable[[Draft, Any], Any]) -> Callable[[Draft, Any], Any]:
        def decided(draft: Draft, command: c.DecideApproval) -> Any:
            call = draft.state.calls.get(command.call)
            if call is not None and call.approval is not None and command.by in call.approval.by:
                command = replace(command, by=f"{command.by} again")
            return original(draft, command)

        return decided

    patches.name(APPROVALS, "decide_approval", wrap)


def expired_approval_counts(patches: Patches) -> None:
    """Take decisions after their time."""

    def wrap(original: Callable[[Draft, Any], Any]) -> Callable[[Draft, Any], Any]:
        def decided(draft: Draft, command: c.DecideApproval) -> Any:
            call = draft.state.calls.get(command.call)
            if call is not None and call.due_at is not None:
                draft.now = min(draft.now, call.due_at - 1)
            return original(draft, command)

        return decided

    patches.name(APPROVALS, "decide_approval", wrap)


def policy_change_ignored(patches: Patches) -> None:
    """Let what was approved through, whatever the policy says by then."""
    _always(patches, "_is_asked_for", True)


def doubt_forgotten(patches: Patches) -> None:
    """Make a call again while nobody knows what became of the first."""

    def wrap(original: Any) -> Callable[..., Verdict]:
        def unless_in_doubt(draft: Draft, verdict: Verdict, tool: str, digest: str) -> Verdict:
            return verdict

        return unless_in_doubt

    patches.name(APPROVALS, "_unless_in_doubt", wrap)


def key_used_for_ever(patches: Patches) -> None:
    """Send a key again that the far end may have forgotten."""

    def wrap(original: Callable[..., None]) -> Callable[..., None]:
        def intend(draft: Draft, what: Any, tool: Any, *more: Any) -> None:
            original(draft, what, replace(tool, key_window_ms=None), *more)

        return intend

    patches.name(APPROVALS, "_intend", wrap)


def edited_arguments_not_sent(patches: Patches) -> None:
    """Send what the model asked for, and not what a person made of it."""

    def wrap(original: Callable[[State, e.Event], State]) -> Callable[[State, e.Event], State]:
        def evolve(state: State, event: e.Event) -> State:
            after = original(state, event)
            if not isinstance(event, e.ToolCallIntended):
                return after
            call = replace(after.calls[event.call], arguments=None)
            return replace(after, calls={**after.calls, call.id: call})

        return evolve

    patches.name(real_evolve.__module__, "evolve", wrap)


def verdict_not_asked(patches: Patches) -> None:
    """Intend every call that a model asks for."""

    def wrap(original: Callable[..., Verdict]) -> Callable[..., Verdict]:
        return lambda *given: Verdict("allow", "rest")

    patches.name(APPROVALS, "_judged", wrap)


MUTANTS = (
    gate_failure_allows,
    verdict_not_asked,
    approval_of_any_arguments,
    approval_by_anybody,
    one_is_enough,
    same_person_counts_twice,
    expired_approval_counts,
    policy_change_ignored,
    edited_arguments_not_sent,
    doubt_forgotten,
    key_used_for_ever,
)
