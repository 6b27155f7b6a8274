"""From a call that a model proposes to one that may be sent: the gate's verdict, and people's.

The verdict is in the same commit as the intent. An approval is bound to the exact arguments, the
version of the tool and that of the policy: when one of them changes, it is asked for anew.
"""

from __future__ import annotations

from typing import Any

from perdure.core import children, ids
from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import ToolSpec
from perdure.core.decision import Draft, Refusal
from perdure.core.evolve_calls import EXPIRED
from perdure.core.gate import Asked, Terms, Verdict
from perdure.core.limits import APPROVERS_MAX, DOUBTS_MAX, ROLES_MAX, clip
from perdure.core.reminding import first_reminder
from perdure.core.state import Approval, Call, Decided

UNRESOLVED = "unresolved_call"
"""The rule by which people are asked about a call that may have been made before."""
TOO_MANY_UNRESOLVED = "too_many_unresolved_calls"
"""The rule that denies what may change something while too much is in doubt to remember more."""
UNSURE_PART = 10
UNSURE_MS_MAX = 60_000
"""A key is taken for forgotten a tenth of its window early, at most a minute."""


def propose(
    draft: Draft, place: dict[str, Any], tool: ToolSpec, arguments: dict[str, Any], key: str
) -> None:
    """Ask the gate about a call, and intend it, deny it, or ask people."""
    digest = "" if tool.effect == "read" else ids.arguments_digest(arguments)
    verdict = _verdict(draft, tool, arguments, digest)
    _carry_out(draft, verdict, place, tool, arguments, digest, key)


def _verdict(draft: Draft, tool: ToolSpec, arguments: dict[str, Any], digest: str) -> Verdict:
    """Return what the gate says, unless it allows what is in doubt."""
    verdict = _judged(draft, tool, arguments)
    if tool.effect == "read" or verdict.effect == "deny":
        return verdict
    return _unless_in_doubt(draft, verdict, tool.name, digest)


def _judged(draft: Draft, tool: ToolSpec, arguments: dict[str, Any]) -> Verdict:
    """Return what the gate says; a gate that fails denies."""
    context = draft.context
    tenant, agent = context.session.tenant, context.agent.spec
    asked = Asked(tenant, agent, tool, arguments, context.now, draft.state.uses)
    try:
        gate = children.gate_for(context.gate, draft.state.run, context.peers)
        return gate.judge(asked)
    except Exception as error:  # noqa: BLE001  whatever goes wrong in a gate, it does not open
        return Verdict("deny", "gate_failed", clip(f"the policy could not be applied: {error!r}"))


def _unless_in_doubt(draft: Draft, verdict: Verdict, tool: str, digest: str) -> Verdict:
    """Ask people about a call that may have been made before; deny where too much is in doubt."""
    doubts = draft.state.doubts
    if len(doubts) >= DOUBTS_MAX:
        why = f"the outcome of {len(doubts)} calls is unknown, the oldest is {doubts[0].call}"
        return Verdict("deny", TOO_MANY_UNRESOLVED, f"{why}: people have to resolve some first")
    for doubt in doubts:
        if verdict.effect == "allow" and (doubt.name, doubt.digest) == (tool, digest):
            why = f"call {doubt.call} had the same arguments, and its outcome is unknown"
            return Verdict("ask", UNRESOLVED, why, Terms())
    return verdict


def _carry_out(
    draft: Draft,
    verdict: Verdict,
    place: dict[str, Any],
    tool: ToolSpec,
    arguments: dict[str, Any],
    digest: str,
    key: str,
) -> None:
    now, policy = draft.now, draft.context.gate.version
    what: Any = {"at": now, **place, "name": tool.name, "policy": policy}
    if verdict.effect == "deny":
        draft.add(e.ToolCallDenied(**what, rule=verdict.rule, content=_denied(verdict)))
    elif verdict.effect == "allow":
        _intend(draft, what, tool, verdict.rule, arguments, digest, key)
    else:
        terms = verdict.terms
        draft.add(
            e.ApprovalRequested(
                **what,
                effect=tool.effect,
                key=key,
                arguments=arguments,
                digest=digest or ids.arguments_digest(arguments),
                rule=verdict.rule,
                reason=verdict.reason,
                expires_at=now + terms.expires_ms,
                version=tool.version,
                needed=min(terms.needed, APPROVERS_MAX),
                roles=terms.roles,
                escalate_at=None if terms.escalate_ms is None else now + terms.escalate_ms,
                escalate_to=terms.escalate_to,
                remind_at=first_reminder(draft),
            )
        )


