"""Events as a reader sees them: one line each."""

from __future__ import annotations

import shutil
from typing import Any

import msgspec

from perdure.bootstrap import RecordedEvent
from perdure.cli.output import clock_time, short, timestamp
from perdure.core import events as e

WIDE_COLUMNS = 140
GIST_CHARS_MIN = 20


def event_fields(item: RecordedEvent) -> dict[str, Any]:
    """Return an event as the stable JSON object that `--json` prints."""
    fields = msgspec.to_builtins(item.event)
    fields.pop("type", None)
    fields.pop("at", None)
    return {"seq": item.seq, "type": item.type, "at": timestamp(item.at), "data": fields}


def event_line(item: RecordedEvent) -> str:
    """Return an event as a line for people, as wide as the terminal."""
    return line(item.seq, clock_time(item.at), item.type, gist(item.event))


def line(position: int, time: str, type: str, gist: str) -> str:
    """Return a line that says where an event stands, when it was, and what it is about."""
    lead = f"{position:>4} {time} {type:<20} "
    columns = shutil.get_terminal_size((WIDE_COLUMNS, 24)).columns
    return lead + short(gist, max(GIST_CHARS_MIN, columns - len(lead) - 1))


def gist(event: e.Event) -> str:
    """Return what matters of an event in a few words."""
    match event:
        case e.MessageReceived():
            return short(event.content)
        case e.SessionForked():
            return f"from step {event.origin.step} of run {event.origin.run}"
        case e.HistoryInherited():
            return short(event.messages[0].content)
        case e.RunStarted() | e.RunWithdrawn():
            return event.run
        case e.ModelCallIntended():
            return f"{event.call} shown {event.first}..{event.upto}"
        case e.ModelReplied():
            calls = ", ".join(f"{r.name}({arguments_of(r.arguments)})" for r in event.tool_calls)
            return f"{event.call} {calls or short(event.content)}"
        case e.ToolCallIntended():
            return f"{event.call} {event.name} [{event.effect}]"
        case e.ChildLaunched():
            return f"{event.call} {event.agent_name} as run {event.child}"
        case e.ChildRestarted():
            return f"{event.call} again as run {event.child}: {event.reason}"
        case e.LettersDelivered():
            return ", ".join(event.letters)
        case e.ToolCallDenied():
            return f"{event.call} {event.name}: {short(event.content)}"
        case e.ApprovalRequested():
            asks = f"{event.rule}: {event.reason}" if event.reason else event.rule
            return f"{event.call} {event.name}({arguments_of(event.arguments)}) [{asks}]"
        case e.ArgumentsEdited():
            return f"{event.call} {arguments_of(event.arguments)} by {event.by}"
        case e.ToolCallResolved():
            how = "it happened" if event.happened else "it did not happen"
            return f"{event.call} {how}, says {event.by}"
        case e.RetryScheduled():
            return f"attempt {event.attempt} in {event.delay_ms / 1000:g} s"
        case e.QuestionAsked():
            return f"{event.call} {event.question}"
        case e.BudgetExceeded():
            short_of = event.short
            return f"{event.call} lacks {short_of.what}: {short_of.needed} > {short_of.left}"
        case e.BudgetRaised():
            more = (
                f"{value} {name}"
                for name in ("tokens", "cost_micros", "wall_ms", "calls")
                if (value := getattr(event, name))
            )
            return f"{', '.join(more) or 'nothing'} more, says {event.by}"
        case e.RunFailed():
            return f"{event.error_class}/{event.code}: {event.message}"
        case e.RunCancelled():
            return event.reason
        case e.RunCompleted():
            return f"the answer is event {event.answer}"
    parts = [
        getattr(event, name)
        for name in ("call", "kind", "content", "message", "reason", "by")
        if getattr(event, name, None)
    ]
    return " ".join(short(part) for part in parts)


def arguments_of(arguments: dict[str, Any]) -> str:
    """Return a call's arguments in a few words."""
    return ", ".join(f"{key}={short(value, 40)}" for key, value in arguments.items())
