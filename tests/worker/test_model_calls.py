"""A model call ends in one reply, or in one failure that says whether to try again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from perdure.core.commands import ReportModelError, ReportReply
from perdure.core.errors import InvalidInput, LimitExceeded
from perdure.core.limits import REPLY_BYTES_MAX
from perdure.core.messages import ModelReply, ToolRequest
from perdure.ports.models import ModelError
from tests.worker.helpers import Desk, Speaker, reached

HELLO = ModelReply("Good day")


class StatusError(Exception):
    """What SDKs raise: the status is an attribute."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = "theirs"


async def test_a_reply_is_reported_and_its_pieces_are_passed_on() -> None:
    """The fault points stand around the model."""
    model = Speaker(HELLO)
    async with Desk(model=model) as desk:
        with reached() as sites:
            task = desk.model_task()
            assert await desk.finish(task) == ReportReply(call="1.1.m1", reply=HELLO)
        assert sites == ["model.before", "model.after"]
        assert desk.pieces == ["Good ", "day"]
        assert model.asked == [task.request]
        await desk.nothing_more()


async def test_code_is_asked_only_where_code_is_named() -> None:
    """A server may have been told that the agent has another model by now: then that is asked."""
    named = Speaker(ModelReply(content="I am named"))
    code = Speaker(ModelReply(content="I am code"))
    async with Desk(model=code, resolve=lambda name: named) as desk:
        said = []
        for model in ("object:Speaker", "openai:gpt-5"):
            report = await desk.finish(desk.model_task(model=model))
            said.append(report.reply.content)
        other = await desk.finish(desk.model_task(model="object:Another"))
    assert said == ["I am code", "I am named"]
    assert (other.error_class, other.code) == ("transient", "model_differs")
    assert other.message == (
        "agent 'helper': its definition says model 'object:Another', and worker 'local' has "
        "'object:Speaker'"
    )
    assert [request.model for request in named.asked] == ["openai:gpt-5"]


async def test_a_name_is_resolved_once() -> None:
    """With the name that the request has."""
    model, asked = Speaker(HELLO), []

    def resolve(name: str) -> Any:
        asked.append(name)
        return model

    async with Desk(model="openai:gpt-5", resolve=resolve) as desk:
        await desk.finish(desk.model_task())
        await desk.finish(desk.model_task())
        assert asked == ["openai:gpt-5"]
        await desk.finish(desk.model_task(model="openai:older"))
        assert asked == ["openai:gpt-5", "openai:older"]


@pytest.mark.parametrize(
    "error,code",
    [
        (InvalidInput("there is no provider 'x'"), "invalid_input"),
        (ModelError("OPENAI_API_KEY is not set"), "not_authorised"),
    ],
)
async def test_a_model_that_cannot_be_resolved_is_reported(error: Exception, code: str) -> None:
    """It will not get better by itself."""

    def resolve(name: str) -> Any:
        raise error

    async with Desk(resolve=resolve) as desk:
        report = await desk.finish(desk.model_task())
        assert (report.error_class, report.code) == ("validation", code)
        assert str(error) in report.message


async def coroutine_text(request: Any) -> str:
    return request.messages[0].content.upper()


async def coroutine_reply(request: Any) -> ModelReply:
    return ModelReply("HELLO")


def function_text(request: Any) -> str:
    assert threading.current_thread() is not threading.main_thread()
    return request.messages[0].content.upper()


def function_awaitable(request: Any) -> Any:
    return coroutine_text(request)


@pytest.mark.parametrize(
    "model", [coroutine_text, coroutine_reply, function_text, function_awaitable]
)
async def test_a_function_is_a_model(model: Any) -> None:
    """Sync or async, of text or of a reply; a sync one does not hold up the loop."""
    async with Desk(model=model) as desk:
        report = await desk.finish(desk.model_task())
        assert report.reply == ModelReply("HELLO")


