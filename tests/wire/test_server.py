"""The server's end: who may say what when, and what is answered."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.messages import AssistantMessage, ToolMessage, ToolRequest, UserMessage
from perdure.wire import table as t
from perdure.wire.frames import BadFrame, TooLarge
from perdure.wire.results import Result
from perdure.wire.server import (
    AgentJoins,
    Left,
    MessageAsked,
    PortAsked,
    ServerSide,
    WorkerJoins,
)
from perdure.wire.tasks import LlmTask, MessagesDelta, ToolSchema, ToolTask

LOBBY = "worker:lobby"
JOIN = (
    '[null,"1","worker:lobby","phx_join",{"worker_id":"w1","tools":[{"name":"charge",'
    '"description":"Take money.","input_schema":{"type":"object"},"side_effect":true}],'
    '"capabilities":["llm","tools"],"features":["message_cache"],"agents":[{"name":"bot",'
    '"model":"claude","tools":["charge","stop_me"]}],"gard":"3","claim_token":"tok"}]'
)


def frame(*parts: Any) -> str:
    """Return a frame as a peer writes it."""
    return json.dumps(parts)


def told(things: list[Any]) -> list[Any]:
    """Return what was said and found: frames as lists, facts as they are."""
    return [json.loads(thing) if isinstance(thing, str) else thing for thing in things]


def worker(**said: Any) -> ServerSide:
    """Return the server's end of a connection on which a worker has joined."""
    server = ServerSide("worker")
    (joins,) = server.feed(
        frame("1", "1", LOBBY, "phx_join", {"worker_id": "w", "tools": [], **said})
    )
    assert isinstance(joins, WorkerJoins)
    server.accept_join(joins)
    return server


def client() -> ServerSide:
    """Return the server's end of a connection on which a client has joined an agent's channel."""
    server = ServerSide("agent")
    (joins,) = server.feed(frame("1", "1", "agent:5", "phx_join", {"run_id": 7}))
    assert isinstance(joins, AgentJoins)
    assert joins.agent_id == "5"
    assert told(server.accept_join(joins)) == [
        ["1", "1", "agent:5", "phx_reply", {"status": "ok", "response": {}}]
    ]
    return server


def test_the_sdk_joins() -> None:
    """It joins with null, and so bear the frames to it."""
    server = ServerSide("worker")
    (joins,) = server.feed(JOIN)
    assert isinstance(joins, WorkerJoins)
    assert joins.registration.worker_id == "w1"
    assert joins.registration.gard == "3"
    assert server.tell(t.KeyRevoked()) == []
    assert server.accept_join(joins) == [
        '[null,"1","worker:lobby","phx_reply",{"status":"ok","response":{}}]'
    ]
    assert server.accept_join(joins) == []
    assert server.tell(t.KeyRevoked()) == ['[null,null,"worker:lobby","key_revoked",{}]']


def test_a_peer_of_our_own_is_told_what_was_agreed_on() -> None:
    """Features that one of the two does not know are not."""
    server = ServerSide("worker")
    features = ["results", "text", "telepathy"]
    said = {"worker_id": "w", "tools": [], "features": features}
    (joins,) = server.feed(frame("1", "1", LOBBY, "phx_join", said))
    assert isinstance(joins, WorkerJoins)
    (reply,) = told(server.accept_join(joins))
    assert reply[4]["response"] == {"features": ["results", "text"]}


def test_a_join_is_refused() -> None:
    """By the table of checks, or by the server; and may be tried again."""
    server = ServerSide("worker")
    (reply,) = told(server.feed(frame(None, "1", LOBBY, "phx_join", {"tools": []})))
    assert reply[3:] == [
        "phx_reply",
        {
            "status": "error",
            "response": {
                "reason": "invalid_registration",
                "code": "missing_worker_id_or_tools",
                "detail": "worker_id must be a text that is not empty, tools a list",
            },
        },
    ]
    (joins,) = server.feed(JOIN)
    assert isinstance(joins, WorkerJoins)
    assert told(server.refuse_join(joins, "already_claimed", "gard_claim_failed")) == [
        [None, "1", LOBBY, "phx_reply", {"status": "error", "response": {
            "reason": "already_claimed", "code": "gard_claim_failed"}}]
    ]  # fmt: skip
    assert server.refuse_join(joins, "again") == []
    assert isinstance(server.feed(JOIN)[0], WorkerJoins)
    assert server.state(LOBBY) == "joining"


