"""The worker's end, alone and in a talk with the server's."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.messages import AssistantMessage, Message, UserMessage
from perdure.wire import table as t
from perdure.wire.frames import BadFrame, TooLarge
from perdure.wire.message_cache import RUNS_MAX, MessageCache
from perdure.wire.registration import FEATURES, Registration, ToolOffer
from perdure.wire.results import CACHE_MISS, Result
from perdure.wire.server import Left, ServerSide, WorkerJoins
from perdure.wire.tasks import LlmTask, MessagesDelta, ToolTask, for_norns
from perdure.wire.worker import (
    Acknowledged,
    Closed,
    Joined,
    JoinRefused,
    Replied,
    WorkerSide,
)

LOBBY = "worker:lobby"
CHARGE = ToolOffer("charge", "Take money.", {"type": "object"}, side_effect=True)
OURS = Registration(
    worker_id="w1", tools=(CHARGE,), capabilities=("llm", "tools"), features=FEATURES - {"native"}
)


class Talk:
    """A worker and a server, each with its own end; what one says the other hears at once."""

    def __init__(self, registration: Registration = OURS) -> None:
        self.worker = WorkerSide(registration)
        self.server = ServerSide("worker")
        self.found: list[Any] = []
        self.say(self.worker.join())

    def say(self, *texts: str) -> list[Any]:
        """Let the server hear frames, and the worker what it answers; returns new facts of both."""
        before = len(self.found)
        for text in texts:
            for thing in self.server.feed(text):
                if isinstance(thing, WorkerJoins):
                    self.tell(*self.server.accept_join(thing))
                elif isinstance(thing, str):
                    self.tell(thing)
                else:
                    self.found.append(thing)
        return self.found[before:]

    def tell(self, *texts: str) -> list[Any]:
        """Let the worker hear frames, and the server what it answers."""
        before = len(self.found)
        for text in texts:
            for thing in self.worker.feed(text):
                if isinstance(thing, str):
                    self.say(thing)
                else:
                    self.found.append(thing)
        return self.found[before:]


def test_a_worker_joins() -> None:
    """What it offers arrives as it is; what both know is agreed on."""
    talk = Talk()
    assert talk.found == [Joined(OURS.features)]
    (joins,) = ServerSide("worker").feed(WorkerSide(OURS).join())
    assert isinstance(joins, WorkerJoins)
    assert joins.registration == OURS


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ({"reason": "already_claimed", "code": "gard_claim_failed"},
         JoinRefused("already_claimed", "gard_claim_failed")),
        ({"reason": "join crashed"}, JoinRefused("join crashed")),
        ("no", JoinRefused("no reason was given")),
    ],
)  # fmt: skip
def test_a_worker_is_refused(response: Any, fact: JoinRefused) -> None:
    """It hears why, and nothing after that."""
    worker = WorkerSide(OURS)
    worker.join()
    said = ["1", "1", LOBBY, "phx_reply", {"status": "error", "response": response}]
    assert worker.feed(json.dumps(said)) == [fact]
    assert worker.feed(json.dumps(["1", None, LOBBY, "key_revoked", {}])) == []


TASK = ToolTask(task_id="T2", tool_name="charge", input={"amount": 5}, idempotency_key="k")
LLM = LlmTask(task_id="T1", model="m", system_prompt="", messages=(UserMessage("hi"),), run_id=7)


def test_a_task_and_its_result() -> None:
    """The worker keeps a result until it hears that the server has it."""
    talk = Talk()
    assert talk.tell(*talk.server.tell(TASK)) == [TASK]
    done = Result(task_id="T2", status="ok", result="charged 5")
    assert talk.say(talk.worker.result(done)) == [Acknowledged(("T2",)), done]


def test_several_results_in_one_frame() -> None:
    """Only where both know it; elsewhere one after the other."""
    both = (Result(task_id="A", status="ok"), Result(task_id="B", status="ok"))
    talk = Talk()
    (text,) = talk.worker.results(both)
    assert talk.say(text) == [Acknowledged(("A", "B")), *both]
    plain = Talk(msgspec.structs.replace(OURS, features=frozenset()))
    assert plain.say(*plain.worker.results(both)) == [
        Acknowledged(("A",)),
        both[0],
        Acknowledged(("B",)),
        both[1],
    ]


def test_results_that_are_too_large_together_go_one_by_one() -> None:
    """One that is too large alone is for its worker to replace."""
    talk = Talk()
    large = Result(task_id="A", status="ok", result="x" * 3_000_000)
    assert len(talk.worker.results((large, large))) == 2
    with pytest.raises(TooLarge):
        talk.worker.result(Result(task_id="A", status="ok", result="x" * 6_000_000))


def test_a_call_that_may_happen_once() -> None:
    """The worker asks, the server lets it, or takes it back."""
    talk = Talk()
    assert talk.say(talk.worker.begin("T2")) == [Replied("2", True, {}), t.Begin("T2")]
    assert talk.tell(*talk.server.tell(t.Proceed("T2"))) == [t.Proceed("T2")]
    assert talk.tell(*talk.server.tell(t.Cancel("T2"))) == [t.Cancel("T2")]


def test_what_is_only_told() -> None:
    """Nobody answers, and nobody is told who did not ask."""
    talk = Talk()
    told = [t.Text({"T": "he"}), t.Progress("T", 1), t.Credit(4)]
    worker = talk.worker
    assert talk.say(*worker.text({"T": "he"}), *worker.progress("T", 1), *worker.credit(4)) == told
    plain = Talk(msgspec.structs.replace(OURS, features=frozenset({"begin"}))).worker
    assert plain.text({"T": "he"}) == plain.progress("T") == plain.credit(4) == []


def test_a_worker_goes() -> None:
    """It drains, brings its last results, leaves; then nothing more is heard."""
    talk = Talk()
    assert talk.say(talk.worker.drain())[-1] == t.Drain()
    assert (talk.server.state(LOBBY), talk.worker.state) == ("draining", "draining")
    assert talk.tell(*talk.server.tell(TASK)) == [TASK]
    assert talk.say(talk.worker.leave())[-2:] == [Closed(), Left(LOBBY)]
    assert talk.server.tell(TASK) == []


def test_a_heartbeat_is_answered() -> None:
    """The worker hears nothing of that: it is not its channel."""
    talk = Talk()
    (reply,) = talk.server.feed(talk.worker.heartbeat())
    assert isinstance(reply, str)
    assert json.loads(reply)[2:] == ["phoenix", "phx_reply", {"status": "ok", "response": {}}]
    assert talk.worker.feed(reply) == []


def test_a_port() -> None:
    """Without a URL there is none in the frame."""
    talk = Talk()
    ref, text = talk.worker.register_port(3000, "react")
    assert json.loads(text)[1] == ref
    assert json.loads(text)[4] == {"internal_port": 3000, "name": "react", "protocol": "http"}
    assert json.loads(talk.worker.register_port(1, url="http://x")[1])[4]["url"] == "http://x"


HISTORY: tuple[Message, ...] = tuple(UserMessage(str(number)) for number in range(6))


def test_messages_come_as_what_changed() -> None:
    """A delta means the same messages as the whole list."""
    talk = Talk()
    sent = MessageCache()
    for first, last in ((0, 1), (0, 3), (2, 5), (3, 6)):
        messages = HISTORY[first:last]
        delta = sent.delta(7, messages)
        sent.keep(7, messages)
        task = msgspec.structs.replace(LLM, messages=messages)
        if delta is not None:
            task = msgspec.structs.replace(task, messages=msgspec.UNSET, messages_delta=delta)
        assert (delta is None) == (last == 1)
        (heard,) = talk.tell(*talk.server.tell(task))
        assert heard.messages == messages


@pytest.mark.parametrize(
    "delta", [MessagesDelta(base_count=2), MessagesDelta(base_count=1, append=HISTORY)]
)
def test_a_delta_without_its_base_is_a_miss(delta: MessagesDelta) -> None:
    """The worker asks for everything by failing at once. A compaction leaves the base alone."""
    talk = Talk()
    compact = msgspec.structs.replace(LLM, purpose="compact", messages=HISTORY[:2])
    talk.tell(*talk.server.tell(compact))
    task = msgspec.structs.replace(LLM, messages=msgspec.UNSET, messages_delta=delta)
    found = talk.tell(*talk.server.tell(task))
    assert Result(task_id="T1", status="error", error=CACHE_MISS) in found


def test_only_so_many_runs_are_kept() -> None:
    """The one that changed longest ago goes first, on both sides alike."""
    cache = MessageCache()
    for run in range(RUNS_MAX):
        cache.keep(run, HISTORY[:1])
    cache.keep(0, HISTORY[:2])
    cache.keep("new", HISTORY)
    assert cache.delta(1, HISTORY) is None
    assert cache.delta(0, HISTORY) == MessagesDelta(base_count=2, append=HISTORY[2:])
    cache.forget(0)
    assert cache.delta(0, HISTORY) is None


def test_two_of_ours_keep_more_and_no_more_than_so_many_bytes() -> None:
    """Both count alike, so that both forget the same; a run that alone is too much is not kept."""
    ours = MessageCache.of({"native", "message_cache"})
    for run in range(RUNS_MAX + 1):
        ours.keep(run, HISTORY[:1])
    assert ours.delta(0, HISTORY) is not None
    assert MessageCache.of({"message_cache"})._runs_max == RUNS_MAX
    one = len(msgspec.json.encode(HISTORY[0]))
    sent, received = MessageCache(100, 5 * one), MessageCache(100, 5 * one)
    for run, count in ((1, 1), (2, 2), (1, 2), (3, 1), (3, 2), (4, 1)):
        delta = sent.delta(run, HISTORY[:count])
        if delta is None:
            received.keep(run, HISTORY[:count])
        else:
            assert received.applied(run, delta) == HISTORY[:count]
        sent.keep(run, HISTORY[:count])
        assert set(sent._runs) == set(received._runs)
        assert sent._bytes == received._bytes == one * sum(map(len, sent._runs.values()))
    assert set(sent._runs) == {1, 3, 4}
    sent.keep(5, HISTORY)
    assert (sent._runs, sent._bytes) == ({}, 0)


def test_other_messages_come_whole() -> None:
    """A window that moved past all of them, or a summary in their place."""
    cache = MessageCache()
    cache.keep(7, HISTORY[:3])
    assert cache.delta(7, HISTORY[3:]) is None
    assert cache.delta(7, ()) is None
    assert cache.delta(7, (UserMessage("summary"), *HISTORY[1:])) is None
    assert cache.delta(7, HISTORY[:2]) is None


SMALL = st.lists(st.sampled_from(HISTORY[:3]), max_size=6).map(tuple)


@given(st.lists(SMALL, max_size=5))
def test_a_delta_means_what_was_sent(lists: list[tuple[Message, ...]]) -> None:
    """Also where messages repeat."""
    sent, received = MessageCache(), MessageCache()
    for messages in lists:
        delta = sent.delta(7, messages)
        if delta is None:
            received.keep(7, messages)
        else:
            assert received.applied(7, delta) == messages
        sent.keep(7, messages)


def test_a_task_that_cannot_be_read_is_answered() -> None:
    """Or its session would wait for it."""
    talk = Talk()
    for payload in ({"task_id": "T9"}, {"task_id": "T9", "tool_name": "f", "input": None}):
        (text,) = talk.worker.feed(json.dumps([None, None, LOBBY, "tool_task", payload]))
        assert isinstance(text, str)
        assert json.loads(text)[4]["task_id"] == "T9"
        assert "not valid" in json.loads(text)[4]["error"]
    (text,) = talk.worker.feed(
        f'[null,null,"{LOBBY}","tool_task",{{"task_id":"T9","input":2e308}}]'
    )
    assert isinstance(text, str)
    assert json.loads(text)[4]["task_id"] == "T9"
    for unnamed in ("7", '{"task_id":7}', '{"task_id":2e308}'):
        assert talk.worker.feed(f'[null,null,"{LOBBY}","tool_task",{unnamed}]') == []
    bare = {"task_id": "T9", "model": "m", "system_prompt": ""}
    (text,) = talk.worker.feed(json.dumps([None, None, LOBBY, "llm_task", bare]))
    assert isinstance(text, str)
    assert json.loads(text)[4]["error"] == "the task has no messages"


def test_a_worker_leaves_what_it_does_not_know() -> None:
    """A newer server may say more; a reply of no known shape is an error."""
    talk = Talk()
    assert talk.worker.feed(json.dumps([None, None, LOBBY, "telepathy", {}])) == []
    assert talk.worker.feed(json.dumps([None, "9", LOBBY, "phx_reply", 7])) == [
        Replied("9", False, None)
    ]


def test_norns_workers_are_not_shown_what_is_ours() -> None:
    """They hand every key of a message to the provider."""
    said = AssistantMessage("hi", extra={"a": 1})
    assert for_norns((HISTORY[0], said)) == (HISTORY[0], AssistantMessage("hi"))
    assert for_norns(HISTORY)[0] is HISTORY[0]


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_anything_may_be_said_to_a_worker(data: str | bytes) -> None:
    """Nothing else than a bad frame is raised."""
    worker = WorkerSide(OURS)
    worker.join()
    try:
        worker.feed(data)
    except BadFrame:
        assert worker.state == "joining"


STEPS = st.sampled_from(
    ["task", "llm", "result", "begin", "proceed", "cancel", "drain", "leave", "join", "beat"]
)


@given(st.lists(STEPS, max_size=20), st.frozensets(st.sampled_from(sorted(FEATURES - {"native"}))))
def test_two_ends_never_get_stuck(steps: list[str], features: frozenset[str]) -> None:
    """Whatever they say to each other: both think the same of the channel, and go on."""
    talk = Talk(msgspec.structs.replace(OURS, features=features))
    worker, server = talk.worker, talk.server
    for step in steps:
        match step:
            case "task":
                talk.tell(*server.tell(TASK))
            case "llm":
                talk.tell(*server.tell(LLM))
            case "result":
                talk.say(worker.result(Result(task_id="T", status="ok", result=1)))
            case "begin":
                talk.say(worker.begin("T"))
            case "proceed":
                talk.tell(*server.tell(t.Proceed("T")))
            case "cancel":
                talk.tell(*server.tell(t.Cancel("T")))
            case "drain" if worker.state == "joined":
                talk.say(worker.drain())
            case "leave" if worker.state != "left":
                talk.say(worker.leave())
            case "join":
                talk.say(worker.join())
            case _:
                server.feed(worker.heartbeat())
        assert worker.state == server.state(LOBBY)
    done = Result(task_id="T", status="ok", result=1)
    talk.say(worker.join())
    assert done in talk.say(worker.result(done))
