"""Bad days of a provider, over HTTP: what they are called, and that they are told once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from typing import Any

import pytest

from perdure.adapters.models import DirectModel
from perdure.adapters.models.failures import model_error, scrubbed
from perdure.core.limits import ERROR_CHARS_MAX
from perdure.core.retry import POLICY, classify
from perdure.ports.models import ModelError
from perdure.testing.stub_formats import stream
from perdure.testing.stub_provider import (
    Behaviour,
    Received,
    StubProvider,
    garbage,
    hang,
    huge_arguments,
    status,
)
from tests.adapters.models.asking import KEY, KINDS, Stopwatch, ask, model_of, refusal, url

ENDS = b"event: message_stop\ndata: {}\n\ndata: [DONE]\n\n"
"""The last events of both formats."""

both = pytest.mark.parametrize("kind", KINDS)


def classified(error: ModelError) -> tuple[str, str, int | None]:
    """What the worker makes of it: what the error says of itself, else what the core reads."""
    failure = classify(str(error), error.status, error.retry_after_ms)
    error_class = error.error_class or failure.error_class
    return error_class, error.code or failure.code, failure.retry_after_ms


STATUSES = [
    (status(429, retry_after=2), ("external_dependency", "rate_limited", 2_000)),
    (status(429, retry_after="1.5"), ("external_dependency", "rate_limited", 1_500)),
    (
        status(429, retry_after=9, headers={"retry-after-ms": "250"}),
        ("external_dependency", "rate_limited", 250),
    ),
    (
        status(
            429,
            retry_after="Wed, 21 Oct 2026 07:28:30 GMT",
            headers={"date": "Wed, 21 Oct 2026 07:28:00 GMT"},
        ),
        ("external_dependency", "rate_limited", 30_000),
    ),
    (
        status(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
        ("external_dependency", "upstream_unavailable", 0),
    ),
    (status(429, retry_after="soon"), ("external_dependency", "rate_limited", None)),
    (status(529), ("external_dependency", "upstream_unavailable", None)),
    (status(500), ("external_dependency", "upstream_unavailable", None)),
    (status(408), ("transient", "timeout", None)),
    (status(401), ("validation", "not_authorised", None)),
    (status(403), ("validation", "not_authorised", None)),
    (status(400), ("validation", "status_400", None)),
    (status(404), ("validation", "status_404", None)),
    (status(413), ("validation", "status_413", None)),
    (status(307), ("validation", "status_307", None)),
]


@both
@pytest.mark.parametrize(("behaviour", "expected"), STATUSES)
async def test_an_http_error(
    kind: str, behaviour: Behaviour, expected: tuple[str, str, int | None]
) -> None:
    with StubProvider(behaviour, "too late") as stub:
        async with model_of(kind, stub) as model:
            error = await refusal(model)
    assert classified(error) == expected
    assert error.status == behaviour.status
    assert f"the stub says {behaviour.status}" in str(error)
    assert kind in str(error)
    assert len(stub.requests) == 1


@both
async def test_no_silent_second_attempt(kind: str) -> None:
    """Every attempt is counted where it is billed; 529s and timeouts tempt SDKs most."""
    script = [status(529), status(500), hang(), garbage(), status(429, retry_after=0), "Hi."]
    with StubProvider(*script) as stub:
        async with model_of(kind, stub, read_timeout_s=0.2) as model:
            for number in range(1, 6):
                await refusal(model)
                assert len(stub.requests) == number
            await ask(model)
    assert len(stub.requests) == 6


@both
@pytest.mark.parametrize("behaviour", [hang(), hang(after_byte=0), hang(after_byte=150)])
@pytest.mark.parametrize("limit", ["read_timeout_s", "reply_timeout_s"])
async def test_silence_is_a_timeout(kind: str, behaviour: Behaviour, limit: str) -> None:
    with StubProvider("Hi.", behaviour) as stub:
        async with model_of(kind, stub) as model:
            await ask(model)  # the imports of the first call take their time
        async with model_of(kind, stub, **{limit: 0.2}) as model:
            with Stopwatch() as watch:
                error = await refusal(model)
    assert classified(error) == ("transient", "timeout", None)
    assert classify(str(error)).code == "timeout"
    assert watch.seconds < 30
    assert len(stub.requests) == 2


@both
async def test_nobody_there(kind: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with StubProvider() as stub:
        address = url(kind, stub).replace(str(stub.port), str(port))
        async with model_of(kind, stub, base_url=address) as model:
            error = await refusal(model)
    assert classified(error) == ("transient", "connection_lost", None)
    assert ("transient", "connection_lost") in POLICY


@both
async def test_a_reply_over_the_limit_is_not_read_to_its_end(kind: str) -> None:
    one_event = b"data: " + b"x" * 9_000_000
    with StubProvider(huge_arguments(), "x" * 5_000_000, garbage(one_event)) as stub:
        async with model_of(kind, stub) as model:
            for _ in range(3):
                error = await refusal(model)
                assert classified(error) == ("validation", "reply_too_large", None)


@both
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>Gateway</html>",
        b'{"id": "x", "choices": [], "content": []}',
        b"data: \xff\xfe\n\nevent: message_start\ndata: \xff\n\n",
        b"event: message_start\ndata: 7\n\ndata: 7\n\n" + ENDS,
        ENDS,
        garbage().raw,
    ],
)
async def test_nonsense_is_an_incomplete_reply(kind: str, raw: bytes) -> None:
    with StubProvider(garbage(raw)) as stub:
        async with model_of(kind, stub) as model:
            error = await refusal(model)
    assert error.error_class in {"transient", "internal"}
    if error.error_class == "transient":
        assert error.code == "incomplete_reply"


@both
async def test_a_long_error_is_read_as_far_as_it_is_told(kind: str) -> None:
    with StubProvider(status(500, message="x" * 20_000_000)) as stub:
        async with model_of(kind, stub) as model:
            error = await refusal(model)
    assert error.status == 500
    assert len(str(error)) < 2 * ERROR_CHARS_MAX


@both
async def test_a_compressed_stream_cannot_be_checked(kind: str) -> None:
    with StubProvider(Behaviour(headers={"content-encoding": "gzip"})) as stub:
        async with model_of(kind, stub) as model:
            error = await refusal(model)
    assert classified(error) == ("validation", "unexpected_encoding", None)
    assert stub.requests[0].headers["accept-encoding"] == "identity"


IN_STREAM = {
    "anthropic": (
        b'event: error\ndata: {"type": "error", "error": '
        b'{"type": "overloaded_error", "message": "Overloaded"}}\n\n'
    ),
    "openai": b'data: {"error": {"type": "server_error", "message": "Overloaded"}}\n\n',
}


@both
@pytest.mark.parametrize("before", [0, 3])
async def test_an_error_inside_a_stream_has_the_class_it_would_have_had_before(
    kind: Any, before: int
) -> None:
    events = stream(kind, huge_arguments(100))[:before]
    with StubProvider(garbage(b"".join(events) + IN_STREAM[kind])) as stub:
        async with model_of(kind, stub) as model:
            error = await refusal(model)
    assert classified(error) == ("external_dependency", "upstream_unavailable", None)
    assert "Overloaded" in str(error)


async def test_an_empty_purse_is_not_asked_again() -> None:
    body = {"error": {"message": "You ran out.", "code": "insufficient_quota"}}
    error = model_error(_StatusError(429, body), "openai:some-model")
    assert classified(error)[:2] == ("validation", "quota_exhausted")


class _StatusError(Exception):
    def __init__(self, status_code: int, body: object) -> None:
        super().__init__(str(status_code))
        self.status_code = status_code
        self.body = body


# ---------------------------------------------------------------------------------------- keys


@both
async def test_a_missing_key_is_named_before_anything_is_sent(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "OPENAI_")):
            monkeypatch.delenv(name)
    error = await refusal(DirectModel(f"{kind}:some-model"))
    assert (error.error_class, error.code) == ("validation", "missing_api_key")
    assert f"{kind.upper()}_API_KEY" in str(error)
    assert "ScriptedModel" in str(error)


async def test_other_providers_name_their_key_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    error = await refusal(DirectModel("deepseek:deepseek-chat"))
    assert (error.error_class, error.code) == ("validation", "missing_api_key")
    assert "DEEPSEEK_API_KEY" in str(error)


async def test_other_providers_are_watched_and_never_tried_twice() -> None:
    with StubProvider(status(500), garbage(b'data: {"id": "1"}\n\n'), "Hi.") as stub:
        model = DirectModel("ollama:some-model", base_url=stub.openai_url)
        assert classified(await refusal(model))[1] == "upstream_unavailable"
        assert classified(await refusal(model))[1] == "incomplete_reply"
        reply, _ = await ask(model)
        await model.aclose()
    assert reply.content == "Hi."
    assert len(stub.requests) == 3


async def test_a_server_of_ones_own_may_do_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with StubProvider("Hi.") as stub:
        async with model_of("openai", stub, api_key=None) as model:
            reply, _ = await ask(model)
    assert reply.content == "Hi."


@both
@pytest.mark.parametrize("code", [400, 401, 429, 500])
async def test_a_key_is_in_no_text(kind: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "tok-98765432-another"
    monkeypatch.setenv("SOMEBODYS_TOKEN", other)

    def tell_tale(received: Received) -> Behaviour:
        return status(code, message=f"bad: {received.headers['authorization']} {other}")

    with StubProvider(tell_tale) as stub:
        async with model_of(kind, stub) as model:
            try:
                await ask(model)
            except ModelError as error:
                told = "".join(traceback.format_exception(error)) + repr(error)
    assert "[secret]" in told
    assert KEY not in told
    assert other not in told


def test_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "on")
    assert scrubbed("the lamp is on", ("the",)) == "the lamp is on"


def test_a_long_text_is_clipped() -> None:
    error = model_error(_StatusError(400, {"error": {"message": "x" * 9_999}}), "m")
    assert len(str(error)) < ERROR_CHARS_MAX + 100


# ------------------------------------------------------------------------------------ settings


WITHOUT = """
import asyncio, sys
for name in ("anthropic", "httpx2", "openai", "pydantic", "pydantic_ai"):
    sys.modules[name] = None
from perdure.adapters.models import DirectModel, resolve
from perdure.ports.models import ModelError, ModelRequest
try:
    model = resolve(sys.argv[1])
    asyncio.run(model.reply(ModelRequest(model="", instructions="", messages=()), print))
except ModelError as error:
    print(error.error_class, error.code, error)
"""


@both
def test_without_the_extra_its_name_is_told(kind: str) -> None:
    """In a process of its own, in which nothing of the extra can be imported."""
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT, f"{kind}:some-model"],
        env={**os.environ, "ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.startswith("validation extra_missing ")
    assert "pip install 'perdure[models]'" in told


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nobody:some-model", "unknown_model"),
        ("some-model", "unknown_model"),
        ("groq:some-model", "extra_missing"),
    ],
)
async def test_a_name_that_leads_nowhere(name: str, code: str) -> None:
    error = await refusal(DirectModel(name, api_key=KEY))
    assert (error.error_class, error.code) == ("validation", code)
    assert name in str(error)
