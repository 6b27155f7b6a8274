"""A request is read as a whole: one answer names every field that is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.api import limits, shapes
from perdure.api.decoding import decode_body, decode_id, decode_query
from perdure.api.errors import BLANK, Rejected
from perdure.api.pages import cursor, page, page_items, place_of
from perdure.core.limits import JSON_DEPTH_MAX

AGENT = {"name": "bot", "system_prompt": "You help."}
DEEPER = JSON_DEPTH_MAX + 1
TEXT = "is invalid: expected a string"

# what is sent, the shape, what the answer says is wrong
WRONG: list[tuple[Any, type[Any], Any]] = [
    ({}, shapes.AgentCreate, {"name": [BLANK], "system_prompt": [BLANK]}),
    (
        {"name": " ", "system_prompt": ""},
        shapes.AgentUpdate,
        {"name": [BLANK], "system_prompt": [BLANK]},
    ),
    ({**AGENT, "name": None}, shapes.AgentCreate, {"name": [BLANK]}),
    ({**AGENT, "name": 7}, shapes.AgentCreate, {"name": [TEXT]}),
    (
        {**AGENT, "name": "x" * 256},
        shapes.AgentCreate,
        {"name": ["should be at most 255 character(s)"]},
    ),
    (
        {**AGENT, "max_steps": 0},
        shapes.AgentCreate,
        {"max_steps": ["must be greater than or equal to 1"]},
    ),
    (
        {**AGENT, "max_steps": "ten"},
        shapes.AgentCreate,
        {"max_steps": ["is invalid: expected an integer"]},
    ),
    (
        {**AGENT, "status": "asleep"},
        shapes.AgentCreate,
        {"status": ["is invalid: expected inactive, idle, running or active"]},
    ),
    (
        {**AGENT, "model_config": []},
        shapes.AgentCreate,
        {"model_config": ["is invalid: expected an object or null"]},
    ),
    ({}, shapes.MessageCreate, "missing required field: content"),
    ({"content": None}, shapes.MessageCreate, "missing required field: content"),
    ({"content": ""}, shapes.MessageCreate, {"content": ["can't be blank"]}),
    ({"content": " "}, shapes.MessageCreate, {"content": ["can't be blank"]}),
    (
        {"name": "ci", "url": "https://x", "events": ["run.failed", "run.done"]},
        shapes.EndpointCreate,
        {
            "events": [
                (
                    "is invalid: expected run.started, run.waiting, run.reminded, run.completed, "
                    "run.failed or run.cancelled at [1]"
                )
            ]
        },
    ),
    (
        {"events": "run.done"},
        shapes.EndpointUpdate,
        {"events": ["is invalid: expected a list"]},
    ),
    (
        {"content": "hi", "context": {"messages": [{"role": "tool", "content": "x"}]}},
        shapes.MessageCreate,
        {"context": ["is invalid: expected user or assistant at messages[0].role"]},
    ),
    (
        {"content": 5},
        shapes.MessageCreate,
        {"content": ["is invalid: expected a string, an object or a list"]},
    ),
    (
        {"content": "hi", "gard_id": "x"},
        shapes.MessageCreate,
        {"gard_id": ["is invalid: expected an integer or null"]},
    ),
    (
        {"content": "hi", "mode": "shout"},
        shapes.MessageCreate,
        {"mode": ["is invalid: expected queue, steer, interrupt or reject"]},
    ),
    (
        {"content": "hi", "context": {"messages": [{"role": "user", "content": 5}]}},
        shapes.MessageCreate,
        {"context": ["is invalid: expected a string, an object or a list at messages[0].content"]},
    ),
    (
        {"content": "hi", "context": {"messages": [{"role": "user", "content": "x"}] * 201}},
        shapes.MessageCreate,
        {"context": ["should be at most 200 item(s) at messages"]},
    ),
    ({}, shapes.ReplyCreate, "answer is required"),
    ({"answer": 1}, shapes.ReplyCreate, "answer is required"),
    ({"name": "n"}, shapes.HookCreate, {"agent_id": [BLANK]}),
]

# what is sent, the shape, what is understood
RIGHT: list[tuple[Any, msgspec.Struct]] = [
    (AGENT, shapes.AgentCreate(**AGENT)),
    ({**AGENT, "max_steps": "7"}, shapes.AgentCreate(**AGENT, max_steps=7)),
    ({**AGENT, "purpose": ""}, shapes.AgentCreate(**AGENT, purpose=None)),
    ({**AGENT, "id": 3, "tenant_id": 4}, shapes.AgentCreate(**AGENT)),
    ({}, shapes.AgentUpdate()),
    ({"purpose": None}, shapes.AgentUpdate(purpose=None)),
    ({"title": "  "}, shapes.SessionUpdate(title=None)),
    ({"content": {"$enc": "v1"}}, shapes.MessageCreate(content={"$enc": "v1"})),
    ({"content": [{"type": "text"}]}, shapes.MessageCreate(content=[{"type": "text"}])),
    ({"content": "a", "gard_id": "3"}, shapes.MessageCreate(content="a", gard_id=3)),
    ({"content": "a", "conversation_key": ""}, shapes.MessageCreate(content="a")),
    (
        {"agent_id": "1", "name": "n", "enabled": "false"},
        shapes.HookCreate(agent_id=1, name="n", enabled=False),
    ),
]


@pytest.mark.parametrize(("sent", "shape", "error"), WRONG)
def test_what_is_wrong_is_named(sent: Any, shape: type[Any], error: Any) -> None:
    with pytest.raises(Rejected) as caught:
        decode_body(msgspec.json.encode(sent), shape)
    assert caught.value.status == 422
    assert msgspec.to_builtins(caught.value.body()) == {"error": error}


@pytest.mark.parametrize(("sent", "understood"), RIGHT)
def test_what_is_right_is_understood(sent: Any, understood: msgspec.Struct) -> None:
    assert decode_body(msgspec.json.encode(sent), type(understood)) == understood


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "Bad Request: the body is not JSON"),
        (b"\xff", 400, "Bad Request: the body is not JSON"),
        (b'{"content": NaN}', 400, "Bad Request: the body is not JSON"),
        (b"[]", 400, "Bad Request: expected a JSON object"),
        (b"null", 400, "Bad Request: expected a JSON object"),
        (b"[" * 100_000, 400, "Bad Request: expected a JSON object nested at most 100 deep"),
        (b'{"content":' + b"[" * DEEPER + b"]" * DEEPER + b"}", 400, "100 deep"),
        (b" " * (limits.BODY_BYTES_MAX + 1), 413, "at most 1048576 are taken"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, status: int, said: str) -> None:
    with pytest.raises(Rejected, match=said) as caught:
        decode_body(body, shapes.MessageCreate)
    assert caught.value.status == status


def test_the_deepest_body_is_read() -> None:
    levels = DEEPER - 1
    body = b'{"content":' + b"[" * levels + b"]" * levels + b"}"
    assert decode_body(body, shapes.MessageCreate).content is not None


def test_a_content_is_never_changed() -> None:
    content = {"n": 2**70, "x": 0.1, "t": " blank kept ", "e": "", "u": "é"}
    body = msgspec.json.encode({"content": content})
    assert decode_body(body, shapes.MessageCreate).content == content


def test_a_query_is_read_like_a_body() -> None:
    pairs = [("limit", "10"), ("status", "failed"), ("agent_id", "3"), ("x", "y")]
    query = decode_query(pairs, shapes.RunQuery)
    assert query == shapes.RunQuery(limit=10, status="failed", agent_id=3)
    assert decode_query([("force", "true")], shapes.ForceQuery).force
    assert decode_query([("timeout", "2.5")], shapes.WaitQuery).timeout == 2.5
    with pytest.raises(Rejected) as caught:
        decode_query([("limit", "many"), ("status", "odd")], shapes.RunQuery)
    assert set(caught.value.body().error) == {"limit", "status"}


@pytest.mark.parametrize(
    ("text", "status"),
    [("x", 400), ("-1", 400), ("1.0", 400), ("٣", 400), ("9" * 19, 404), ("0", 404)],
)
def test_an_id_in_a_path_is_a_number(text: str, status: int) -> None:
    with pytest.raises(Rejected) as caught:
        decode_id(text)
    assert caught.value.status == status
    assert decode_id("17") == 17


def test_a_cursor_comes_back_as_the_place_it_was() -> None:
    assert place_of(cursor(12, "é/r1"), tuple[int, str]) == (12, "é/r1")


@pytest.mark.parametrize(
    "text", ["", "?", "é", "abc", cursor("x"), cursor(1, 2), cursor(1, "a", 2)]
)
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        place_of(text, tuple[int, str])
    assert caught.value.status == 422


def test_a_page_that_was_not_asked_for_is_a_bare_list() -> None:
    assert msgspec.json.encode(page([1], "c", asked=False)) == b'{"data":[1]}'
    assert msgspec.json.encode(page([1], "c", asked=True)) == b'{"data":[1],"next":"c"}'
    assert msgspec.json.encode(page([1], None, asked=True)) == b'{"data":[1],"next":null}'
    assert page_items(msgspec.UNSET, None) is None
    assert page_items(10_000, 50) == limits.PAGE_ITEMS_MAX
