"""A run's events as a stream: whole, in order, from wherever somebody was cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perdure.api.operations import EVENT_STREAM, PREFIX
from perdure.core.messages import AssistantMessage
from perdure.server import streams
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.server.house import BOT, House, Things, calls, echo, furnished, house, says

STREAM = {"Accept": EVENT_STREAM}
Frame = dict[str, Any]


def frames_of(text: str) -> list[Frame]:
    """Return what a stream said; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if lines:
            found.append({**lines, "data": json.loads(lines["data"])})
    return found


class Reader:
    """Reads a stream over ASGI, as slowly as a test wants: a piece at a time."""

    def __init__(self, h: House, path: str, **headers: str) -> None:
        self.status = 0
        self.taken: list[bytes] = []
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._gone = asyncio.Event()
        given = {"authorization": f"Bearer {h.keys['acme', 'read']}", "accept": EVENT_STREAM}
        raw = [(k.encode(), v.encode()) for k, v in {**given, **headers}.items()]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
            "scheme": "http", "path": PREFIX + path, "raw_path": (PREFIX + path).encode(),
            "query_string": b"", "headers": raw, "server": ("house", 80), "client": ("me", 1),
        }  # fmt: skip
        self._task = asyncio.ensure_future(h.app(scope, self._receive, self._send))

    async def take(self) -> str:
        """Take the next piece; an empty text at the end."""
        piece = await asyncio.wait_for(self._pieces.get(), 5)
        return "" if piece is None else piece.decode()

    async def until(self, what: str) -> str:
        """Take pieces until one of them says this."""
        text = ""
        while what not in text:
            piece = await self.take()
            assert piece, f"the stream ended without {what!r}: {text}"
            text += piece
        return text

    async def rest(self) -> str:
        """Take everything to the end."""
        text = ""
        while piece := await self.take():
            text += piece
        return text

    async def go(self) -> None:
        """Hang up."""
        self._gone.set()
        while not self._task.done():
            if not self._pieces.empty():
                self._pieces.get_nowait()
            await asyncio.sleep(0)

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if message.get("body"):
            await self._pieces.put(message["body"])
        if not message.get("more_body"):
            await self._pieces.put(None)


@asynccontextmanager
async def charged(steps: int) -> AsyncIterator[tuple[House, int]]:
    """Open a house with a run of so many tool calls, which waits for a word."""

    def does(task: LlmTask | ToolTask) -> Result | None:
        if isinstance(task, ToolTask):
            return says(task, "done")
        assert isinstance(task.messages, tuple)
        turn = sum(isinstance(message, AssistantMessage) for message in task.messages)
        if turn == steps:
            return calls(task, "ask_human", question="Enough?")
        return says(task, "bye") if turn > steps else calls(task, "look", n=turn)

    async with house() as h:
        h.worker(does)
        agent = (await h.make("/agents", BOT))["id"]
        run = await h.run(agent, "go", conversation_key="c")
        await h.settle(60 * steps)
        yield h, run


async def events(h: House, run: int, **query: Any) -> list[Any]:
    """Return a run's events as a list."""
    return list(await h.get(f"/runs/{run}/events", **query))


async def test_a_stream_goes_on_wherever_it_was_cut() -> None:
    """After every position: no gap and no repeat, whether a cursor or the header says it."""
    async with charged(4) as (h, run):
        await h.make(f"/runs/{run}/reply", {"answer": "yes"})
        await h.settle()
        whole = await events(h, run)
        assert len(whole) > 15
        assert [event["sequence"] for event in whole] == list(range(1, len(whole) + 1))
        path = f"/runs/{run}/events"
        for cut in range(len(whole) + 3):
            resumed = await h.ask("GET", path, headers={**STREAM, "Last-Event-ID": str(cut)})
            told = frames_of(resumed.text)
            assert [frame["data"] for frame in told] == whole[cut:]
            assert [(int(frame["id"]), frame["event"]) for frame in told] == [
                (event["sequence"], event["event_type"]) for event in whole[cut:]
            ]
            assert (await h.ask("GET", path, headers=STREAM, after=cut)).text == resumed.text
            assert await events(h, run, after=cut) == whole[cut:]


