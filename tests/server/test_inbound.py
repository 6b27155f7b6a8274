"""What a webhook asks for: the message, the session and the key of a delivery."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.core.errors import InvalidInput
from perdure.core.ids import digest
from perdure.server.inbound import Challenge, Inbound, conversation_key, find, message, receive
from perdure.server.signatures import BadSignature
from tests.server.test_signatures import NOW, SECRET, pairs

PAYLOAD = {
    "text": "hello",
    "count": 3,
    "half": 1.5,
    "yes": True,
    "nothing": None,
    "empty": "",
    "event": {"items": [{"text": "first"}, {"text": "second"}], "a.b": 1},
}
WHOLE = json.dumps(PAYLOAD, indent=2)


@pytest.mark.parametrize(
    "path, expected",
    [
        ("text", "hello"),
        ("event.items.1.text", "second"),
        ("event.items.2.text", None),
        ("event.items.-1.text", None),
        ("event.items.99999999999999999999.text", None),
        ("event.items.٣", None),
        ("event.missing.deeper", None),
        ("text.0", None),
        ("", None),
        ("event..items", None),
    ],
)
def test_a_path(path: str, expected: Any) -> None:
    """Names of objects and numbers of lists, and None wherever it leads nowhere."""
    assert find(PAYLOAD, path) == expected


@pytest.mark.parametrize(
    "path, expected",
    [
        ("text", "hello"),
        ("empty", ""),
        ("count", "3"),
        ("half", "1.5"),
        ("yes", WHOLE),
        ("nothing", WHOLE),
        ("event.items", WHOLE),
        ("missing", WHOLE),
        ("", WHOLE),
        (None, WHOLE),
    ],
)
def test_the_message(path: str | None, expected: str) -> None:
    """Text or a number; else everything, so that nothing that came is lost."""
    assert message(PAYLOAD, path) == expected


@pytest.mark.parametrize(
    "value, expected",
    [
        ("C042", "hook_7_C042"),
        ("slack:U 1/ü", "hook_7_slack:U 1/ü"),
        (42, "hook_7_42"),
        (True, None),
        (4.5, None),
        ("", None),
        (None, None),
        ("x" * 150, "hook_7_" + "x" * 150),
        ("x" * 151, "hook_7_" + digest(b"x" * 151)),
        ("a\nb", "hook_7_" + digest(b"a\nb")),
        ("\ud800", "hook_7_" + digest(b"\xed\xa0\x80")),
    ],
)
def test_the_session(value: Any, expected: str | None) -> None:
    """Only a text names one, and one that no key can hold is represented by its digest."""
    assert conversation_key(7, {"at": value}, "at") == expected
    assert conversation_key(7, {"at": value}, None) is None


def test_a_delivery_keeps_its_key() -> None:
    """However often it comes; another delivery, or another hook, has another one."""

    def take(hook: int, delivery: bytes) -> Any:
        body = b'{"text": "hi", "channel": "C1"}'
        headers = pairs("standard", SECRET, body, id=delivery)
        return receive(hook, "standard", SECRET, headers, body, NOW * 1000, "text", "channel")

    first = take(7, b"msg_1")
    assert (first.content, first.session_key) == ("hi", "hook_7_C1")
    assert {take(7, b"msg_1").idempotency_key for _ in range(10)} == {first.idempotency_key}
    assert len({first.idempotency_key, take(7, b"msg_2").idempotency_key,
                take(8, b"msg_1").idempotency_key}) == 3  # fmt: skip


@pytest.mark.parametrize(
    "scheme, payload, expected",
    [
        ("slack", {"type": "url_verification", "challenge": "3eZb"}, Challenge("3eZb")),
        ("slack", {"type": "url_verification"}, Challenge("")),
        ("slack", {"type": "event_callback", "challenge": "3eZb"}, None),
        ("github", {"type": "url_verification", "challenge": "3eZb"}, None),
    ],
)
def test_slack_asks_whose_address_it_is(
    scheme: Any, payload: dict[str, Any], expected: Challenge | None
) -> None:
    """It is a question to the server and no message to an agent."""
    body = json.dumps(payload).encode()
    found = receive(7, scheme, SECRET, pairs(scheme, SECRET, body), body, NOW * 1000)
    assert found == expected if expected else isinstance(found, Inbound)


def test_an_unsigned_delivery_is_new_each_time() -> None:
    """There is nothing to know it by."""
    found = receive(7, "none", "", [], b'{"a": 1}', NOW * 1000)
    assert (found.content, found.session_key, found.idempotency_key) == (
        '{\n  "a": 1\n}',
        None,
        None,
    )


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"a=1&b=2", "not a JSON object"),
        (b'{"a": "\xff"}', "not a JSON object"),
        (b'{"a": NaN}', "not a JSON object"),
        (b'{"a": 1e999}', "not a JSON object"),
        (b'{"a":' * 150 + b"1" + b"}" * 150, "nested deeper than 100"),
        (b'{"a":' * 100_000, "nested deeper than 100"),
    ],
)
def test_a_body_that_is_no_object(body: bytes, message: str) -> None:
    """Refused as the sender's mistake."""
    with pytest.raises(InvalidInput, match=message):
        receive(7, "none", "", [], body, NOW * 1000)


def test_the_signature_comes_before_the_parser() -> None:
    """Whoever cannot sign does not get to try the parser."""
    with pytest.raises(BadSignature, match="missing_signature"):
        receive(7, "github", SECRET, [], b"not json", NOW * 1000)
