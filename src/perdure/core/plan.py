"""What a run does next, once nothing of its last step is open."""

from __future__ import annotations

from typing import Any

from perdure.core import children, ids
from perdure.core import events as e
from perdure.core.agent import ContextPolicy
from perdure.core.approvals import propose
from perdure.core.commands import SendMessage
from perdure.core.decision import Draft
from perdure.core.history import cut
from perdure.core.limits import (
    ARGUMENT_BYTES_MAX,
    TOOL_CALLS_PER_STEP_MAX,
    WAIT_SECONDS_MAX,
    clip,
)
from perdure.core.messages import ToolRequest
from perdure.core.reminding import first_reminder
from perdure.core.reserving import budget_of, fail, hold, in_words, reserve
from perdure.core.state import Mark, Run, State


def next_step(draft: Draft) -> None:
    """Plan what follows a closed step: an end, a compaction, or the next model call."""
    while draft.state.status == "acting" and not draft.state.calls:
        run = _run(draft.state)
        answer = None if draft.state.reply_wants_tools else draft.state.reply
        over = _limit_reached(draft, run)
        if not (answer is not None and over) and _take_steering(draft):
            continue
        if answer is not None:
            draft.add(e.RunCompleted(at=draft.now, run=run.id, answer=answer))
            break
        if over:
            draft.add(
                e.RunFailed(
                    at=draft.now, run=run.id, error_class="policy", code=over[0], message=over[1]
                )
            )
            break
        if not _intend_compaction(draft, run):
            _intend_model_call(draft, run)
    if draft.state.status == "idle":
        next_run(draft)


def next_run(draft: Draft) -> None:
    """Start the oldest waiting message, if there is one and no run is in progress."""
    if draft.state.status == "idle" and draft.waiting:
        start_run(draft, draft.waiting.pop(0))


def start_run(draft: Draft, message: SendMessage) -> None:
    """Consume a message and begin the run it asks for."""
    budget = budget_of(draft, message)
    _receive(draft, message)
    wall_ms = draft.context.agent.spec.limits.wall_ms_max
    draft.add(
        e.RunStarted(
            at=draft.now,
            run=message.id,
            number=draft.state.runs_started + 1,
            agent=draft.context.agent.digest,
            accepted_at=message.accepted_at,
            deadline_at=draft.context.now + wall_ms if wall_ms is not None else None,
            retry_of=message.retry_of,
            parent=message.parent,
            budget=budget,
        )
    )
    next_step(draft)


def act(draft: Draft, model_call: str, requests: tuple[ToolRequest, ...]) -> None:
    """Plan the tool calls of a reply: each is put to the gate, timed, or asked of a person."""
    seen: set[str] = set()
    short = None
    step = _run(draft.state).step
    for ordinal, request in enumerate(requests):
        call = ids.tool_call(model_call, ordinal)
        place: Any = {"call": call, "step": step, "ordinal": ordinal}
        denial = _denial(draft, request, ordinal, seen) or _no_launch(draft, request, call)
        seen.add(request.id)
        if denial:
            rule, content = denial
            draft.add(
                e.ToolCallDenied(
                    at=draft.now, **place, name=request.name, rule=rule, content=content
                )
            )
            continue
        tool = draft.context.agent.tools_by_name[request.name]
        if tool.builtin == "wait":
            due_at = draft.context.now + int(float(request.arguments["seconds"]) * 1000)
            reason = str(request.arguments.get("reason") or "")
            draft.add(e.TimerStarted(at=draft.now, **place, due_at=due_at, reason=reason))
        elif tool.builtin == "ask_human":
            question, at = str(request.arguments["question"]), first_reminder(draft)
            draft.add(e.QuestionAsked(at=draft.now, **place, question=question, remind_at=at))
        else:
            run = _run(draft.state).id
            key = ids.effect_key(draft.context.session, run, step, ordinal, tool.name)
            lacking = hold(draft, place, tool, request.arguments, key)
            short = short or lacking
            if lacking is None:
                propose(draft, place, tool, request.arguments, key)
    purse = _run(draft.state).purse
    if short is not None and purse is not None and purse.allotted.on_breach == "fail":
        fail(draft, in_words(short, purse))


def _no_launch(draft: Draft, request: ToolRequest, call: str) -> tuple[str, str] | None:
    """Return why an agent cannot be launched, or may not be asked for."""
    builtin = draft.context.agent.tools_by_name[request.name].builtin
    if builtin == "launch_agent":
        return children.why_not(draft, request.arguments, call)
    if builtin == "list_agents" and not draft.context.agent.spec.subagents.may_list:
        return "list_agents_disabled", "This agent may not ask which others there are."
    return None


def _run(state: State) -> Run:
    assert state.run is not None
    return state.run