async def test_the_pages_of_a_list_of_events_are_the_list() -> None:
    """`next` is where to go on."""
    async with charged(3) as (h, run):
        whole, found, at = await events(h, run), [], "0"
        while at is not None:
            answer = await h.ask("GET", f"/runs/{run}/events", limit=2, after=at)
            found += answer.json()["data"]
            at = answer.json()["next"]
        assert found == whole


async def test_a_stream_that_is_cut_while_the_run_goes_on_misses_nothing() -> None:
    """Somebody hangs up after every event, and what happens meanwhile is told to the next."""
    async with charged(3) as (h, run):
        told: list[Any] = []
        replied = False
        while not told or told[-1]["event_type"] != "run_completed":
            last = str(told[-1]["sequence"]) if told else "0"
            reader = Reader(h, f"/runs/{run}/events", **{"last-event-id": last})
            told += [frame["data"] for frame in frames_of(await reader.take())]
            await reader.go()
            if told[-1]["event_type"] == "waiting_for_user" and not replied:
                replied = True
                await h.make(f"/runs/{run}/reply", {"answer": "yes"})
        assert told == await events(h, run)


async def test_a_stream_follows_a_run_from_before_it_began() -> None:
    """One that is queued behind another one."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        first = await h.run(agent, "ask", conversation_key="c")
        second = await h.run(agent, "hi", conversation_key="c", mode="queue")
        assert second == first
        queued = await h.run(agent, "be silent", conversation_key="d")
        behind = await h.run(agent, "hi", conversation_key="d")
        reader = Reader(h, f"/runs/{behind}/events")
        await h.settle()
        await h.make(f"/runs/{queued}/cancel", {})
        told = frames_of(await reader.rest())
        assert [frame["data"] for frame in told] == await events(h, behind)
        assert told[-1]["event"] == "run_completed"


async def test_text_comes_as_it_is_written_and_before_what_follows() -> None:
    """It has no id: it may never become durable, and whoever comes later is told the reply."""
    async with house() as h:
        peer = h.worker(echo, features=("text",))
        agent = (await h.make("/agents", BOT))["id"]
        run = await h.run(agent, "be silent")
        (task,) = peer.tasks
        reader = Reader(h, f"/runs/{run}/events")
        await reader.until("llm_request")
        peer.say(*peer.side.text({task.task_id: "Hel"}))
        peer.say(*peer.side.text({task.task_id: "lo"}))
        text = await reader.until("event: text")
        assert frames_of(text)[-1] == {"event": "text", "data": {"text": "Hello"}}
        peer.say(*peer.side.text({task.task_id: "!"}))
        peer.reply(task.task_id, "Hello!")
        told = frames_of(await reader.rest())
        assert [frame["event"] for frame in told] == ["text", "llm_response", "run_completed"]


def test_text_keeps_its_place_among_what_is_committed() -> None:
    """What a reply said comes before its event, what the next one says after it."""
    waiting = streams._Waiting("run")
    waiting.committed = False
    for run, piece in (("run", "I th"), ("run", "ink"), ("other", "no"), (None, "")):
        waiting.tell(run, piece)
    for run, piece in (("run", "in between"), (None, ""), ("run", "Next")):
        waiting.tell(run, piece)
    assert waiting.committed
    assert (waiting.before(), waiting.text()) == ("I think", "Next")
    assert (waiting.before(), waiting.text()) == ("", "")


async def test_a_silent_stream_shows_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """With comments, which no client takes for an event."""
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.001)
    async with house() as h:
        things = await furnished(h)
        reader = Reader(h, f"/runs/{things['asking']}/events")
        text = await reader.until(": alive\n\n: alive\n\n")
        assert frames_of(text)[-1]["event"] == "waiting_for_user"
        await reader.go()


async def test_a_slow_reader_costs_a_bounded_amount() -> None:
    """What waits for it is a part of the log and a part of the text, however much there is."""
    async with charged(60) as (h, run):
        reader = Reader(h, f"/runs/{run}/events")
        await h.settle()
        desk = h.service.desk("acme")
        row = await desk.row(run)
        (tell,) = h.service.node._followers._news[row.session]
        waiting = tell.__self__
        for _ in range(100):
            tell(row.id, "x" * 10_000)
        assert waiting._chars <= streams.TEXT_CHARS_MAX
        assert reader._pieces.qsize() == 1
        await reader.go()
        assert row.session not in h.service.node._followers._news


async def test_streams_end_when_the_server_leaves() -> None:
    """So that it can stop at once; who was cut off goes on elsewhere."""
    async with house() as h:
        things = await furnished(h)
        reader = Reader(h, f"/runs/{things['asking']}/events")
        await reader.until("waiting_for_user")
        silent = await h.run(things["agents"], "be silent")
        asked = asyncio.ensure_future(h.get(f"/runs/{silent}/wait", timeout=60))
        await h.settle()
        assert not asked.done()
        h.service.leaving.begin()
        assert await reader.rest() == ""
        assert (await asyncio.wait_for(asked, 1))["status"] == "running"
        assert (await h.http.get("/ready")).status_code == 503


async def test_a_stream_ends_with_its_key() -> None:
    """Whoever's key is revoked follows nothing any more, also while nothing happens."""
    async with house() as h:
        things = await furnished(h)
        made = await h.make("/api_keys", {"scope": "read"})
        guest = f"Bearer {made['key']}"
        reader = Reader(h, f"/runs/{things['asking']}/events", authorization=guest)
        await reader.until("waiting_for_user")
        await h.ask("DELETE", f"/api_keys/{made['id']}")
        assert await asyncio.wait_for(reader.rest(), 5) == ""


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 40])
async def test_a_wrong_last_event_id_is_named(last: str) -> None:
    """422 with the header's name."""
    async with house() as h:
        things: Things = await furnished(h)
        path = f"/runs/{things['runs']}/events"
        answer = await h.ask("GET", path, headers={**STREAM, "Last-Event-ID": last})
        assert answer.status_code == 422
        assert list(answer.json()["error"]) == ["Last-Event-ID"]


