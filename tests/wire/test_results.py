"""What results say: every shape that peers send, and nonsense."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core import commands as c
from perdure.core.limits import RESULT_BYTES_MAX
from perdure.core.messages import ModelReply, ToolRequest, Usage
from perdure.wire.results import (
    CacheMiss,
    Result,
    model_report,
    of_report,
    probe_report,
    tool_report,
)

CALL = "1.1.m1"


def result(**said: Any) -> Result:
    """Return a result as it comes out of a frame."""
    return msgspec.json.decode(json.dumps({"task_id": "T1", **said}), type=Result)


def test_a_reply_of_the_sdk() -> None:
    """The frame of the reference, field by field."""
    said = result(
        status="ok",
        content="let me",
        finish_reason="tool_call",
        usage={
            "input_tokens": 100,
            "output_tokens": 20,
            "cache_read_tokens": 30,
            "cache_write_tokens": 10,
        },
        model="claude-x",
        tool_calls=[{"id": "call_1", "name": "charge", "arguments": {"amount": 5}}],
        final_output="let me",
    )
    assert model_report(said, CALL) == c.ReportReply(
        call=CALL,
        reply=ModelReply(
            content="let me",
            tool_calls=(ToolRequest("call_1", "charge", {"amount": 5}),),
            finish="tool_call",
            usage=Usage(100, 20, 30, 10),
            model="claude-x",
        ),
    )


# what a result of a model call says, and the reply that it is
REPLIES = [
    ({"content": "hi"}, ModelReply("hi")),
    ({"content": None}, ModelReply("")),
    ({"content": {"$enc": "v1"}}, ModelReply({"$enc": "v1"})),
    ({"content": "", "final_output": "done"}, ModelReply("done")),
    ({"content": "hi", "usage": {"input_tokens": "x", "output_tokens": -1}}, ModelReply("hi")),
    ({"content": "hi", "usage": {"output_tokens": 3}}, ModelReply("hi", usage=Usage(0, 3))),
    ({"content": "hi", "usage": 7, "finish_reason": None, "model": 4}, ModelReply("hi")),
    ({"content": "hi", "finish_reason": "length"}, ModelReply("hi", finish="length")),
    ({"tool_calls": [{"name": "f"}]}, ModelReply("", (ToolRequest("call_0", "f"),))),
    (
        {"tool_calls": [{"id": "a", "name": "f", "arguments": "{x"}]},
        ModelReply("", (ToolRequest("a", "f", undecodable="{x"),)),
    ),
    ({"content": "hi", "extra": [1]}, ModelReply("hi", extra=[1])),
]


@pytest.mark.parametrize(("said", "reply"), REPLIES)
def test_a_reply_is_read_with_care(said: dict[str, Any], reply: ModelReply) -> None:
    """What is missing has a default; what is not the right kind is as if missing."""
    assert model_report(result(status="ok", **said), CALL) == c.ReportReply(call=CALL, reply=reply)


# a model's failure as text, and what it is
FAILURES = [
    ("litellm.RateLimitError: AnthropicException - slow down", "rate_limited"),
    ("Error code: 429 - {'error': {'message': 'Too many'}}", "rate_limited"),
    ("litellm.InternalServerError: Error code: 529 - overloaded", "upstream_unavailable"),
    ("529 overloaded", "upstream_unavailable"),
    ("litellm.ServiceUnavailableError: upstream", "upstream_unavailable"),
    ("litellm.Timeout: APITimeoutError - Request timed out.", "timeout"),
    ("litellm.APIConnectionError: Connection error.", "connection_lost"),
    ("worker disconnected", "worker_disconnected"),
    ("litellm.AuthenticationError: invalid x-api-key", "not_authorised"),
    ("litellm.BadRequestError: Error code: 400 - bad", "status_400"),
    ("something else", "unexpected_failure"),
]


@pytest.mark.parametrize(("text", "code"), FAILURES)
def test_a_failure_is_read_from_its_text(text: str, code: str) -> None:
    """Norns' workers have nothing but the text of the exception."""
    report = model_report(result(status="error", error=text), CALL)
    assert isinstance(report, c.ReportModelError)
    assert (report.code, report.message) == (code, text)