UNMATCHED = {"status": "error", "response": {"reason": "unmatched topic"}}

# a frame on a connection without a channel, and what it is answered
STRANGERS = [
    ([None, "9", "phoenix", "heartbeat", {}], {"status": "ok", "response": {}}),
    (["1", "9", LOBBY, "tool_result", {}], UNMATCHED),
    (["1", "9", LOBBY, "phx_leave", {}], UNMATCHED),
    (["1", "9", "agent:5", "phx_join", {}], UNMATCHED),
    (["1", "9", "worker:other", "phx_join", {}], UNMATCHED),
    (["1", "9", "agent:", "phx_join", {}], UNMATCHED),
]


@pytest.mark.parametrize(("said", "answer"), STRANGERS)
def test_a_stranger_is_answered(said: list[Any], answer: dict[str, Any]) -> None:
    """Only the heartbeat needs no join."""
    (reply,) = told(ServerSide("worker").feed(frame(*said)))
    assert reply == [said[0], "9", said[2], "phx_reply", answer]


OK = ["1", "9", LOBBY, "phx_reply", {"status": "ok", "response": {}}]
ALL = ["results", "text", "progress", "begin", "credit"]

# what a worker says, and the facts it is beside an ok
SAID = [
    ("tool_result", {"task_id": "T2", "status": "ok", "result": "5"},
     [Result(task_id="T2", status="ok", result="5")]),
    ("tool_result", {}, [Result()]),
    ("results", {"results": [{"task_id": "A"}, {"task_id": "B"}]},
     [Result(task_id="A"), Result(task_id="B")]),
    ("drain", {}, [t.Drain()]),
    ("text", {"pieces": {"T": "he"}}, [t.Text({"T": "he"})]),
    ("progress", {"task_id": "T", "progress": 0.5}, [t.Progress("T", 0.5)]),
    ("begin", {"task_id": "T"}, [t.Begin("T")]),
    ("credit", {"tasks": 3}, [t.Credit(3)]),
]  # fmt: skip


@pytest.mark.parametrize(("event", "payload", "facts"), SAID)
def test_what_a_worker_says_is_a_fact(event: str, payload: Any, facts: list[Any]) -> None:
    """It is answered ok; without a ref it is not answered at all."""
    assert told(worker(features=ALL).feed(frame("1", "9", LOBBY, event, payload))) == [OK, *facts]
    assert worker(features=ALL).feed(frame("1", None, LOBBY, event, payload)) == facts


# what a worker may not say, and why
WRONG = [
    ("telepathy", {}, "unknown event 'telepathy'"),
    ("begin", {"task_id": "T"}, "unknown event 'begin'"),
    ("phx_close", {}, "unknown event 'phx_close'"),
    ("tool_result", 7, "the payload of 'tool_result' is not valid: Expected `object`, got `int`"),
]


@pytest.mark.parametrize(("event", "payload", "why"), WRONG)
def test_what_nobody_may_say_is_answered_and_closes_nothing(
    event: str, payload: Any, why: str
) -> None:
    """An event of a feature that was not agreed on is one that does not exist."""
    server = worker()
    (reply,) = told(server.feed(frame("1", "9", LOBBY, event, payload)))
    assert reply[4] == {"status": "error", "response": {"reason": why}}
    assert server.feed(frame("1", None, LOBBY, event, payload)) == []
    assert server.state(LOBBY) == "joined"


def test_a_worker_drains_and_leaves() -> None:
    """Results are taken while it drains; the leave counts whatever its join_ref."""
    server = ServerSide("worker")
    (joins,) = server.feed(JOIN)
    assert isinstance(joins, WorkerJoins)
    server.accept_join(joins)
    server.feed('["1","9","worker:lobby","drain",{}]')
    assert server.state(LOBBY) == "draining"
    done = '["1","10","worker:lobby","tool_result",{"status":"ok","result":"s","task_id":"T8"}]'
    assert server.feed(done)[1] == Result(task_id="T8", status="ok", result="s")
    assert server.feed('["1","11","worker:lobby","phx_leave",{}]') == [
        '[null,"11","worker:lobby","phx_reply",{"status":"ok","response":{}}]',
        '[null,null,"worker:lobby","phx_close",{}]',
        Left(LOBBY),
    ]
    assert server.tell(t.Cancel("T")) == []
    assert server.state(LOBBY) == "left"


