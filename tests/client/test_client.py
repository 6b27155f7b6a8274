"""What the client makes of answers that a real server gives only on a bad day."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import httpx2
import msgspec
import pytest

from perdure.api.shapes import AgentCreate, Event, Run, Wait, timestamp
from perdure.client import (
    ApiError,
    AsyncClient,
    AsyncRunHandle,
    Client,
    RunHandle,
    RunWaits,
    TextDelta,
    Unreachable,
)
from perdure.client import dialogues as d
from perdure.core.errors import InvalidInput

Answers = Callable[[httpx2.Request], httpx2.Response]
AGENT = {"id": 3, "name": "bot", "inserted_at": timestamp(0), "updated_at": timestamp(0)}


class Script:
    """A server that gives the answers that it was told to, one for each request."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Give the next answer: a status, a body, both, or an error."""
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            headers = {"Content-Type": "text/event-stream"}
            return httpx2.Response(200, headers=headers, text=answer)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return httpx2.Response(status, content=msgspec.json.encode(body))

    @property
    def paths(self) -> list[str]:
        """What was asked for, without the prefix."""
        return [f"{r.method} {r.url.path.removeprefix('/api/v1')}" for r in self.asked]

    def client(self, **options: Any) -> AsyncClient:
        """Return a client of this server."""
        return AsyncClient("http://node", "key-1", transport=httpx2.MockTransport(self), **options)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no time pass, and note how much would have."""
    passed: list[float] = []

    async def sleep(seconds: float) -> None:
        passed.append(seconds)

    monkeypatch.setattr("perdure.client.aio.asyncio.sleep", sleep)
    monkeypatch.setattr("perdure.client.sync.time.sleep", passed.append)
    return passed


def run(**fields: Any) -> dict[str, Any]:
    """Return a run as the API shows it."""
    given: dict[str, Any] = {
        "id": 7, "agent_id": 3, "status": "running", "row_status": "running", "input": {},
        "inserted_at": timestamp(0), "updated_at": timestamp(0), **fields,
    }  # fmt: skip
    return {"data": msgspec.to_builtins(msgspec.convert(given, Run))}


def told(*sequences: int, end: bool = True) -> str:
    """Return a stream of events; the last of them ends the run."""
    lines = []
    for number in sequences:
        kind = "run_completed" if end and number == sequences[-1] else "llm_response"
        event = Event(
            id=number, sequence=number, event_type=kind, payload={}, inserted_at=timestamp(0)
        )
        body = msgspec.json.encode(event).decode()
        lines.append(f"id: {number}\nevent: {kind}\ndata: {body}\n\n")
    return "".join(lines)


# ------------------------------------------------------------------------------------- requests


async def test_a_message_bears_a_key_that_makes_it_safe_to_send_again() -> None:
    """One of its own if none is given: an answer that was lost is asked for again."""
    script = Script({"data": [AGENT]}, httpx2.ReadError("gone"), (202, {"run_id": 7}))
    async with script.client() as client:
        assert (await client.send("bot", {"text": "hi"}, session="s/1")).id == 7
    assert script.paths == ["GET /agents", "POST /agents/3/messages", "POST /agents/3/messages"]
    first, second = (request.headers["Idempotency-Key"] for request in script.asked[1:])
    assert first == second
    body = msgspec.json.decode(script.asked[1].content)
    assert body == {"content": {"text": "hi"}, "conversation_key": "s/1", "mode": "queue"}
    assert script.asked[1].headers["Authorization"] == "Bearer key-1"


async def test_an_agent_of_the_same_name_is_another_one_by_now() -> None:
    """Its id is remembered, and looked up again when there is no such agent any more."""
    other = {**AGENT, "id": 4}
    script = Script(
        {"data": [AGENT]}, (202, {"run_id": 7}),
        (404, {"error": "not found"}), {"data": [other]}, (202, {"run_id": 8}),
    )  # fmt: skip
    async with script.client() as client:
        await client.send("bot", "a")
        assert (await client.send("bot", "b")).id == 8
    assert script.paths[2:] == ["POST /agents/3/messages", "GET /agents", "POST /agents/4/messages"]


@pytest.mark.parametrize(
    ("known", "answers", "paths"),
    [
        ([], [(201, {"data": AGENT})], ["GET /agents", "POST /agents"]),
        ([AGENT], [{"data": AGENT}], ["GET /agents", "PUT /agents/3"]),
        (
            [],
            [(422, {"error": {"name": ["has already been taken"]}}), {"data": [AGENT]},
             {"data": AGENT}],
            ["GET /agents", "POST /agents", "GET /agents", "PUT /agents/3"],
        ),
    ],
)  # fmt: skip
async def test_an_agent_is_made_or_changed(known: Any, answers: Any, paths: list[str]) -> None:
    """Also when somebody else makes it at the same moment."""
    script = Script({"data": known}, *answers)
    async with script.client() as client:
        made = await client.define_agent(AgentCreate(name="bot", system_prompt="Help."))
    assert (made.id, script.paths) == (3, paths)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ({"error": "agent is busy"}, "agent is busy", "409: agent is busy"),
        ({"error": {"a": ["is odd", "is long"], "b": "no"}},
         {"a": ["is odd", "is long"], "b": ["no"]}, "409: a is odd, is long; b no"),
        ({"error": 7}, '{"error":7}', '409: {"error":7}'),
        ("", '""', '409: ""'),
    ],
)  # fmt: skip
async def test_a_refusal_in_the_servers_words(body: Any, error: Any, said: str) -> None:
    """Whatever they look like."""
    async with Script((409, body)).client() as client:
        with pytest.raises(ApiError) as refused:
            await client.run(7).cancel()
    assert (refused.value.status, refused.value.error) == (409, error)
    assert str(refused.value) == f"POST /api/v1/runs/7/cancel was answered {said}"


async def test_an_answer_that_cannot_be_read() -> None:
    """It says what was expected."""
    async with Script({"data": {"id": "seven"}}).client() as client:
        with pytest.raises(ApiError, match="200: the answer is not what was expected: .*id"):
            await client.run(7).get()


async def test_what_may_pass_is_asked_again(pauses: list[float]) -> None:
    """Later each time, and not before the server said; at last the error comes out."""

    def busy(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(429, headers={"Retry-After": "2"}, json={"error": "slowly"})

    async with AsyncClient("http://node", "k", transport=httpx2.MockTransport(busy)) as client:
        with pytest.raises(ApiError, match="429: slowly") as refused:
            await client.agents()
    assert refused.value.retry_after_s == 2
    assert pauses == [2, 2, 2]


async def test_a_server_that_is_not_there(pauses: list[float]) -> None:
    """The error names its address."""
    script = Script(*[httpx2.ConnectError("connection refused")] * 3)
    async with script.client(retries=2) as client:
        with pytest.raises(Unreachable, match="no answer .* at http://node.*: connection refused"):
            await client.agents()
    assert all(0.1 * 2**n <= pause <= 0.2 * 2**n for n, pause in enumerate(pauses))


async def test_a_url_that_cannot_be() -> None:
    """It is told at once."""
    with pytest.raises(InvalidInput, match="expected http://HOST"):
        AsyncClient("node:4000", "key")


async def test_a_key_that_is_no_key() -> None:
    """An empty one is a mistake, and not every operation takes one."""
    async with Script().client() as client:
        with pytest.raises(InvalidInput, match="not empty"):
            await client.send(3, "hi", idempotency_key="")
        with pytest.raises(InvalidInput, match="update_agent takes no idempotency key"):
            await client.call("update_agent", id=3, body={}, idempotency_key="k")


# --------------------------------------------------------------------------------------- results


async def test_a_server_that_goes_away_is_waited_for(pauses: list[float]) -> None:
    """However often it does."""
    script = Script(
        httpx2.ConnectError("refused"), (503, {"error": "leaving"}), httpx2.ReadTimeout("slow"),
        run(status="completed", row_status="completed", output="done"),
    )  # fmt: skip
    async with script.client() as client:
        assert await client.run(7).result() == "done"
    assert len(pauses) == 3


async def test_a_run_that_joined_another_ends_with_it(pauses: list[float]) -> None:
    """A server that does not hold the question is not asked without a pause."""
    merged = run(row_status="merged")
    done = run(row_status="merged", status="completed", output="joint")
    async with Script(merged, merged, done).client() as client:
        assert await client.run(7).result(60) == "joint"
    assert len(pauses) == 2


async def test_a_call_whose_outcome_nobody_knows() -> None:
    """A person has to say; the message says of what."""
    wait = Wait(what="decision", call="1.1.t0", tool="pay", key="k", attempt=1)
    waiting = run(status="waiting", row_status="waiting", waits=[msgspec.to_builtins(wait)])
    script = Script(waiting, (202, {"run_id": 7}))
    async with script.client() as client:
        handle = client.run(7)
        with pytest.raises(RunWaits, match="a call's outcome") as waits:
            await handle.result()
        asked = waits.value.run.waits[0]
        await handle.resolve(asked.call, "happened", attempt=1, content="paid")
    assert msgspec.json.decode(script.asked[1].content) == {
        "call": "1.1.t0", "resolution": "happened", "attempt": 1, "content": "paid",
    }  # fmt: skip


# ----------------------------------------------------------------------------------------- events


async def test_a_stream_goes_on_where_it_broke() -> None:
    """No event is missed, and none comes twice."""
    script = Script(
        told(1, 2, end=False), run(), httpx2.ConnectError("away"), told(1, 2, 3, 4),
    )  # fmt: skip
    async with script.client() as client:
        seen = [event.sequence async for event in client.run(7).events()]
    assert seen == [1, 2, 3, 4]
    streams = [request for request in script.asked if request.url.path.endswith("/events")]
    assert [request.headers["Last-Event-ID"] for request in streams] == ["0", "2", "2"]


async def test_an_event_that_is_missing_is_asked_for() -> None:
    """A gap is never passed on."""
    script = Script(told(1, 3), told(2, 3))
    async with script.client() as client:
        assert [event.sequence async for event in client.run(7).events()] == [1, 2, 3]


async def test_text_comes_between_events() -> None:
    """It has no place of its own; what is none of ours is passed over."""
    text = 'event: text\ndata: {"text":"he"}\n\n: alive\n\nevent: other\ndata: ?\n\n'
    async with Script(text + told(1)).client() as client:
        items = [item async for item in client.run(7).stream()]
    assert items[0] == TextDelta("he")
    assert [type(item) for item in items] == [TextDelta, Event]


async def test_a_run_without_an_end_of_its_own() -> None:
    """One that joined another: the stream that has nothing more to tell is the last."""
    merged = run(row_status="merged")
    async with Script(told(1, end=False), merged, "", merged).client() as client:
        assert [event.sequence async for event in client.run(7).events()] == [1]


async def test_a_stream_that_is_refused() -> None:
    """Is not tried again."""
    async with Script((404, {"error": "not found"})).client() as client:
        with pytest.raises(ApiError, match="404: not found"):
            [event async for event in client.run(7).events()]


# --------------------------------------------------------------------------------- the other one


@pytest.mark.parametrize(("one", "other"), [(AsyncClient, Client), (AsyncRunHandle, RunHandle)])
def test_both_clients_can_do_the_same(one: type, other: type) -> None:
    """With the same words for it."""
    assert _methods(one) == _methods(other)


def _methods(of: type) -> dict[str, Any]:
    return {
        name: [
            (each.name, each.kind, each.default)
            for each in inspect.signature(method).parameters.values()
        ]
        for name, method in vars(of).items()
        if callable(method) and not name.startswith("_")
    }


def test_the_other_one_resumes_as_well(pauses: list[float]) -> None:
    """Its loop is written a second time, so that it is tested a second time."""
    script = Script(
        {"data": [AGENT]}, (202, {"run_id": 7}), httpx2.ConnectError("away"),
        told(1, end=False), run(), told(2), run(status="completed", row_status="completed"),
    )  # fmt: skip
    with Client("http://node", "k", transport=httpx2.MockTransport(script)) as client:
        handle = client.send("bot", "hi")
        assert [event.sequence for event in handle.events()] == [1, 2]
        assert handle.result() is None
    assert len(pauses) == 2


def test_delays_grow_to_a_limit() -> None:
    """And differ from one another."""
    delays = [d.delay(attempt) for attempt in range(30)]
    for attempt, seconds in enumerate(delays):
        most = min(15.0, 0.2 * 2**attempt)
        assert most / 2 <= seconds <= most
    assert len(set(delays)) > 20


async def test_a_follower_that_stops_lets_its_connection_go() -> None:
    """At once, not when somebody collects what it left behind."""
    closed = []

    class Body(httpx2.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield told(1, end=False).encode()
            yield told(2).encode()

        async def aclose(self) -> None:
            closed.append(True)

    def stream(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Body())

    async with AsyncClient("http://node", "k", transport=httpx2.MockTransport(stream)) as client:
        async with aclosing(client.run(7).events()) as events:
            async for event in events:
                assert event.sequence == 1
                break
        assert closed == [True]