async def test_who_asks_for_a_stream_and_may_not_is_told_so_in_json() -> None:
    """Errors are JSON whatever is accepted."""
    async with house() as h:
        for scope, status in (("worker", 401), (None, 401), ("read", 404)):
            answer = await h.ask("GET", "/runs/9999/events", headers=STREAM, scope=scope)
            assert (answer.status_code, answer.headers["content-type"]) == (
                status, "application/json",
            )  # fmt: skip


async def test_streams_are_counted_as_sockets() -> None:
    """As many as a tenant may have; one that ends makes room, and lists are no streams."""
    async with house(client_sockets_max=2) as h:
        things = await furnished(h)
        path = f"/runs/{things['asking']}/events"
        first, second = Reader(h, path), Reader(h, path)
        for reader in (first, second):
            await reader.until("waiting_for_user")
        answer = await h.ask("GET", path, headers=STREAM)
        assert (answer.status_code, "close some" in answer.text) == (429, True)
        assert await events(h, things["asking"])
        await first.go()
        third = Reader(h, path)
        await third.until("waiting_for_user")
        await second.go()
        await third.go()
        assert h.service.sockets["agent"].count("acme") == 0


async def test_a_long_list_of_events_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same list, whatever the size of a piece; what fails before the first one is an error."""
    async with charged(3) as (h, run):
        whole = await events(h, run)
        for size in (1, 500):
            monkeypatch.setattr(streams, "PIECE_BYTES_MIN", size)
            assert await events(h, run) == whole
            assert await events(h, run, after=3) == whole[3:]
            assert await events(h, run, after=10_000) == []
        assert (await h.ask("GET", "/runs/999999/events")).status_code == 404