def test_a_worker_that_drains_grants_no_more() -> None:
    """It asked for nothing new."""
    server = worker(features=ALL)
    server.feed(frame("1", "2", LOBBY, "drain", {}))
    (reply,) = told(server.feed(frame("1", "9", LOBBY, "credit", {"tasks": 1})))
    assert reply[4]["response"]["reason"] == "'credit' may not be said while draining"


def test_a_port_is_answered_by_the_server() -> None:
    """It has to be written down first."""
    server = worker()
    told_port = {"internal_port": 3000, "name": "react", "protocol": "http"}
    (asked,) = server.feed(frame("1", "6", LOBBY, "register_port", told_port))
    assert isinstance(asked, PortAsked)
    assert asked.port == t.Port(3000, "react", "http", None)
    assert told(server.reply(asked.ticket, {"id": 1})) == [
        ["1", "6", LOBBY, "phx_reply", {"status": "ok", "response": {"id": 1}}]
    ]
    assert told(server.refuse(asked.ticket, "no gard"))[0][4] == {
        "status": "error",
        "response": {"reason": "no gard"},
    }
    (asked,) = server.feed(frame("1", None, LOBBY, "register_port", told_port))
    assert isinstance(asked, PortAsked)
    assert server.reply(asked.ticket) == server.refuse(asked.ticket, "no gard") == []


def test_a_client_hears_of_its_agent() -> None:
    """And may send it a message."""
    server = client()
    (asked,) = server.feed(frame("1", "2", "agent:5", "send_message", {"content": "hi"}))
    assert isinstance(asked, MessageAsked)
    assert (asked.agent_id, asked.message) == ("5", t.Message("hi"))
    payload = {"agent_id": 5, "run_id": 7, "output": "done"}
    assert server.push("agent:5", "completed", payload) == [
        '["1",null,"agent:5","completed",{"agent_id":5,"run_id":7,"output":"done"}]'
    ]
    assert server.push("agent:6", "completed", payload) == []
    assert server.close("agent:5") == ['["1","1","agent:5","phx_close",{}]']
    assert server.close("agent:5") == server.push("agent:5", "completed", payload) == []


def test_joining_again_closes_the_older_channel() -> None:
    """The reply to the join still comes first; an older join cannot be answered any more."""
    server = client()
    found = server.feed(frame("4", "4", "agent:5", "phx_join", {}))
    assert found[0] == Left("agent:5")
    joins = found[1]
    assert isinstance(joins, AgentJoins)
    (later,) = server.feed(frame("5", "5", "agent:5", "phx_join", {}))
    assert isinstance(later, AgentJoins)
    assert server.accept_join(joins) == []
    assert [reply[:4] for reply in told(server.accept_join(later))] == [
        ["5", "5", "agent:5", "phx_reply"],
        ["1", "1", "agent:5", "phx_close"],
    ]


def test_one_connection_has_only_so_many_topics() -> None:
    """Those that were left make room."""
    server = ServerSide("agent")
    for number in range(1000):
        (joins,) = server.feed(frame("1", "1", f"agent:{number}", "phx_join", {}))
        assert isinstance(joins, AgentJoins)
        server.accept_join(joins)
    (refused,) = told(server.feed(frame("1", "1", "agent:x", "phx_join", {})))
    assert refused[4]["response"]["reason"] == "more than 1000 topics on one connection"
    server.feed(frame("1", "1", "agent:3", "phx_leave", {}))
    assert isinstance(server.feed(frame("1", "1", "agent:x", "phx_join", {}))[0], AgentJoins)


