"""What is known to be secret is taken out of texts, results and log lines."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator
from urllib.parse import quote

import msgspec
import pytest

from perdure import ModelReply, Tool, ToolContext, ToolRequest, tool
from perdure.worker import RedactingFilter, redaction
from perdure.worker.redaction import hidden_in, redact, remember
from tests.worker.helpers import Speaker
from tests.worker.isolated_tools import shout_key
from tests.worker.test_credentials import VALUE, Vault, desk

ODD = 'pässword "quoted" \\ & /+%'


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Know nothing before, and nothing after."""
    redaction._known.clear()
    redaction._forms = redaction._in_json = ()
    yield
    redaction._known.clear()
    redaction._forms = redaction._in_json = ()


@pytest.mark.parametrize("value", [VALUE, ODD])
def test_a_secret_is_found_in_whatever_shape_it_stands(value: str) -> None:
    """Escaped, in a URL, in base64 behind anything."""
    remember(value)
    shapes = [
        value,
        json.dumps({"key": value}),
        repr([value]),
        quote(value, safe=""),
        *(base64.b64encode(f"{user}:{value}".encode()).decode() for user in ("", "a", "ab", "abc")),
    ]
    for shape in shapes:
        clean = redact(f"before {shape} after")
        assert "[secret]" in clean, shape
        assert clean.startswith("before ")
        assert clean.endswith(" after")
        assert value not in clean


def test_the_lines_of_a_private_key_are_secrets_too() -> None:
    """A parser's error shows the line that it could not read."""
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
    remember(key)
    assert redact("bad line: hkiG9w0BAQEFAASC") == "bad line: [secret]"
    assert redact("-----BEGIN KEY-----") == "-----BEGIN KEY-----"


def test_what_is_too_short_is_not_looked_for() -> None:
    """Else every text would be full of holes."""
    remember("abc")
    assert redact("abcdef") == "abcdef"


def test_the_oldest_of_too_many_is_forgotten() -> None:
    """What was used again is not the oldest."""
    for number in range(redaction.KNOWN_MAX):
        remember(f"secret-number-{number:06d}")
    remember("secret-number-000000")
    remember("one secret more")
    assert redact("secret-number-000000") == "[secret]"
    assert redact("secret-number-000001") == "secret-number-000001"


def test_a_value_without_a_secret_is_the_same_object() -> None:
    """Nothing is copied for nothing; with one, keys and values are clean."""
    remember(VALUE)
    for value, clean in (
        ({"a": [1, "b"]}, None),
        (
            {f"x{VALUE}": [VALUE, {"deep": f"a {VALUE} b"}, 1, None]},
            {"x[secret]": ["[secret]", {"deep": "a [secret] b"}, 1, None]},
        ),
    ):
        found = hidden_in(value, msgspec.json.encode(value))
        assert found is value if clean is None else found == clean


def test_error_texts_are_free_of_the_environments_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDKs read these by themselves. Results are the user's: there they stay."""
    monkeypatch.setenv("SHOP_TOKEN", "token-of-the-environment")
    monkeypatch.setenv("PERDURE_STORE", "postgresql://me:password-in-a-url@db/x")
    assert redact("got token-of-the-environment") == "got [secret]"
    assert redact("password-in-a-url is wrong") == "[secret] is wrong"
    assert hidden_in("token-of-the-environment", b'"token-of-the-environment"') == (
        "token-of-the-environment"
    )


# ----------------------------------------------------------------------------- of tools and models


@tool(effect="read", credentials=["shop"])
def shout(how: str, ctx: ToolContext) -> object:
    """Say the key in some way."""
    key = ctx.credential("shop")
    if how == "raise":
        # It stands where the text is cut.
        raise ValueError("x" * 3_990 + key)
    if how == "chain":
        try:
            {}[key]
        except KeyError as error:
            raise ValueError(f"while paying with {key}") from error
    if how == "large":
        return "x" * 990 + key + "x" * (1 << 20)
    if how == "bytes":
        return {key: b"x"}
    return {"headers": {"authorization": f"Bearer {key}"}}


@pytest.mark.parametrize(
    "one,how",
    [(shout, how) for how in ("raise", "chain", "large", "bytes", "return")]
    + [(shout_key, how) for how in ("raise", "return")],
)
async def test_nothing_that_a_tool_says_holds_its_key(one: Tool[..., object], how: str) -> None:
    """Not even a part of it, where a text was cut."""
    async with desk(Vault(VALUE), one) as at:
        report = await at.call({"how": how})
        said = msgspec.json.encode(report).decode()
        assert VALUE[:6] not in said
        assert report.ok is (how == "return")


async def test_nothing_that_a_model_says_holds_a_key() -> None:
    """Its pieces, its text, and what it asks tools for."""
    remember(VALUE)
    said = Speaker(ModelReply(f"a {VALUE} b", (ToolRequest("1", "x", {"key": VALUE}),)))
    async with desk(Vault(VALUE), model=said) as at:
        report = await at.finish(at.model_task())
        assert report.reply == ModelReply(
            "a [secret] b", (ToolRequest("1", "x", {"key": "[secret]"}),)
        )
    async with desk(Vault(VALUE), model=lambda request: f"hi {VALUE}") as at:
        await at.finish(at.model_task())
        assert at.pieces == ["hi [secret]"]
    async with desk(Vault(VALUE), model=Speaker(ValueError(VALUE))) as at:
        report = await at.finish(at.model_task())
        assert report.message == "ValueError: [secret]"


# -------------------------------------------------------------------------------------- log lines


@pytest.mark.parametrize("logger", ["perdure.worker", "perdure", "asyncio", "of.somebody.else"])
def test_log_lines_hold_no_secret(logger: str) -> None:
    """Messages, arguments, tracebacks with their chains, stacks. Your handlers may do the same."""
    remember(VALUE)
    redaction.guard_logs()
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(RedactingFilter())
    log = logging.getLogger(logger)
    log.addHandler(handler)
    try:
        try:
            try:
                {}[VALUE]
            except KeyError as inner:
                raise ValueError(f"outer {VALUE}") from inner
        except ValueError:
            log.exception("failed with %s", VALUE, stack_info=True)
        log.warning("all is well: %d", 7)
    finally:
        log.removeHandler(handler)
    text = out.getvalue()
    assert VALUE not in text
    assert "failed with [secret]" in text
    assert "KeyError: '[secret]'" in text
    assert "ValueError: outer [secret]" in text
    assert "all is well: 7" in text
