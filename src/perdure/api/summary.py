"""A run at a glance: counters, calls, and signals, in a few kB however long the run was.

A `Tracer` is fed the events of a timeline, so that a client can make a summary as well as the
server. Nothing of what was said is in it: of arguments and results there are short excerpts, which
give way first when room is short.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import groupby
from typing import Any, Literal, NamedTuple

import msgspec

from perdure.api.limits import SUMMARY_BYTES_MAX
from perdure.api.shapes.runs import Event, RunStatus
from perdure.api.shapes.summary import (
    CallClass,
    Counters,
    Drill,
    Signal,
    SignalKind,
    Summary,
    SummaryAgent,
    SummaryEntry,
    ToolCount,
)
from perdure.api.timeline import BUILTINS

LOOP_CALLS = 5
FAILING_CALLS = 2
STORM_RETRIES = 3
EXCERPT_CHARS = 120
TRUNCATED = "… (truncated)"
NAME_BYTES = 48
OTHERS = "(others)"

Reason = Literal[
    "completed",
    "parked",
    "running",
    "max_steps_exceeded",
    "tool_error_terminal",
    "llm_error",
    "failed",
]


class _Room(NamedTuple):
    """How much of everything fits: characters of excerpts, tools, entries of the timeline at each
    end, signals of a kind, bytes of names.
    """

    excerpt: int
    tools: int
    ends: int
    signals: int
    name: int


ROOMS = (
    _Room(EXCERPT_CHARS, 12, 8, 2, NAME_BYTES),
    _Room(48, 12, 8, 2, NAME_BYTES),
    _Room(16, 12, 8, 2, NAME_BYTES),
    _Room(0, 4, 3, 1, 24),
)


class _Call(NamedTuple):
    """A tool call on its way: where it stands, and excerpts of what went in and came out."""

    name: str
    step: int
    first: int
    last: int
    call_class: CallClass
    asked: str
    result: str | None = None


class Tracer:
    """What is known of a run after some of its events."""

    def __init__(self) -> None:
        self.calls: dict[str, _Call] = {}
        self.offered: set[str] = set()
        self.steps = 0
        self.retries: dict[int, int] = {}
        self.undecided: dict[str, int] = {}
        self.llm_calls = self.duplicates = self.subagents = 0
        self.input_tokens = self.output_tokens = 0
        self.first_at: str | None = None
        self.last_at: str | None = None
        self.retry_seq: dict[int, int] = {}
        self.parked: tuple[int, str] | None = None
        self.first_failure: int | None = None
        self.terminal: int | None = None
        self.failure: Mapping[str, Any] = {}

    def feed(self, event: Event) -> None:
        """Take in the next event of the timeline."""
        self.first_at = self.first_at or event.inserted_at
        self.last_at = event.inserted_at
        handler = _HANDLERS.get(event.event_type)
        if handler is not None:
            handler(self, event.sequence, event.payload)

    def _asked_model(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.steps = max(self.steps, payload["step"])
        self.offered.update(payload.get("tools", ()))

    def _model_replied(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.llm_calls += 1
        self._spent(seq, payload)

    def _spent(self, seq: int, payload: Mapping[str, Any]) -> None:
        usage = payload.get("usage") or {}
        self.input_tokens += usage.get("input_tokens", 0)
        self.output_tokens += usage.get("output_tokens", 0)

    def _called(self, seq: int, payload: Mapping[str, Any]) -> None:
        asked = _excerpt(_arguments(payload.get("arguments") or {}), EXCERPT_CHARS)
        call = _Call(payload["name"], payload["step"], seq, seq, "pending", asked)
        self.calls[_key(payload)] = call

    def _returned(self, seq: int, payload: Mapping[str, Any]) -> None:
        key = _key(payload)
        call = self.calls.get(key) or _Call(payload["name"], payload["step"], seq, seq, "ok", "")
        failed = bool(payload.get("is_error"))
        result = _excerpt(_text(payload.get("content")), EXCERPT_CHARS)
        self.calls[key] = call._replace(
            last=seq, call_class="error" if failed else "ok", result=result
        )
        self.undecided.pop(key, None)
        self.parked = None
        if failed:
            self._failed(seq)

    def _duplicate(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.duplicates += 1

    def _launched(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.subagents += 1

    def _retried(self, seq: int, payload: Mapping[str, Any]) -> None:
        step = payload["step"]
        self.retries[step] = self.retries.get(step, 0) + 1
        self.retry_seq[step] = seq
        self._failed(seq)

    def _asks(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.parked = (seq, "a question waits for an answer")

    def _undecided(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.undecided[_key(payload)] = seq
        self.parked = (seq, "a call waits for somebody to say whether it took effect")

    def _approval(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.parked = (seq, "a call waits for approval")

    def _short(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.parked = (seq, f"the budget lacks {payload['short_of']}")

    def _raised(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.parked = None

    def _goes_on(self, seq: int, payload: Mapping[str, Any]) -> None:
        self._called(seq, payload)
        self.parked = None

    def _completed(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.terminal = seq

    def _run_failed(self, seq: int, payload: Mapping[str, Any]) -> None:
        self.terminal, self.failure = seq, payload
        self._failed(seq)

    def _failed(self, seq: int) -> None:
        if self.first_failure is None:
            self.first_failure = seq


_HANDLERS: Mapping[str, Any] = {
    "llm_request": Tracer._asked_model,
    "llm_response": Tracer._model_replied,
    "context_compacted": Tracer._spent,
    "tool_call": Tracer._goes_on,
    "tool_result": Tracer._returned,
    "tool_duplicate": Tracer._duplicate,
    "subagent_launched": Tracer._launched,
    "retry": Tracer._retried,
    "waiting_for_user": Tracer._asks,
    "decision_requested": Tracer._undecided,
    "approval_requested": Tracer._approval,
    "budget_exceeded": Tracer._short,
    "budget_raised": Tracer._raised,
    "run_completed": Tracer._completed,
    "run_failed": Tracer._run_failed,
}


def summarise(
    events: Iterable[Event],
    *,
    run_id: int,
    agent: SummaryAgent,
    status: RunStatus,
    parent_run_id: int | None = None,
    depth: int = 0,
) -> Summary:
    """Return the summary of a run that stands at `status`, from all events of its timeline."""
    tracer = Tracer()
    for event in events:
        tracer.feed(event)
    return summary_of(
        tracer, run_id=run_id, agent=agent, status=status, parent_run_id=parent_run_id, depth=depth
    )


def summary_of(
    tracer: Tracer,
    *,
    run_id: int,
    agent: SummaryAgent,
    status: RunStatus,
    parent_run_id: int | None = None,
    depth: int = 0,
) -> Summary:
    """Return the summary of what was fed; at most `SUMMARY_BYTES_MAX` bytes as JSON."""
    calls = sorted(tracer.calls.values(), key=lambda call: call.first)
    counters = _counters(tracer, calls)
    reason = _reason(tracer, status)
    for room in ROOMS:
        summary = Summary(
            run_id=run_id,
            agent=msgspec.structs.replace(
                agent, name=_name(agent.name, room), model=_name(agent.model, room)
            ),
            parent_run_id=parent_run_id,
            depth=depth,
            verdict=status,
            reason=reason,
            headline=_headline(reason, counters, _name(tracer.failure.get("error_code"), room)),
            counters=counters,
            tools_used=_tools_used(calls, room),
            timeline=_timeline(calls, room),
            signals=_signals(tracer, calls, status, agent.max_steps, room),
            drill=Drill(first_failure=tracer.first_failure, terminal=tracer.terminal),
        )
        if room is ROOMS[-1] or len(msgspec.json.encode(summary)) <= SUMMARY_BYTES_MAX:
            return summary
    raise AssertionError


def _reason(tracer: Tracer, status: RunStatus) -> Reason:
    if status == "completed":
        return "completed"
    if status == "waiting":
        return "parked"
    if status != "failed":
        return "running"
    error_class, code = tracer.failure.get("error_class"), tracer.failure.get("error_code")
    if code == "steps_exceeded":
        return "max_steps_exceeded"
    if error_class == "validation":
        return "tool_error_terminal"
    if error_class in ("transient", "external_dependency"):
        return "llm_error"
    return "failed"


def _headline(reason: Reason, counters: Counters, code: str) -> str:
    what = f"{reason} after {counters.steps} steps, {counters.tool_calls} tool calls"
    if counters.tool_errors:
        what += f" ({counters.tool_errors} with errors)"
    return f"{what}: {code}" if code else what


def _counters(tracer: Tracer, calls: list[_Call]) -> Counters:
    return Counters(
        steps=tracer.steps,
        llm_calls=tracer.llm_calls,
        tool_calls=len(calls),
        tool_errors=sum(call.call_class == "error" for call in calls),
        duplicates_skipped=tracer.duplicates,
        subagents=tracer.subagents,
        retries=sum(tracer.retries.values()),
        input_tokens=tracer.input_tokens,
        output_tokens=tracer.output_tokens,
        duration_ms=_duration_ms(tracer.first_at, tracer.last_at),
    )


def _duration_ms(first: str | None, last: str | None) -> int:
    if first is None or last is None:
        return 0
    span = datetime.fromisoformat(last) - datetime.fromisoformat(first)
    return round(span.total_seconds() * 1000)


def _tools_used(calls: list[_Call], room: _Room) -> dict[str, ToolCount]:
    counted: dict[str, list[int]] = {}
    for call in calls:
        row = counted.setdefault(_name(call.name, room), [0, 0, 0])
        row[0] += 1
        row[1] += call.call_class == "error"
        row[2] += call.call_class == "pending"
    ranked = sorted(counted.items(), key=lambda one: -one[1][0])
    rest = [row for _, row in ranked[room.tools :]]
    if rest:
        others = [sum(column) for column in zip(*rest, strict=True)]
        ranked = [*ranked[: room.tools], (OTHERS, others)]
    return {name: ToolCount(calls=a, errors=b, pending=c) for name, (a, b, c) in ranked}


def _grouped(calls: list[_Call]) -> list[list[_Call]]:
    """Return runs of consecutive calls of the same tool with the same outcome."""
    alike = groupby(calls, key=lambda call: (call.name, call.call_class))
    return [list(group) for _, group in alike]


def _timeline(calls: list[_Call], room: _Room) -> tuple[SummaryEntry, ...]:
    groups = _grouped(calls)
    if len(groups) <= 2 * room.ends + 1:
        return tuple(_entry(group, room) for group in groups)
    head, between, tail = (
        groups[: room.ends],
        [call for group in groups[room.ends : -room.ends] for call in group],
        groups[-room.ends :],
    )
    marker = SummaryEntry(
        seq=(between[0].first, max(call.last for call in between)),
        elided=len(groups) - 2 * room.ends,
        calls=len(between),
        tools=tuple(sorted({_name(call.name, room) for call in between})[: room.tools // 2]),
    )
    first, last = ([_entry(group, room) for group in part] for part in (head, tail))
    return (*first, marker, *last)


def _entry(group: list[_Call], room: _Room) -> SummaryEntry:
    first, last = group[0], group[-1]
    arguments = _excerpt(first.asked, room.excerpt) if room.excerpt else ""
    result = last.result if room.excerpt else None
    return SummaryEntry(
        seq=(first.first, max(call.last for call in group)),
        step=first.step if first.step == last.step else f"{first.step}-{last.step}",
        call_class=first.call_class,
        count=len(group),
        call=f"{_name(first.name, room)}({arguments})",
        result=msgspec.UNSET if result is None else _excerpt(result, room.excerpt),
    )


def _signals(
    tracer: Tracer, calls: list[_Call], status: RunStatus, max_steps: int, room: _Room
) -> tuple[Signal, ...]:
    """Return the signals; of one kind, only the first few."""
    found = (
        *_about_calls(tracer, calls, status, room),
        *_about_tools(tracer, calls, room),
        *_about_the_run(tracer, status, max_steps),
    )
    kept: list[Signal] = []
    for signal in found:
        if sum(one.kind == signal.kind for one in kept) < room.signals:
            kept.append(signal)
    return tuple(kept)


def _about_calls(
    tracer: Tracer, calls: list[_Call], status: RunStatus, room: _Room
) -> Iterable[Signal]:
    for group in _grouped(calls):
        if len(group) >= LOOP_CALLS:
            name, outcome = _name(group[0].name, room), group[0].call_class
            yield _high("loop", f"{name} {len(group)} times in a row: {outcome}", group[0].first)
    if status in ("completed", "failed"):
        for call in calls:
            if call.call_class == "pending":
                detail = f"{_name(call.name, room)} has no result"
                yield _high("unreturned_call", detail, call.first)
    for key, seq in tracer.undecided.items():
        name = _name(tracer.calls[key].name if key in tracer.calls else key, room)
        yield _high("unreturned_call", f"whether {name} took effect is unknown", seq)


def _about_tools(tracer: Tracer, calls: list[_Call], room: _Room) -> Iterable[Signal]:
    by_name: dict[str, list[_Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
    for name, mine in by_name.items():
        called = _name(name, room)
        if tracer.offered and name not in tracer.offered:
            yield _high("unknown_tool", f"{called} was called and never offered", mine[0].first)
        if len(mine) >= FAILING_CALLS and all(call.call_class == "error" for call in mine):
            detail = f"all {len(mine)} calls of {called} failed"
            yield _high("tool_failing", detail, mine[0].last)
    own = tracer.offered - BUILTINS
    if own and not calls and tracer.llm_calls:
        yield _medium("no_tool_use", f"{len(own)} tools were offered, none was called", None)


def _about_the_run(tracer: Tracer, status: RunStatus, max_steps: int) -> Iterable[Signal]:
    if status == "failed" and tracer.steps >= max_steps:
        detail = f"step {tracer.steps} of at most {max_steps}"
        yield _high("max_steps", detail, tracer.terminal)
    if status == "waiting" and tracer.parked is not None:
        seq, what = tracer.parked
        yield _medium("parked_unanswered", what, seq)
    for step, count in tracer.retries.items():
        if count >= STORM_RETRIES:
            detail = f"{count} retries at step {step}"
            yield _medium("retry_storm", detail, tracer.retry_seq[step])


def _high(kind: SignalKind, detail: str, seq: int | None) -> Signal:
    return Signal(kind=kind, severity="high", detail=detail, seq=seq)


def _medium(kind: SignalKind, detail: str, seq: int | None) -> Signal:
    return Signal(kind=kind, severity="medium", detail=detail, seq=seq)


def _key(payload: Mapping[str, Any]) -> str:
    return str(payload.get("call") or f"{payload.get('step')}/{payload['tool_call_id']}")


def _arguments(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in arguments.items())


def _text(content: Any) -> str:
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()


def _name(text: Any, room: _Room) -> str:
    """Return a name, cut to the bytes that there is room for."""
    whole = str(text or "")
    cut = whole.encode()[: room.name].decode(errors="ignore")
    return _excerpt(cut, room.name) + ("…" if cut != whole else "")


def _excerpt(text: str, chars: int) -> str:
    """Return the beginning of a text, with spaces for what a terminal or a log would obey."""
    kept = "".join(char if char.isprintable() else " " for char in text[:chars])
    return kept + TRUNCATED if len(text) > chars else kept
