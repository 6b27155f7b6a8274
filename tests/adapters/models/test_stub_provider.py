"""The stub is a provider as strict as the real ones, for anyone who speaks HTTP."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from typing import Any

import pytest

from perdure.adapters.models import asks, call, says
from perdure.testing.stub_formats import objection
from perdure.testing.stub_provider import (
    Received,
    StubProvider,
    by_turn,
    cut,
    hang,
    status,
    thinks,
)

PATHS = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}
HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}


def post(port: int, kind: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", PATHS.get(kind, kind), json.dumps(body))
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def turns(count: int) -> dict[str, Any]:
    """A request that follows this many replies."""
    said = [{"role": role, "content": "x"} for role in ("assistant", "user")]
    return {**HELLO, "messages": [*HELLO["messages"], *said * count]}


def test_replies_without_a_stream() -> None:
    with StubProvider("Hello.", asks(call("add", a=1), text="So:")) as stub:
        _, _, plain = post(stub.port, "anthropic", HELLO)
        _, _, asking = post(stub.port, "openai", HELLO)
    message = json.loads(plain)
    assert message["content"] == [{"type": "text", "text": "Hello."}]
    assert message["stop_reason"] == "end_turn"
    choice = json.loads(asking)["choices"][0]
    assert choice["message"]["content"] == "So:"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":1}'}
    assert choice["finish_reason"] == "tool_calls"


def test_calls_and_thinking_without_a_stream() -> None:
    with StubProvider(thinks("Hmm.", "sig", asks(call("add", a=1)))) as stub:
        _, _, body = post(stub.port, "anthropic", HELLO)
    message = json.loads(body)
    assert [block["type"] for block in message["content"]] == ["thinking", "tool_use"]
    assert message["content"][1]["input"] == {"a": 1}
    assert message["stop_reason"] == "tool_use"


def test_what_it_keeps_of_a_request() -> None:
    with StubProvider("Hello.", status(500)) as stub:
        post(stub.port, "openai", turns(2))
        post(stub.port, "openai", HELLO)
    first, second = stub.requests
    assert (first.number, first.turn, first.format) == (1, 2, "openai")
    assert first.body == turns(2)
    assert first.headers["content-length"] == str(len(json.dumps(turns(2))))
    assert second.turn == 0
    # Billed is what was begun: the input of the first request, and the words of its reply.
    assert stub.billed.output_tokens == says("Hello.").usage.output_tokens
    assert stub.billed.input_tokens == -(-len(json.dumps(turns(2))) // 4)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_reply_is_billed_too(streamed: bool) -> None:
    asked = {**HELLO, "stream": streamed}
    with StubProvider(cut(10), cut(10, cleanly=True), "Hello.") as stub:
        with pytest.raises(http.client.IncompleteRead):
            post(stub.port, "openai", asked)
        begun = post(stub.port, "openai", asked)[2]
        assert len(begun) == 10
        assert post(stub.port, "openai", asked)[2].startswith(begun)
        assert stub.billed.output_tokens == 3 * says("Hello.").usage.output_tokens


def test_a_script_by_turn_answers_repeats_alike() -> None:
    with StubProvider(by_turn("One.", "Two.")) as stub:
        answers = [post(stub.port, "openai", turns(n))[2] for n in (0, 0, 1, 0)]
    texts = [json.loads(answer)["choices"][0]["message"]["content"] for answer in answers]
    assert texts == ["One.", "One.", "Two.", "One."]


def test_errors_have_the_form_of_the_provider() -> None:
    with StubProvider(status(429, retry_after=2), status(529), status(599)) as stub:
        code, headers, body = post(stub.port, "anthropic", HELLO)
        assert (code, headers["retry-after"]) == (429, "2")
        assert json.loads(body)["error"]["type"] == "rate_limit_error"
        assert json.loads(post(stub.port, "openai", HELLO)[2])["error"]["code"] == (
            "overloaded_error"
        )
        assert post(stub.port, "openai", HELLO)[0] == 599


def test_a_script_that_ends_or_fails_says_so() -> None:
    def broken(received: Received) -> str:
        raise KeyError(received.number)

    with StubProvider(broken, "unused", "unused") as stub:
        code, _, body = post(stub.port, "openai", HELLO)
        assert code == 400
        assert b"KeyError(1)" in body
    with StubProvider() as stub:
        code, _, body = post(stub.port, "openai", HELLO)
        assert code == 400
        assert b"no item for request 1" in body
        assert post(stub.port, "/v1/embeddings", HELLO)[0] == 404


def test_leaving_lets_go_of_those_who_hang() -> None:
    asked = threading.Event()
    seen: list[BaseException] = []

    def script(received: Received) -> Any:
        asked.set()
        return hang()

    def wait() -> None:
        try:
            post(stub.port, "openai", HELLO)
        except http.client.HTTPException as error:
            seen.append(error)

    with StubProvider(script) as stub:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert asked.wait(30)
    waiting.join(30)
    assert isinstance(seen[0], http.client.RemoteDisconnected)


def test_a_taken_port_is_an_error() -> None:
    with StubProvider() as stub, pytest.raises(OSError, match="address already in use"):
        StubProvider(port=stub.port).__enter__()


def use(*ids: str) -> dict[str, Any]:
    """An assistant message that calls tools."""
    blocks = [{"type": "tool_use", "id": id_, "name": "add", "input": {}} for id_ in ids]
    return {"role": "assistant", "content": blocks}


def result(*ids: str) -> dict[str, Any]:
    """The answers to them."""
    blocks = [{"type": "tool_result", "tool_use_id": id_, "content": "3"} for id_ in ids]
    return {"role": "user", "content": blocks}


def calls(*ids: str, arguments: str = "{}") -> dict[str, Any]:
    """An assistant message that calls tools, for OpenAI."""
    function = {"name": "add", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": id_, "function": function} for id_ in ids]}


def answer(id_: str) -> dict[str, Any]:
    """One answer, for OpenAI."""
    return {"role": "tool", "tool_call_id": id_, "content": "3"}


USER = {"role": "user", "content": "Hello."}
HISTORIES: list[tuple[Any, list[Any], str | None]] = [
    ("anthropic", [USER, use("a", "b"), result("a", "b")], None),
    ("anthropic", [USER, use("a", "b"), result("a")], "without a result"),
    ("anthropic", [USER, use("a"), USER], "without a result"),
    ("anthropic", [USER, use("a")], "without a result"),
    ("anthropic", [USER, result("a")], "unexpected tool result"),
    ("anthropic", [USER, use("a", "a"), result("a", "a")], "must be unique"),
    ("anthropic", [USER, use("a"), result("a"), use("a"), result("a")], "must be unique"),
    ("anthropic", [USER, use("a~1"), result("a~1")], "should match pattern"),
    ("anthropic", [{"role": "user", "content": " "}], "non-whitespace"),
    ("anthropic", [{"role": "user", "content": []}], "must not be empty"),
    ("anthropic", [], "at least one message"),
    ("openai", [USER, calls("a", "b"), answer("b"), answer("a"), USER], None),
    ("openai", [USER, calls("a", "b"), answer("a"), USER], "without a result"),
    ("openai", [USER, calls("a"), answer("a"), answer("a")], "unexpected tool result"),
    ("openai", [USER, calls("a", arguments="{"), answer("a")], "not valid JSON"),
    ("openai", [USER, calls("a" * 41), answer("a" * 41)], "longer than 40"),
]


@pytest.mark.parametrize(("kind", "messages", "expected"), HISTORIES)
def test_it_refuses_what_providers_refuse(
    kind: Any, messages: list[Any], expected: str | None
) -> None:
    found = objection(kind, {"messages": messages})
    assert (found is None) if expected is None else (expected in str(found))


def test_a_refused_request_uses_up_no_reply() -> None:
    with StubProvider("Hello.") as stub:
        assert post(stub.port, "openai", {**HELLO, "messages": [answer("a")]})[0] == 400
        assert post(stub.port, "openai", HELLO)[0] == 200
    with StubProvider("Hello.", strict=False) as stub:
        assert post(stub.port, "openai", {**HELLO, "messages": [answer("a")]})[0] == 200


def test_it_runs_by_itself() -> None:
    command = [sys.executable, "-m", "perdure.testing.stub_provider", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = dict(process.stdout.readline().strip().split("=") for _ in range(2))
        port = int(lines["ANTHROPIC_BASE_URL"].rpartition(":")[2])
        assert lines["OPENAI_BASE_URL"] == f"http://127.0.0.1:{port}/v1"
        _, _, plain = post(port, "anthropic", HELLO)
        process.terminate()
    assert json.loads(plain)["content"][0]["text"] == "You said: Hello."