def _receive(draft: Draft, message: SendMessage) -> None:
    draft.consumed.append(message.id)
    if message.retry_of is not None:
        return
    says = message.fork_of is None or message.content is not None
    if message.fork_of is not None:
        meta = None if says else message.meta
        draft.add(
            e.SessionForked(at=draft.now, message=message.id, origin=message.fork_of, meta=meta)
        )
    for group in message.inherited:
        draft.add(e.HistoryInherited(at=draft.now, message=message.id, messages=group))
    if says:
        draft.add(
            e.MessageReceived(
                at=draft.now,
                message=message.id,
                content=message.content,
                mode=message.mode,
                sender=message.sender,
                meta=message.meta,
            )
        )


def _take_steering(draft: Draft) -> bool:
    steering = [message for message in draft.waiting if message.mode == "steer"]
    for message in steering:
        draft.waiting.remove(message)
        _receive(draft, message)
    return bool(steering)


def _limit_reached(draft: Draft, run: Run) -> tuple[str, str] | None:
    limits = draft.context.agent.spec.limits
    if run.retries == 0 and run.step >= limits.steps_max:
        return "steps_exceeded", f"the run used all of its {limits.steps_max} steps"
    spent = run.input_tokens + run.output_tokens
    if limits.tokens_max is not None and spent >= limits.tokens_max:
        return "tokens_exceeded", f"the run spent {spent} of at most {limits.tokens_max} tokens"
    return None


def _window(state: State, policy: ContextPolicy) -> int:
    if policy.strategy == "window":
        return cut(state.marks, policy.window_messages, state.base)
    return state.base


def _intend_model_call(draft: Draft, run: Run) -> None:
    agent = draft.context.agent
    reserved = reserve(draft, run)
    if reserved is False:
        return
    step = run.step if run.retries else run.step + 1
    draft.add(
        e.ModelCallIntended(
            at=draft.now,
            call=ids.model_call(run.number, step, run.retries + 1),
            step=step,
            first=_window(draft.state, agent.spec.context),
            upto=draft.state.version,
            agent=_new(draft),
            summary=draft.state.summary,
            policy=_new_policy(draft),
            reserved=reserved,
        )
    )


def _new(draft: Draft) -> str | None:
    """Return the digest of the definition in force, if the log does not name it already."""
    digest = draft.context.agent.digest
    return None if digest == draft.state.agent else digest


def _new_policy(draft: Draft) -> str | None:
    """Return the version of the policy in force, if the log does not name it already."""
    version = draft.context.gate.version
    return None if version == draft.state.policy else version


def _intend_compaction(draft: Draft, run: Run) -> bool:
    agent, state = draft.context.agent, draft.state
    policy = agent.spec.context
    if policy.strategy != "compact" or state.compaction_tried:
        return False
    if state.context_tokens < policy.compact_at_tokens:
        return False
    keep_from = cut(state.marks, policy.keep_messages, state.base)
    if not _something_before(state.marks, keep_from, state.base):
        return False
    reserved = reserve(draft, run, compacting=True)
    if reserved is False:
        return True
    draft.add(
        e.CompactionIntended(
            at=draft.now,
            call=ids.compaction_call(run.number, run.step),
            step=run.step,
            first=state.base,
            upto=keep_from - 1,
            keep_from=keep_from,
            agent=_new(draft),
            summary=state.summary,
            reserved=reserved,
        )
    )
    return True


def _something_before(marks: tuple[Mark, ...], keep_from: int, base: int) -> bool:
    return any(base <= mark.seq < keep_from for mark in marks)


def _denial(
    draft: Draft, request: ToolRequest, ordinal: int, seen: set[str]
) -> tuple[str, str] | None:
    """Return the rule that refuses a tool call and what the model is told, or None."""
    tools = draft.context.agent.tools_by_name
    tool = tools.get(request.name)
    if ordinal >= TOOL_CALLS_PER_STEP_MAX:
        return "too_many_calls", f"At most {TOOL_CALLS_PER_STEP_MAX} tool calls in one reply."
    if request.id in seen:
        return "duplicate_call_id", f"Another call of this reply has the id {request.id!r} already."
    if request.undecodable is not None:
        text = clip(request.undecodable, 200)
        return "undecodable_arguments", f"The arguments are not a JSON object: {text}"
    if tool is None:
        known = ", ".join(sorted(tools)) or "none"
        return "unknown_tool", f"There is no tool {request.name!r}. The tools are: {known}."
    size = sum(len(str(value)) for value in request.arguments.values())
    if size > ARGUMENT_BYTES_MAX:
        return "arguments_too_large", f"The arguments exceed {ARGUMENT_BYTES_MAX} bytes."
    if tool.builtin == "wait":
        return _denied_wait(request)
    if tool.builtin == "ask_human" and not str(request.arguments.get("question") or "").strip():
        return "invalid_arguments", "`question` must be a non-empty string."
    return None


def _denied_wait(request: ToolRequest) -> tuple[str, str] | None:
    try:
        seconds = float(request.arguments.get("seconds"))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return "invalid_arguments", "`seconds` must be a number."
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        return "invalid_arguments", f"`seconds` must be between 0 and {WAIT_SECONDS_MAX}."
    return None