def test_a_native_failure_says_itself_what_it_is() -> None:
    """What a worker knows of its provider's answer wins over the words of the message."""
    said = {"error_class": "validation", "code": "quota_exhausted", "retry_after_ms": 7}
    assert model_report(result(status="error", error="429", **said), CALL) == c.ReportModelError(
        call=CALL, message="429", **said
    )


def test_a_cache_miss_is_no_failure() -> None:
    """Only for a model call: a tool may fail with whatever text it likes."""
    said = result(status="error", error="message_cache_miss")
    assert model_report(said, CALL) == CacheMiss()
    assert isinstance(tool_report(said, CALL, 1), c.ReportToolResult)


# what a result of a tool call says, and: did it succeed, with what, and what kind of failure is it
TOOLS = [
    ({"status": "ok", "result": "charged 5"}, True, "charged 5", "result"),
    ({"status": "ok", "result": "charged 5", "duplicate": True}, True, "charged 5", "result"),
    ({"status": "ok", "result": None}, True, None, "result"),
    ({"status": "ok", "result": [{"type": "text"}]}, True, [{"type": "text"}], "result"),
    ({"status": "error", "error": "boom"}, False, "boom", "result"),
    ({"status": "error", "error": {"a": 1}}, False, {"a": 1}, "result"),
    ({"status": "error", "error": "slow", "kind": "timeout"}, False, "slow", "timeout"),
    ({"status": "error", "error": "Unknown tool: f"}, False, "Unknown tool: f", "result"),
    ({"status": "ok"}, False, "invalid result payload", "result"),
    ({"status": "error"}, False, "invalid result payload", "result"),
    ({"status": "great", "result": 1}, False, "invalid result payload", "result"),
    ({"junk": 1}, False, "invalid result payload", "result"),
]


@pytest.mark.parametrize(("said", "ok", "content", "kind"), TOOLS)
def test_what_a_tool_did(said: dict[str, Any], ok: bool, content: Any, kind: str) -> None:
    """Junk is the model's to read: the run goes on."""
    assert tool_report(result(**said), CALL, 2) == c.ReportToolResult(
        call=CALL, attempt=2, ok=ok, content=content, kind=kind, remembered="duplicate" in said
    )


def test_a_call_may_be_given_up() -> None:
    """A native worker says when it does not know whether the tool acted."""
    said = result(status="error", error="killed", lost=True)
    assert tool_report(said, CALL, 1) == c.ReportToolLost(call=CALL, attempt=1, reason="killed")


@pytest.mark.parametrize(
    ("said", "verdict", "content"),
    [
        ({"status": "ok", "verdict": "happened", "result": "paid"}, "happened", "paid"),
        ({"status": "ok", "verdict": "did_not_happen"}, "did_not_happen", None),
        ({"status": "ok", "verdict": "maybe"}, "undecided", None),
        ({"status": "ok", "result": "paid"}, "undecided", None),
        ({"status": "error", "error": "no"}, "undecided", None),
    ],
)
def test_what_a_probe_found(said: dict[str, Any], verdict: Any, content: Any) -> None:
    """Whatever is not a clear answer is none."""
    report = c.ReportProbe(call=CALL, attempt=1, verdict=verdict, content=content)
    assert probe_report(result(**said), CALL, 1) == report


@pytest.mark.parametrize("junk", [{}, {"status": "ok"}, {"status": "ok", "tool_calls": [7]},
                                  {"status": "ok", "content": "x", "tool_calls": {}},
                                  {"status": "error"}, {"status": [], "content": "x"}])  # fmt: skip
