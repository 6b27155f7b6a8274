"""What clients get wrong, by accident or on purpose: each answer says what was expected."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.api.operations import OPERATIONS, PREFIX
from perdure.server import incoming
from tests.server.house import BOT, House, furnished, house

MIB = 1024 * 1024

BODIES: list[tuple[str, bytes, int, str]] = [
    ("no JSON", b"{", 400, "the body is not JSON"),
    ("no object", b"[]", 400, "expected a JSON object"),
    ("null", b"null", 400, "expected a JSON object"),
    ("a number", b"5", 400, "expected a JSON object"),
    ("two values", b"{} {}", 400, "the body is not JSON"),
    ("not a number", b'{"max_steps": NaN}', 400, "the body is not JSON"),
    ("infinity", b'{"max_steps": 1e999}', 400, "the body is not JSON"),
    ("not UTF-8", b'{"name": "\xff"}', 400, "the body is not JSON"),
    ("UTF-16", '{"name": "x"}'.encode("utf-16"), 400, "the body is not JSON"),
    ("half a character", rb'{"name": "\ud800"}', 400, "the body is not JSON"),
    ("a control character", b'{"name": "\x00"}', 400, "the body is not JSON"),
    ("a name twice", b'{"name": "a", "name": "b"}', 400, "has 'name' twice"),
    ("twice inside", b'{"model_config": {"a": [{"b": 1, "b": 2}]}}', 400, "has 'b' twice"),
    ("deep", b'{"a":' * 200 + b"1" + b"}" * 200, 400, "nested at most 100 deep"),
    ("very deep", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400, "nested at most"),
    ("too large", b'{"name": "' + b"x" * MIB + b'"}', 413, f"at most {MIB}"),
    ("a large integer", b'{"max_steps": ' + b"9" * 5_000 + b"}", 400, "the body is not JSON"),
]


@pytest.mark.parametrize(("content", "status", "said"), [row[1:] for row in BODIES],
                         ids=[row[0] for row in BODIES])  # fmt: skip
async def test_a_body_that_cannot_be_read(content: bytes, status: int, said: str) -> None:
    """4xx with what was expected, and the same from every operation that takes a body."""
    async with house() as h:
        things = await furnished(h)
        for operation in OPERATIONS:
            if operation.body is None:
                continue
            path, _ = things.request(operation)
            answer = await h.ask(operation.methods[0], path, content=content)
            if operation.id == "receive_hook" and answer.status_code == 202:
                assert content.startswith(b'{"')
                continue
            assert answer.status_code == status, (operation.id, answer.text)
            if operation.id != "receive_hook":
                assert said in answer.json()["error"], operation.id


MEDIA = [
    ("text/plain", 415),
    ("application/x-www-form-urlencoded", 415),
    ("multipart/form-data; boundary=x", 415),
    ("", 415),
    ("json", 415),
    ("application/json; charset=utf-8", 201),
    ("Application/JSON", 201),
    ("application/vnd.api+json", 201),
    (None, 201),
]


@pytest.mark.parametrize(("media", "status"), MEDIA)
async def test_the_type_of_a_body(media: str | None, status: int) -> None:
    """JSON under any of its names; without a name it is taken for JSON."""
    async with house() as h:
        headers = {} if media is None else {"Content-Type": media}
        answer = await h.ask("POST", "/agents", BOT, headers=headers)
        assert answer.status_code == status, answer.text
        if status == 415:
            assert "expected application/json" in answer.json()["error"]


async def test_an_empty_body_has_no_type() -> None:
    """As a command line sends it that always says what it could have sent."""
    async with house() as h:
        things = await furnished(h)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        path = f"/runs/{things['asking']}/cancel"
        assert (await h.ask("POST", path, content=b"", headers=headers)).status_code == 202


ACCEPTS: list[tuple[list[str], int]] = [
    ([], 200),
    ([""], 200),
    (["*/*"], 200),
    (["application/*"], 200),
    (["Application/JSON;q=0.5"], 200),
    (["text/html", "application/json"], 200),
    (["application/json", "text/html"], 200),
    (["text/html, */*;q=0.1"], 200),
    (["text/html"], 406),
    (["text/html", "image/png"], 406),
    (["application/json;q=0"], 406),
    (["application/json;q=0, */*"], 406),
    (["*/*;q=0.0"], 406),
    (["nonsense"], 406),
    ([";;;,,,"], 406),
]


@pytest.mark.parametrize(("accepted", "status"), ACCEPTS)
async def test_what_is_accepted(accepted: list[str], status: int) -> None:
    """Several headers are one; the most specific entry decides."""
    async with house() as h:
        headers = [("Accept", value) for value in accepted]
        del h.http.headers["Accept"]
        answer = await h.ask("GET", "/agents", headers=headers)
        assert answer.status_code == status
        if status == 406:
            assert answer.headers["content-type"] == "application/json"


async def test_methods() -> None:
    """HEAD is GET without its body; OPTIONS and 405 say what a path is good for."""
    async with house() as h:
        things = await furnished(h)
        for operation in OPERATIONS:
            path, body = things.request(operation)
            options = await h.ask("OPTIONS", path, scope=None)
            assert (options.status_code, options.content) == (204, b"")
            allowed = options.headers["Allow"].split(", ")
            assert {"OPTIONS", *operation.methods} <= set(allowed)
            for method in {"TRACE", "PUT", "BREW"} - set(allowed):
                answer = await h.ask(method, path, body)
                assert (answer.status_code, answer.json()) == (405, {"error": "method not allowed"})
                assert set(answer.headers["Allow"].split(", ")) == set(allowed)
            if operation.methods == ("GET",):
                got, head = await h.ask("GET", path), await h.ask("HEAD", path)
                assert (head.status_code, head.content) == (200, b"")
                assert head.headers["content-type"] == got.headers["content-type"]
        assert (await h.ask("HEAD", "/agents", scope=None)).status_code == 401


PATHS = ["/nothing", "/agents/", "/agents//1", "/runs/1/nothing", "/%2e%2e/health", "/agents/1%00",
         "/agents/%ff", "/runs/%F0%9F%98%80"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_that_leads_nowhere(path: str) -> None:
    """404 or 400 as JSON, and never a redirect: it would name whatever host the request named."""
    async with house() as h:
        answer = await h.ask("GET", path)
        assert answer.status_code in (400, 404)
        assert answer.headers["content-type"] == "application/json"


TOKENS = ["", "Bearer", "Bearer ", "Basic abc", "bearer  x", "Bearer \x7f",
          "Bearer " + "x" * 10_000,
          "Bearer prd_x", "Bearer é", "Bearer a b"]  # fmt: skip


@pytest.mark.parametrize("value", TOKENS)
async def test_a_token_that_is_none(value: str) -> None:
    """401, whatever it is."""
    async with house() as h:
        raw = [(b"authorization", value.encode())]
        answer = await h.ask("GET", "/agents", scope=None, headers=raw)
        assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})


async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """408 after a while; what came is forgotten."""
    monkeypatch.setattr(incoming, "BODY_SECONDS_MAX", 0.01)
    async with house() as h:

        async def slow() -> AsyncIterator[bytes]:
            yield b'{"name": '
            await asyncio.sleep(5)
            raise AssertionError("nobody waits for this")

        answer = await streamed(h, slow())
        assert answer.status_code == 408
        assert "within 0.01 s" in answer.json()["error"]


async def test_an_endless_body_is_not_read_to_its_end() -> None:
    """413 as soon as it is too much, without a length as well as with one."""
    async with house() as h:
        pieces = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal pieces
            while pieces < 1_000:
                pieces += 1
                yield b"x" * 65_536
            raise AssertionError("all of it was read")

        assert (await streamed(h, endless())).status_code == 413
        assert pieces <= 17
        answer = await h.ask(
            "POST", "/agents", content=b"{}", headers={"Content-Length": str(MIB + 1)}
        )
        assert answer.status_code == 413


async def streamed(h: House, content: AsyncIterator[bytes]) -> Any:
    """Send a body piece by piece."""
    headers = {"Authorization": f"Bearer {h.keys['acme', 'admin']}"}
    return await asyncio.wait_for(
        h.http.post(f"http://house{PREFIX}/agents", content=content, headers=headers), 2
    )


async def test_contents_come_back_as_they_are() -> None:
    """Any JSON that can be sent: nobody here reads it."""
    contents: list[Any] = [
        "\x00\x1b[31m\u202e\U0001f600",
        {"": {"$enc": "v1"}, "n": 2**80, "f": 1.5e300, "deep": [[[[]]]]},
        [{"type": "text", "text": ""}, None, True],
    ]
    async with house() as h:
        agent = (await h.make("/agents", BOT))["id"]
        for content in contents:
            run = await h.run(agent, content)
            assert (await h.get(f"/runs/{run}"))["input"]["user_message"] == content
        big = {"content": "x" * 300_000}
        answer = await h.ask("POST", f"/agents/{agent}/messages", big)
        assert answer.status_code == 413
        assert "262144" in answer.json()["error"]


async def test_keys_of_conversations_may_be_anything() -> None:
    """Slashes, spaces, percent signs, and what looks like one of ours."""
    async with house() as h:
        agent = (await h.make("/agents", BOT))["id"]
        for key in ("a/b", "a b", "100%", "a~1", "~~", "é\U0001f600", "slack:U01", "..", "x" * 400):
            body = {"content": "hi", "conversation_key": key}
            await h.make(f"/agents/{agent}/messages", body)
            path = f"/agents/{agent}/conversations/{quoted(key)}"
            assert (await h.get(path))["key"] == key
        listed = await h.get(f"/agents/{agent}/conversations")
        assert len(listed) == 9


def quoted(key: str) -> str:
    """Return a key as it stands in a path."""
    return "".join(f"%{byte:02x}" for byte in key.encode())


NATIVE = {
    "create_key", "create_endpoint", "update_endpoint", "resolve_call", "cancel_run",
    "decide_approval", "raise_budget", "update_policy", "create_standing_approval",
}  # fmt: skip
"""What only clients of ours ask for: there a field that nothing here knows is a mistake."""


async def test_a_field_that_nothing_here_knows_is_named() -> None:
    """422 where only our clients ask; else what is known is done, and a header says what is not."""
    async with house() as h:
        things = await furnished(h)
        strict = set()
        for operation in OPERATIONS:
            if operation.body in (None, object):
                continue
            path, body = things.request(operation)
            odd = {**(body or {}), "promt": "x", '"\r\né': 1}
            answer = await h.ask(operation.methods[0], path, odd)
            if answer.status_code == 422:
                strict.add(operation.id)
                assert answer.json()["error"]["promt"][0].startswith("is not known; expected ")
            else:
                assert answer.status_code in (operation.status, 409), (operation.id, answer.text)
            if answer.status_code == operation.status:
                said = "left out, because nothing here knows it: promt, ????"
                assert answer.headers["Warning"] == f'299 - "{said}"'
        assert strict == NATIVE
        asked = await h.ask("GET", "/runs", agnet_id=3)
        assert "agnet_id" in asked.headers["Warning"]
        assert "Warning" not in (await h.ask("GET", "/runs", agent_id=3)).headers


async def test_what_is_not_known_is_named_within_bounds() -> None:
    """A header holds a few names, and of each the beginning."""
    async with house() as h:
        odd = {f"{'x' * 500}{number}": 1 for number in range(100)}
        answer = await h.ask("POST", "/agents", {**BOT, **odd})
        assert answer.status_code == 201
        assert len(answer.headers["Warning"]) < 1_500
        answer = await h.ask("POST", "/api_keys", odd)
        assert (answer.status_code, len(answer.json()["error"])) == (422, 1)


async def test_headers_come_in_any_number() -> None:
    """As many as a server lets through mean nothing to us."""
    async with house() as h:
        headers = [(f"X-{number}", "y" * 100) for number in range(500)]
        assert (await h.ask("GET", "/agents", headers=headers)).status_code == 200
        twice = [("Content-Type", "application/json")] * 2
        answer = await h.ask("POST", "/agents", BOT, headers=twice)
        assert answer.status_code == 201
        assert json.loads(answer.content)["data"]["name"] == "bot"
