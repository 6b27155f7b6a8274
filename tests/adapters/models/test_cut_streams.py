"""A cut reply never looks like a whole one: cut at every byte, in both formats, in both ways."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.adapters.models import asks, streams
from perdure.adapters.models.streams import EVENT_BYTES_MAX, LAST_EVENT, Scanner
from perdure.core.messages import ModelReply, ToolRequest, Usage
from perdure.core.retry import classify
from perdure.ports.models import ModelError
from perdure.testing.stub_formats import stream
from perdure.testing.stub_provider import Behaviour, Received, StubProvider, cut, garbage, hang
from tests.adapters.models.asking import KINDS, Stopwatch, ask, model_of, refusal, request

WHOLE = replace(
    asks(
        ToolRequest("call_1", "add", {"a": 1}),
        ToolRequest("call_2", "add", {"text": "naïve"}),
        text="Hi.",
    ),
    usage=Usage(input_tokens=9, output_tokens=8),
)
AT_ONCE = 16


def size(kind: Any) -> int:
    """How many bytes the whole reply has."""
    return len(b"".join(stream(kind, WHOLE)))


def cutter(*, cleanly: bool) -> Callable[[Received], Behaviour]:
    """Cut where the request says: it names the byte as its limit of tokens."""

    def script(received: Received) -> Behaviour:
        limit = received.body.get("max_tokens") or received.body["max_completion_tokens"]
        return cut(int(limit) - 1, WHOLE, cleanly=cleanly)

    return script


async def outcomes(kind: str, positions: Sequence[int], *, cleanly: bool) -> list[Any]:
    """What came of each cut: a reply, or class and code of the error."""
    gate = asyncio.Semaphore(AT_ONCE)

    with StubProvider(cutter(cleanly=cleanly)) as stub:
        async with model_of(kind, stub) as model:

            async def outcome(position: int) -> Any:
                async with gate:
                    try:
                        asked = request(max_tokens=position + 1)
                        return await model.reply(asked, lambda piece: None)
                    except ModelError as error:
                        return error.error_class, error.code

            found = await asyncio.gather(*map(outcome, positions))
        assert len(stub.requests) == len(positions)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [0, 1])
async def test_cut_in_good_order_at_every_byte(kind: str, half: int) -> None:
    """The dangerous way: what came is a well-formed HTTP answer, only not all of the reply."""
    positions = range(half, size(kind), 2)
    *found, whole = await outcomes(kind, [*positions, size(kind)], cleanly=True)
    assert isinstance(whole, ModelReply)
    assert (whole.content, whole.tool_calls) == ("Hi.", WHOLE.tool_calls)
    assert Counter(found) == {("transient", "incomplete_reply"): len(positions)}


@pytest.mark.parametrize("kind", KINDS)
async def test_broken_connections(kind: str) -> None:
    found = await outcomes(kind, range(0, size(kind), 9), cleanly=False)
    assert set(found) == {("transient", "incomplete_reply")}


@pytest.mark.parametrize("kind", KINDS)
async def test_without_the_check_parts_would_pass(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: if this fails, the SDKs have learnt it, and `streams` may go."""

    async def look_away(response: object) -> None:
        pass

    monkeypatch.setattr(streams, "watch", look_away)
    found = await outcomes(kind, range(0, size(kind), 9), cleanly=True)
    assert any(isinstance(outcome, ModelReply) for outcome in found)


MISSING = {
    "anthropic": ("message_stop", "message_delta"),
    "openai": ("[DONE]", '"finish_reason":"'),
}


@pytest.mark.parametrize(("kind", "event"), [(k, e) for k, all_ in MISSING.items() for e in all_])
async def test_the_events_that_end_a_reply_may_not_be_missing(kind: Any, event: str) -> None:
    kept = [piece for piece in stream(kind, WHOLE) if event.encode() not in piece]
    assert len(kept) == len(stream(kind, WHOLE)) - 1
    with StubProvider(garbage(b"".join(kept))) as stub:
        async with model_of(kind, stub) as model:
            error = await refusal(model)
    assert (error.error_class, error.code) == ("transient", "incomplete_reply")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("afterwards", [cut, hang])
async def test_what_happens_after_the_last_event_is_of_no_account(
    kind: str, afterwards: Callable[..., Behaviour]
) -> None:
    """The reply is whole and paid for: neither a lost connection nor silence takes it away."""
    with StubProvider(afterwards(10**9, WHOLE)) as stub, Stopwatch() as watch:
        async with model_of(kind, stub) as model:
            reply, _ = await ask(model)
    assert reply.tool_calls == WHOLE.tool_calls
    assert watch.seconds < 30


def test_its_code_is_one_that_is_tried_again() -> None:
    error = streams.incomplete("cut")
    assert (error.error_class, error.code) == ("transient", "incomplete_reply")
    assert classify(str(error)).retry_after_ms is None


def _chunks(body: bytes, cut_at: int) -> Iterator[bytes]:
    yield body[:cut_at]
    yield body[cut_at:]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("last", LAST_EVENT.values())
def test_the_scanner_finds_the_last_event_however_it_is_cut(
    last: tuple[bytes, bytes], newline: bytes
) -> None:
    field, value = last
    lines = [b"event: ping", b"data: {}", b"", b": note", field + b": " + value, b"data: {}", b""]
    body = newline.join(lines) + newline
    for cut_at in range(len(body)):
        scanner = Scanner(last)
        for chunk in _chunks(body, cut_at):
            scanner.feed(chunk)
        assert scanner.complete
        early = Scanner(last)
        early.feed(body[: len(body) - len(newline)])
        assert not early.complete


def test_the_scanner_is_not_fooled_by_text() -> None:
    scanner = Scanner((b"data", b"[DONE]"))
    scanner.feed(b'data: "data: [DONE]"\n\ndata: [DONE] \n\n:data: [DONE]\n\n')
    scanner.feed(b"x" * 100 + b"data: [DONE]\n\n")
    assert not scanner.complete
    scanner.feed(b"data:[DONE]\n\n")
    assert scanner.complete


def test_the_scanner_limits_one_event() -> None:
    scanner = Scanner((b"data", b"[DONE]"))
    half = b"x" * (EVENT_BYTES_MAX // 2)
    for _ in range(3):
        scanner.feed(b"data: " + half + b"\n\n")
    scanner.feed(half)
    scanner.feed(half)
    with pytest.raises(ModelError) as caught:
        scanner.feed(b"x")
    assert caught.value.code == "reply_too_large"