@pytest.mark.parametrize(
    "error,error_class,code,retry_after_ms",
    [
        (Exception("429 Too Many Requests"), "external_dependency", "rate_limited", None),
        (
            RuntimeError("HTTP 503: try again in 2 s"),
            "external_dependency",
            "upstream_unavailable",
            2000,
        ),
        (StatusError("slow down", 429), "external_dependency", "rate_limited", None),
        (StatusError("no", 401), "validation", "not_authorised", None),
        (StatusError("what?", 422), "validation", "status_422", None),
        (TimeoutError(), "transient", "timeout", None),
        (ConnectionResetError(104, "reset"), "transient", "connection_lost", None),
        (LimitExceeded("the request timed out"), "transient", "timeout", None),
        (ValueError("what is this"), "internal", "unexpected_failure", None),
        (SystemExit(3), "internal", "unexpected_failure", None),
        (KeyboardInterrupt(), "internal", "unexpected_failure", None),
        (asyncio.CancelledError(), "internal", "unexpected_failure", None),
        (type("ReadTimeout", (Exception,), {})(), "transient", "timeout", None),
        (ModelError("overloaded", status=529), "external_dependency", "upstream_unavailable", None),
        (
            ModelError("wait", status=429, retry_after_ms=7000),
            "external_dependency",
            "rate_limited",
            7000,
        ),
        (ModelError("429", error_class="transient", code="mine"), "transient", "mine", None),
        (
            ModelError("cut", error_class="transient", code="incomplete_reply"),
            "transient",
            "incomplete_reply",
            None,
        ),
        (ModelError("odd", error_class="no such class"), "internal", "unexpected_failure", None),
        (ModelError("429 \ud800"), "external_dependency", "rate_limited", None),
    ],
)
async def test_a_failure_is_classified(
    error: BaseException, error_class: str, code: str, retry_after_ms: int | None
) -> None:
    """By what it says of itself, by its status, by its text: it is never lost."""
    async with Desk(model=Speaker(error)) as desk:
        with reached() as sites:
            report = await desk.finish(desk.model_task())
        assert isinstance(report, ReportModelError)
        assert (report.error_class, report.code) == (error_class, code)
        assert report.retry_after_ms == retry_after_ms
        assert report.message.encode()
        assert sites == ["model.before"]
        await desk.nothing_more()


async def test_a_sync_model_may_raise_stop_iteration() -> None:
    """A future would refuse it and never end."""

    def model(request: Any) -> str:
        return next(iter(()))

    async with Desk(model=model) as desk:
        report = await desk.finish(desk.model_task())
        assert "StopIteration" in report.message


@pytest.mark.parametrize(
    "reply,error_class,code,message",
    [
        (None, "internal", "not_a_reply", "the model returned None, which is not a ModelReply"),
        ({"content": "x"}, "internal", "not_a_reply", "the model returned {'content': 'x'}"),
        (ModelReply(object()), "internal", "not_a_reply", "the model's reply cannot be recorded"),
        (ModelReply("\ud800"), "internal", "not_a_reply", "the model's reply cannot be recorded"),
        (
            ModelReply("x" * REPLY_BYTES_MAX),
            "validation",
            "reply_too_large",
            "the limit of 4194304",
        ),
    ],
)
async def test_what_is_no_reply_is_named(
    reply: Any, error_class: str, code: str, message: str
) -> None:
    """And never gets into a log."""
    async with Desk(model=Speaker(reply)) as desk:
        report = await desk.finish(desk.model_task())
        assert (report.error_class, report.code) == (error_class, code)
        assert message in report.message


async def test_arguments_that_are_no_json_are_told_to_the_model() -> None:
    """They spoil a call, and not the run."""
    asked = (ToolRequest("a", "pay", {"to": "\ud800"}), ToolRequest("b", "pay", {"cents": 5}))
    async with Desk(model=Speaker(ModelReply("", asked))) as desk:
        report = await desk.finish(desk.model_task())
        assert isinstance(report, ReportReply)
        spoiled, sound = report.reply.tool_calls
        assert "surrogates not allowed" in (spoiled.undecodable or "")
        assert sound == asked[1]


class Silent:
    """A model that never replies."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.ended = asyncio.Event()
        self.on_text: Any = None

    async def reply(self, request: Any, on_text: Any) -> ModelReply:
        self.on_text = on_text
        self.asked.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            self.ended.set()


@pytest.mark.parametrize(
    "options,seconds",
    [
        ({}, 300),
        ({"model_timeout_ms": 2000}, 2),
        ({"model_timeout_ms": 2000, "agent": {"model_timeout": 0.5}}, 0.5),
    ],
)
async def test_a_model_that_does_not_reply_is_given_up(
    options: dict[str, Any], seconds: float
) -> None:
    """After the agent's time, or the worker's."""
    model = Silent()
    async with Desk(model=model, **options) as desk:
        desk.start(desk.model_task())
        await model.asked.wait()
        desk.clock.advance(round(seconds * 1000) - 1)
        await desk.nothing_more()
        desk.clock.advance(1)
        report = await desk.next()
        assert (report.error_class, report.code) == ("transient", "timeout")
        assert report.message == f"the model did not reply within {seconds:g} s"
        await model.ended.wait()
        model.on_text("too late")
        assert desk.pieces == []
        await desk.nothing_more()


async def test_a_cancelled_model_is_stopped_and_says_nothing() -> None:
    """Neither a reply nor a failure nor a piece of text."""
    model = Silent()
    async with Desk(model=model) as desk:
        task = desk.start(desk.model_task())
        await model.asked.wait()
        desk.worker.cancel(task)
        await model.ended.wait()
        model.on_text("too late")
        assert desk.pieces == []
        await desk.nothing_more()
        await desk.no_limit_left()