def test_junk_for_a_model_call_fails_it(junk: dict[str, Any]) -> None:
    """It is not asked again: the same worker would answer the same."""
    report = model_report(result(**junk), CALL)
    assert isinstance(report, c.ReportModelError)
    assert (report.code, report.message) == ("invalid_result", "invalid result payload")


def test_what_cannot_be_kept_is_a_failure_that_says_so() -> None:
    """Too long, or nested too deeply: nothing of it gets into the log."""
    long = tool_report(result(status="ok", result="x" * RESULT_BYTES_MAX), CALL, 1)
    assert isinstance(long, c.ReportToolResult)
    assert (long.ok, long.kind) == (False, "result_too_large")
    assert "more than the limit of 1048576" in long.content
    deep: Any = 1
    for _ in range(101):
        deep = [deep]
    assert tool_report(result(status="ok", result=deep), CALL, 1).kind == "result_too_deep"
    refused = model_report(result(status="ok", content=deep), CALL)
    assert isinstance(refused, c.ReportModelError)
    assert refused.code == "reply_too_deep"
    assert tool_report(result(status="ok", result=deep[0]), CALL, 1).ok


REPORTS: list[c.Report] = [
    c.ReportReply(call=CALL, reply=ModelReply("hi", usage=Usage(1, 2, 3, 4), model="m", extra=[1])),
    c.ReportReply(
        call=CALL,
        reply=ModelReply(
            "", (ToolRequest("a", "f", {"x": 1}), ToolRequest("b", "f", {}, "{")), "tool_call"
        ),
    ),
    c.ReportModelError(call=CALL, error_class="transient", code="timeout", message="late"),
    c.ReportModelError(call=CALL, error_class="policy", code="c", message="429", retry_after_ms=5),
    c.ReportToolResult(call=CALL, attempt=2, ok=True, content={"a": None}),
    c.ReportToolResult(call=CALL, attempt=2, ok=True, content=None),
    c.ReportToolResult(call=CALL, attempt=2, ok=True, content="yes", remembered=True),
    c.ReportToolResult(call=CALL, attempt=2, ok=False, content="no", kind="raised"),
    c.ReportToolLost(call=CALL, attempt=2, reason="gone"),
    c.ReportProbe(call=CALL, attempt=2, verdict="happened", content="yes"),
    c.ReportProbe(call=CALL, attempt=2, verdict="undecided"),
]


@pytest.mark.parametrize("report", REPORTS)
def test_what_a_native_worker_reports_arrives_whole(report: c.Report) -> None:
    """Through a result and back, nothing is lost."""
    said = msgspec.json.decode(msgspec.json.encode(of_report(report, "T1")), type=Result)
    assert said.task_id == "T1"
    if isinstance(report, c.ReportReply | c.ReportModelError):
        assert model_report(said, CALL) == report
    elif isinstance(report, c.ReportProbe):
        assert probe_report(said, CALL, 2) == report
    else:
        assert tool_report(said, CALL, 2) == report


def test_a_beginning_is_no_result() -> None:
    """It has a frame of its own."""
    with pytest.raises(TypeError, match="send a begin"):
        of_report(c.ReportToolBegin(call=CALL, attempt=1, worker="w"), "T1")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "name", "arguments", "error"]), inner, max_size=3)
    ),
    max_leaves=6,
)
STATUS = st.sampled_from(["ok", "error"]) | ANY


@given(STATUS, st.dictionaries(st.sampled_from(Result.__struct_fields__), ANY))
def test_anything_is_a_report(status: Any, said: dict[str, Any]) -> None:
    """Nothing a worker sends raises, and the core can keep what comes of it."""
    read = result(**{**said, "status": status})
    for report in (model_report(read, CALL), tool_report(read, CALL, 1), probe_report(read, "", 1)):
        assert msgspec.json.decode(msgspec.json.encode(report), type=Any) is not None
