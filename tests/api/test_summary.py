"""A run at a glance: every signal, in a few kB, and nothing of what was said."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.api.limits import SUMMARY_BYTES_MAX
from perdure.api.shapes import Event, Summary, SummaryAgent
from perdure.api.shapes.common import timestamp
from perdure.api.summary import ROOMS, TRUNCATED, summarise
from tests.api import logs

AGENT = SummaryAgent(id=1, name="bot", model="m", max_steps=50)


class Told:
    """A timeline told by hand."""

    def __init__(self, *tools: str) -> None:
        self.events: list[Event] = []
        self.tools = list(tools)
        self.step = 0
        self.add("run_started")

    def add(self, event_type: str, **payload: Any) -> Told:
        """Add an event, a second after the last."""
        seq = len(self.events) + 1
        self.events.append(
            Event(
                id=seq,
                sequence=seq,
                event_type=event_type,
                payload={"schema_version": 1, **payload},
                inserted_at=timestamp(seq * 1000),
            )
        )
        return self

    def ask(self) -> Told:
        """Ask the model, which replies."""
        self.step += 1
        usage = {"input_tokens": 10, "output_tokens": 1}
        self.add("llm_request", step=self.step, message_count=1, tools=self.tools)
        return self.add("llm_response", step=self.step, content="SECRET", usage=usage)

    def call(self, name: str, error: bool | None = False, **arguments: Any) -> Told:
        """Call a tool; with `error` None there is no result yet."""
        place = {"tool_call_id": f"c{len(self.events)}", "name": name, "step": self.step}
        self.add("tool_call", **place, arguments=arguments)
        if error is not None:
            self.add("tool_result", **place, content="fine", is_error=error)
        return self

    def summary(self, status: Any = "completed", agent: SummaryAgent = AGENT) -> Summary:
        """Return the summary."""
        return summarise(self.events, run_id=7, agent=agent, status=status)


def test_a_run_is_summed_up_exactly() -> None:
    told = Told("save").ask().call("save", key="k").ask().add("run_completed", output="SECRET")
    counters = {
        "steps": 2,
        "llm_calls": 2,
        "tool_calls": 1,
        "tool_errors": 0,
        "duplicates_skipped": 0,
        "subagents": 0,
        "retries": 0,
        "input_tokens": 20,
        "output_tokens": 2,
        "duration_ms": 7000,
    }
    entry = {"step": 1, "class": "ok", "count": 1, "call": "save(key=k)", "result": "fine"}
    assert logs.as_json(told.summary()) == {
        "run_id": 7,
        "agent": {"id": 1, "name": "bot", "model": "m", "max_steps": 50},
        "parent_run_id": None,
        "depth": 0,
        "verdict": "completed",
        "reason": "completed",
        "headline": "completed after 2 steps, 1 tool calls",
        "counters": counters,
        "tools_used": {"save": {"calls": 1, "errors": 0, "pending": 0}},
        "timeline": [{"seq": [4, 5], **entry}],
        "signals": [],
        "drill": {"first_failure": None, "terminal": 8},
    }


def failing(told: Told, error_class: str = "internal", code: str = "x") -> Told:
    """End a run without an answer."""
    return told.add("run_failed", error="SECRET", error_class=error_class, error_code=code)


def retried(times: int) -> Told:
    """Return a run whose model was asked again and again."""
    told = Told("a").ask()
    for _ in range(times):
        told.add("retry", step=1, error="SECRET")
    return told


def repeated(times: int, error: bool = False) -> Told:
    """Return a run that calls a tool again and again."""
    told = Told("a").ask()
    for _ in range(times):
        told.call("a", error)
    return told


ASKS = {"tool_call_id": "q", "question": "SECRET", "step": 1}
DECIDES = {"tool_call_id": "c3", "name": "a", "step": 1, "question": "SECRET"}

# a run, its status, the signals that it gives: kind, severity, sequence
SIGNALS: list[tuple[Told, str, list[tuple[str, str, int | None]]]] = [
    (repeated(4), "completed", []),
    (repeated(5), "completed", [("loop", "high", 4)]),
    (repeated(1, error=True), "completed", []),
    (repeated(2, error=True), "completed", [("tool_failing", "high", 5)]),
    (repeated(2, error=True).call("a"), "completed", []),
    (Told("a").ask().call("b"), "completed", [("unknown_tool", "high", 4)]),
    (Told().ask().call("b"), "completed", []),
    (Told("a").ask(), "completed", [("no_tool_use", "medium", None)]),
    (Told("wait", "ask_human").ask(), "completed", []),
    (Told().ask(), "completed", []),
    (Told().ask().add("waiting_for_user", **ASKS), "waiting", [("parked_unanswered", "medium", 4)]),
    (retried(2).call("a"), "completed", []),
    (retried(3).call("a"), "completed", [("retry_storm", "medium", 6)]),
    (Told("a").ask().call("a", None), "failed", [("unreturned_call", "high", 4)]),
    (Told("a").ask().call("a", None), "running", []),
    (
        Told("a").ask().call("a", None).add("decision_requested", **DECIDES),
        "waiting",
        [("unreturned_call", "high", 5), ("parked_unanswered", "medium", 5)],
    ),
]


@pytest.mark.parametrize(("told", "status", "signals"), SIGNALS)
def test_a_run_gives_these_signals(told: Told, status: str, signals: Any) -> None:
    found = told.summary(status).signals
    assert [(one.kind, one.severity, one.seq) for one in found] == signals


def test_a_run_out_of_steps_says_so() -> None:
    told = failing(Told().ask().ask(), "policy", "steps_exceeded")
    summary = told.summary("failed", msgspec.structs.replace(AGENT, max_steps=2))
    assert summary.reason == "max_steps_exceeded"
    assert [(one.kind, one.seq) for one in summary.signals] == [("max_steps", 6)]
    assert summary.drill.first_failure == summary.drill.terminal == 6


@pytest.mark.parametrize(
    ("status", "error_class", "code", "reason"),
    [
        ("completed", "", "", "completed"),
        ("waiting", "", "", "parked"),
        ("running", "", "", "running"),
        ("pending", "", "", "running"),
        ("failed", "policy", "steps_exceeded", "max_steps_exceeded"),
        ("failed", "validation", "not_authorised", "tool_error_terminal"),
        ("failed", "external_dependency", "rate_limited", "llm_error"),
        ("failed", "transient", "timeout", "llm_error"),
        ("failed", "policy", "cancelled", "failed"),
        ("failed", "internal", "unexpected_failure", "failed"),
    ],
)
def test_the_reason_is_one_of_these(status: str, error_class: str, code: str, reason: str) -> None:
    told = failing(Told().ask(), error_class, code) if status == "failed" else Told().ask()
    summary = told.summary(status)
    assert summary.reason == reason
    assert summary.headline.startswith(reason)


def test_calls_of_a_kind_collapse_and_the_middle_is_left_out() -> None:
    told = Told("a", "b").ask()
    for _ in range(20):
        told.call("a").call("a").call("b")
    summary = told.summary()
    assert len(summary.timeline) == 17
    assert [one.count for one in summary.timeline[:3]] == [2, 1, 2]
    middle = summary.timeline[8]
    assert (middle.elided, middle.calls, middle.tools) == (24, 36, ("a", "b"))
    shown = [one for one in summary.timeline if one is not middle]
    assert sum(one.count for one in shown) + middle.calls == 60
    ends = [place for one in summary.timeline for place in one.seq]
    assert ends == sorted(ends)


def test_an_excerpt_is_cut_and_harmless() -> None:
    told = Told("a").ask().call("a", text="x" * 500 + "\x1b[31m")
    told.call("b\n\x1b[2J")
    first, second = told.summary().timeline
    assert isinstance(first.call, str)
    assert first.call.endswith(TRUNCATED + ")")
    assert len(first.call) < 150
    assert second.call == "b  [2J()"


def test_nothing_of_what_was_said_is_told() -> None:
    told = Told("a").ask().add("waiting_for_user", **ASKS).add("message_received", content="SECRET")
    told.add("context_compacted", summary="SECRET", usage={"input_tokens": 5, "output_tokens": 5})
    summary = failing(told).summary("failed")
    assert b"SECRET" not in msgspec.json.encode(summary)
    assert summary.counters.input_tokens == 15


NASTY = {
    "plain": lambda number: f"tool-{number % 7}",
    "many": lambda number: f"tool-{number}",
    "wide": lambda number: "\\é\U0001f600" * 99 + str(number),
}


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_summary_stays_short_however_long_the_run(name: str, status: str) -> None:
    told = Told(*(f"tool-{number}" for number in range(2_000))).ask()
    for number in range(5_000):
        told.step += 1
        told.call(NASTY[name](number), number % 3 == 0, text='"\\é\x00' * 99)
    assert len(told.events) > 10_000
    agent = SummaryAgent(id=1, name="\\" * 500, model="é" * 500, max_steps=3)
    summary = failing(told, "internal", "\\" * 999).summary(status, agent)
    assert len(msgspec.json.encode(summary)) <= SUMMARY_BYTES_MAX
    assert summary.counters.tool_calls == 5_000
    assert sum(one.calls for one in summary.tools_used.values()) == 5_000


def test_the_least_room_is_the_last_that_is_tried() -> None:
    assert list(ROOMS) == sorted(ROOMS, reverse=True)


@pytest.mark.parametrize("name", logs.told())
def test_the_stories_can_be_summed_up(name: str) -> None:
    log = logs.told()[name]
    for run in logs.runs_in(log):
        timeline, events = logs.timeline_of(log, run)
        status: Any = "failed" if timeline.failure else "completed"
        summary = summarise(events, run_id=1, agent=AGENT, status=status)
        assert summary.counters.input_tokens == sum(
            one.usage.input_tokens for one in timeline.use.values()
        )
        assert summary.counters.steps == timeline.step
        assert {"loop", "unreturned_call"}.isdisjoint(one.kind for one in summary.signals)
        assert summary.drill.terminal == events[-1].sequence