def _intend(
    draft: Draft,
    what: Any,
    tool: ToolSpec,
    rule: str,
    arguments: dict[str, Any],
    digest: str,
    key: str,
) -> None:
    if tool.builtin == "launch_agent":
        children.launch(draft, {**what, "rule": rule}, arguments, key)
        return
    unsure_at = None
    if tool.effect == "idempotent" and (window_ms := tool.key_window_ms) is not None:
        unsure_at = draft.now + window_ms - min(UNSURE_MS_MAX, window_ms // UNSURE_PART)
    draft.add(
        e.ToolCallIntended(
            **what,
            effect=tool.effect,
            key=key,
            rule=rule,
            version=tool.version,
            digest=digest,
            unsure_at=unsure_at,
        )
    )
    if tool.builtin == "list_agents":
        children.list_agents(draft, what["call"])


def _denied(verdict: Verdict) -> str:
    why = f": {verdict.reason}" if verdict.reason else ""
    return f"This call was not made. The rule {verdict.rule!r} denies it{why}."


def decide_approval(draft: Draft, command: c.DecideApproval) -> Refusal | None:
    """Take what a person decided on a call that waits for approval."""
    call = draft.state.calls.get(command.call)
    run = draft.state.run
    if (decided := _decided(draft, command.call)) is not None:
        return Refusal("already_decided", f"call {command.call!r} was {_in_words(decided)}")
    if run is None or run.id != command.run:
        return Refusal("not_running", f"run {command.run!r} is not in progress")
    if call is None or (approval := call.approval) is None or call.status != "pending":
        return Refusal("not_pending", f"call {command.call!r} does not wait for approval")
    if call.due_at is not None and draft.now >= call.due_at:
        return Refusal("expired", f"the time to decide on call {call.id!r} was over")
    refusal = _not_entitled(approval, command) or _other_arguments(call, command)
    if refusal is not None:
        return refusal
    if command.decision == "deny":
        _deny(draft, call, "denied_by_person", _said_no(command), command.by)
    elif command.decision == "edit":
        return _edit(draft, call, approval, command)
    elif command.decision == "reassign":
        return _reassign(draft, call, command)
    else:
        return _approve(draft, call, approval, command)
    return None


def expire(draft: Draft, call: Call) -> None:
    """Deny a call on which nobody decided in time."""
    _deny(draft, call, EXPIRED, "This call was not made. Nobody approved it in time.")


def _deny(draft: Draft, call: Call, rule: str, content: str, by: str = "") -> None:
    place: Any = {"call": call.id, "step": call.step, "ordinal": call.ordinal, "name": call.name}
    policy = call.approval.policy if call.approval else ""
    denied = e.ToolCallDenied(
        at=draft.now, **place, rule=rule, content=content, policy=policy, by=by
    )
    draft.add(denied)


def _said_no(command: c.DecideApproval) -> str:
    why = f": {clip(command.reason)}" if command.reason else "."
    return f"This call was not made. {command.by} denied it{why}"


def _decided(draft: Draft, call: str) -> Decided | None:
    """Return what was decided on a call, if that is remembered: no two calls have one id."""
    return next((one for one in draft.state.decided if one.call == call), None)


def _in_words(decided: Decided) -> str:
    if decided.outcome == "expired":
        return f"denied at {decided.at}: nobody had approved it in time"
    return f"{decided.outcome} by {decided.by} at {decided.at}"


def _not_entitled(approval: Approval, command: c.DecideApproval) -> Refusal | None:
    if command.held is None or not approval.roles or set(command.held) & set(approval.roles):
        return None
    return Refusal(
        "not_entitled", f"{command.by} has none of the roles {', '.join(approval.roles)}"
    )


def _other_arguments(call: Call, command: c.DecideApproval) -> Refusal | None:
    if command.digest in (None, call.digest):
        return None
    return Refusal(
        "arguments_changed",
        f"the decision is on arguments with the digest {command.digest}, and those of call "
        f"{call.id!r} have {call.digest}: look at them again",
    )


def _approve(
    draft: Draft, call: Call, approval: Approval, command: c.DecideApproval
) -> Refusal | None:
    if command.by in approval.by:
        return Refusal("already_approved", f"{command.by} has approved call {call.id!r} already")
    tool = draft.context.agent.tools_by_name.get(call.name)
    if tool is None or (tool.version, tool.effect) != (call.version, call.effect):
        now = "gone" if tool is None else f"of version {tool.version!r} and {tool.effect}"
        text = f"This call was not made. The tool {call.name!r} is {now} by now."
        _deny(draft, call, "tool_changed", text)
        return Refusal("tool_changed", text)
    verdict = _verdict(draft, tool, call.arguments or {}, call.digest)
    if not _is_asked_for(draft, approval, verdict):
        return _anew(draft, call, tool, verdict)
    role = next((one for one in approval.roles if one in (command.held or ())), "")
    draft.add(
        e.ApprovalGiven(at=draft.now, call=call.id, digest=call.digest, by=command.by, role=role)
    )
    if len(approval.by) + 1 >= approval.needed:
        what = {**_place(draft, call), "policy": draft.context.gate.version}
        rule = f"approved:{approval.rule}"
        _intend(draft, what, tool, rule, call.arguments or {}, call.digest, call.key)
    return None


def _is_asked_for(draft: Draft, approval: Approval, verdict: Verdict) -> bool:
    """Say whether an approval is all that a verdict of now asks for."""
    if verdict.effect != "ask":
        return verdict.effect == "allow"
    same_policy = approval.policy == draft.context.gate.version or verdict.rule == UNRESOLVED
    return approval.rule == verdict.rule and same_policy


def _anew(draft: Draft, call: Call, tool: ToolSpec, verdict: Verdict) -> Refusal:
    """Carry out the verdict of now on a call that was asked about under another one."""
    place: Any = {"call": call.id, "step": call.step, "ordinal": call.ordinal}
    _carry_out(draft, verdict, place, tool, call.arguments or {}, call.digest, call.key)
    says = "denies it" if verdict.effect == "deny" else "asks: look at it again"
    return Refusal(
        "policy_changed",
        f"the policy changed after call {call.id!r} was asked about: now the rule "
        f"{verdict.rule!r} {says}",
    )


def _edit(
    draft: Draft, call: Call, approval: Approval, command: c.DecideApproval
) -> Refusal | None:
    """Change the arguments of a call; another rule may ask others about the new ones."""
    arguments = command.arguments
    tool = draft.context.agent.tools_by_name.get(call.name)
    if arguments is None or tool is None:
        return Refusal("invalid_arguments", f"say which arguments call {call.id!r} is to have")
    digest = ids.arguments_digest(arguments)
    verdict = _verdict(draft, tool, arguments, digest)
    if verdict.effect == "deny":
        return Refusal("denied", f"the rule {verdict.rule!r} denies that: {verdict.reason}")
    draft.add(
        e.ArgumentsEdited(
            at=draft.now, call=call.id, arguments=arguments, digest=digest, by=command.by
        )
    )
    if not _is_asked_for(draft, approval, verdict):
        _anew(draft, draft.state.calls[call.id], tool, verdict)
    return None


def _reassign(draft: Draft, call: Call, command: c.DecideApproval) -> Refusal | None:
    if not 1 <= len(command.roles) <= ROLES_MAX:
        return Refusal("no_roles", f"name one to {ROLES_MAX} roles that are to decide")
    draft.add(
        e.ApprovalReassigned(
            at=draft.now,
            call=call.id,
            roles=command.roles,
            by=command.by,
            reason=clip(command.reason),
        )
    )
    return None


def _place(draft: Draft, call: Call) -> dict[str, Any]:
    return {
        "at": draft.now,
        "call": call.id,
        "step": call.step,
        "ordinal": call.ordinal,
        "name": call.name,
    }