LLM = LlmTask(
    task_id="T1",
    model="claude-sonnet-5",
    system_prompt="You help.",
    date="2026-10-04",
    messages=(
        UserMessage("hi"),
        AssistantMessage("let me", (ToolRequest("call_1", "charge", {"amount": 5}),)),
        ToolMessage("call_1", "charge", "no", is_error=True),
    ),
    tools=(ToolSchema("wait", "…", {"type": "object"}),),
    agent_id=1,
    run_id=7,
    step=1,
)
LLM_SAID = {
    "task_id": "T1",
    "model": "claude-sonnet-5",
    "system_prompt": "You help.",
    "summary": None,
    "date": "2026-10-04",
    "messages": [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "let me",
            "tool_calls": [{"id": "call_1", "name": "charge", "arguments": {"amount": 5}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "name": "charge", "content": "no",
         "is_error": True},
    ],
    "tools": [{"name": "wait", "description": "…", "parameters": {"type": "object"}}],
    "context_policy": None,
    "max_tokens": None,
    "agent_id": 1,
    "run_id": 7,
    "step": 1,
}  # fmt: skip
DELTA = msgspec.structs.replace(
    LLM,
    messages=msgspec.UNSET,
    messages_delta=MessagesDelta(base_count=1, append=(UserMessage("go"),)),
    tools=(),
    purpose="compact",
)
DELTA_SAID = {
    **{name: value for name, value in LLM_SAID.items() if name != "messages"},
    "messages_delta": {"base_count": 1, "drop": 0, "append": [{"role": "user", "content": "go"}]},
    "tools": [],
    "purpose": "compact",
}
TOOL = ToolTask(
    task_id="T2", tool_name="charge", input={}, agent_id=1, run_id=7, idempotency_key="k"
)

# what the server tells a worker, and the frame that says so
PUSHED = [
    (LLM, "llm_task", LLM_SAID),
    (DELTA, "llm_task", DELTA_SAID),
    (TOOL, "tool_task", {"task_id": "T2", "tool_name": "charge", "input": {}, "agent_id": 1,
                         "run_id": 7, "idempotency_key": "k"}),
    (t.Cancel("T"), "cancel", {"task_id": "T"}),
    (t.Proceed("T"), "proceed", {"task_id": "T"}),
    (t.GardDestroyed(), "gard_destroyed", {}),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "event", "said"), PUSHED)
def test_what_a_worker_is_told(payload: Any, event: str, said: Any) -> None:
    """Messages, tools and input are never null; the rest is where Norns has it."""
    assert told(worker(features=["begin"]).tell(payload)) == [["1", None, LOBBY, event, said]]


def test_nobody_is_told_what_he_did_not_ask_for() -> None:
    """A worker of Norns never hears of it."""
    assert worker().tell(t.Cancel("T")) == worker().tell(t.Proceed("T")) == []
    assert worker(features=["cancel"]).tell(t.Proceed("T")) == []


def test_a_task_that_its_worker_would_not_take_is_not_sent() -> None:
    """A worker of Norns closes the connection, and drops all that it has."""
    big = msgspec.structs.replace(TOOL, input={"x": "é" * 300_000})
    assert worker().tell(big)
    with pytest.raises(TooLarge):
        worker().tell(msgspec.structs.replace(TOOL, input={"x": "é" * 600_000}))
    with pytest.raises(TooLarge):
        worker(frame_bytes_max=4096).tell(big)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["task_id", "results", "tools", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
EVENTS = ["phx_join", "phx_leave", "heartbeat", *t.HEARS["worker"], *t.HEARS["agent"], "x"]
FRAMES = st.tuples(
    st.sampled_from([None, "1"]),
    st.sampled_from([None, "2"]),
    st.sampled_from([LOBBY, "agent:5", "phoenix", "x"]),
    st.sampled_from(EVENTS),
    ANY | st.just({"worker_id": "w", "tools": [], "features": ALL}),
).map(lambda parts: frame(*parts))


@given(
    st.sampled_from(["worker", "agent"]),
    st.lists(st.one_of(FRAMES, FRAMES, FRAMES, st.text(max_size=30)), max_size=12),
)
def test_whatever_comes_is_answered_in_order(serves: Any, said: list[str]) -> None:
    """Only a bad frame raises; every frame with a ref has one reply; nothing precedes a join's."""
    server = ServerSide(serves)
    for text in said:
        try:
            things = server.feed(text)
        except BadFrame:
            continue
        for joins in [x for x in things if isinstance(x, WorkerJoins | AgentJoins)]:
            assert server.tell(t.Cancel("T")) == server.push(joins.ticket.topic, "e", {}) == []
            accepted = server.accept_join(joins)
            assert json.loads(accepted[0])[3] == "phx_reply"
            things += accepted
        for asked in [x for x in things if isinstance(x, PortAsked | MessageAsked)]:
            things += server.reply(asked.ticket)
        replies = [x for x in things if isinstance(x, str) and '"phx_reply"' in x]
        wanted = json.loads(text)[1] is not None or json.loads(text)[3] == "phx_join"
        assert len(replies) == wanted
