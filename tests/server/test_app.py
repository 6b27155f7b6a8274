"""Every operation over HTTP: who may, what it answers, and what it says when it cannot."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.api.operations import BY_ID, EVENT_STREAM, OPERATIONS, Operation
from tests.server.house import BODIES, BOT, SCOPES, echo, furnished, house

KEYED = [operation for operation in OPERATIONS if operation.scope is not None]
MISSING = 10**9

CONFLICTING = {
    "retry_run", "reply_to_run", "resolve_call", "decide_approval", "raise_budget", "cancel_run",
    "release_session", "create_standing_approval",
}  # fmt: skip
"""These are refused where `furnished` has left the run; see the tests of their own."""


def by_name(operation: Operation) -> str:
    """Name a test."""
    return operation.id


async def test_every_operation_answers_what_it_says() -> None:
    """With its status, in its shape, and with no media type but its own."""
    asked = set()
    for operation in OPERATIONS:
        async with house() as h:
            things = await furnished(h)
            path, body = things.request(operation)
            for method in operation.methods:
                query = {"force": "true"} if operation.methods == ("DELETE",) else {}
                answer = await h.ask(method, path, body, **query)
                if operation.id in CONFLICTING - {"reply_to_run"}:
                    assert answer.status_code in (202, 409), operation.id
                    continue
                assert answer.status_code == operation.status, f"{operation.id}: {answer.text}"
                if operation.answer in (None, str):
                    continue
                assert answer.headers["content-type"] == "application/json"
                msgspec.json.decode(answer.content, type=operation.answer)
            asked.add(operation.id)
    assert asked >= set(BY_ID) - CONFLICTING


MATRIX = {
    "read": {"admin": True, "run": True, "read": True},
    "run": {"admin": True, "run": True, "read": False},
    "admin": {"admin": True, "run": False, "read": False},
}


async def test_what_each_scope_may() -> None:
    """A worker's key, a wrong one and none are 401; a key that is not enough is 403."""
    async with house() as h:
        things = await furnished(h)
        h.keys["acme", "wrong"] = h.keys["acme", "admin"][:-1] + "~"
        for operation in KEYED:
            path, body = things.request(operation)
            assert operation.scope is not None
            for scope in (*SCOPES, "wrong", None):
                may = MATRIX[operation.scope].get(scope or "")
                if may:
                    continue
                answer = await h.ask(operation.methods[0], path, body, scope=scope)
                if may is None:
                    assert answer.status_code == 401, (operation.id, scope)
                    assert answer.json() == {"error": "unauthorized"}
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                else:
                    assert answer.status_code == 403, (operation.id, scope)
                    assert operation.scope in answer.json()["error"]
        for operation in KEYED:
            path, body = things.request(operation)
            for scope, may in MATRIX[operation.scope or "read"].items():
                if may and operation.methods == ("GET",):
                    assert (await h.ask("GET", path, scope=scope)).status_code == 200


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.path_parameters], ids=by_name
)
async def test_what_is_not_there(operation: Operation) -> None:
    """404 for an id that nothing has, 400 for one that is none."""
    async with house() as h:
        path = operation.path.removeprefix("/api/v1")
        body = BODIES.get(operation.id, {}) if operation.body is not None else None
        for method in operation.methods:
            for missing in (MISSING, 2**63 - 1, 2**63):
                answer = await h.ask(method, path.format(id=missing, key="k", node=missing), body)
                assert (answer.status_code, answer.json()) == (404, {"error": "not found"})
            if operation.integers:
                for bad in ("x", "-1", "1.5", "%EF%BC%99", "%00"):
                    answer = await h.ask(method, path.format(id=bad, key="k"), body)
                    assert answer.status_code in (400, 404), (bad, answer.text)


WRONG = [
    ("create_agent", {}, {"name": "can't be blank", "system_prompt": "can't be blank"}),
    ("create_agent", {**BOT, "name": "  "}, {"name": "can't be blank"}),
    ("create_agent", {**BOT, "max_steps": 0}, {"max_steps": "greater than or equal to 1"}),
    ("create_agent", {**BOT, "max_steps": "many"}, {"max_steps": "expected an integer"}),
    ("create_agent", {**BOT, "status": "gone"}, {"status": "expected inactive, idle, running or"}),
    ("create_agent", {**BOT, "model_config": []}, {"model_config": "expected an object"}),
    ("create_agent", BOT, {"name": "has already been taken"}),
    ("update_agent", {"name": "x" * 256}, {"name": "at most 255 character(s)"}),
    ("send_message", {}, "missing required field: content"),
    ("send_message", {"content": None}, "missing required field: content"),
    ("send_message", {"content": 5}, {"content": "expected a string, an object or a list"}),
    ("send_message", {"content": "x", "mode": "shout"}, {"mode": "queue, steer, interrupt or"}),
    ("send_message", {"content": "x", "gard_id": "g"}, {"gard_id": "expected an integer"}),
    ("send_message", {"content": "x", "context": {"messages": 1}}, {"context": "expected a list"}),
    ("reply_to_run", {}, "answer is required"),
    ("resolve_call", {"call": "c", "resolution": "maybe"}, {"resolution": "happened, did_not"}),
    ("create_trigger", {"agent_id": MISSING, **dict.fromkeys(("name", "cron", "message"), "x")},
     {"agent_id": "does not exist"}),
    ("create_trigger", {"cron": "61 * * * *"}, {"cron": "61"}),
    ("create_trigger", {"time_zone": "Mars/Olympus"}, {"time_zone": "Mars/Olympus"}),
    ("update_trigger", {"cron": "nonsense"}, {"cron": "expected five"}),
    ("update_gard", {"metadata": "x"}, {"metadata": "expected an object"}),
    ("create_hook", {"signature_type": "github"}, {"signing_secret": ""}),
    ("create_hook", {"agent_id": MISSING}, {"agent_id": "does not exist"}),
    ("create_hook", {"signature_type": "md5"}, {"signature_type": "expected none, github"}),
    ("create_key", {"scope": "root"}, {"scope": "expected admin, run, read or worker"}),
    ("create_key", {"scope": "read", "capabilities": ["llm"]}, {"scope": "only a key"}),
    ("create_key", {"gard_id": MISSING}, {"gard_id": "does not exist"}),
    ("create_key", {"expires_in_s": 0}, {"expires_in_s": "greater than or equal to 1"}),
]  # fmt: skip


@pytest.mark.parametrize(("id", "change", "wrong"), WRONG)
async def test_what_is_wrong_is_named(id: str, change: Any, wrong: Any) -> None:
    """422 with every field and what was expected of it."""
    async with house() as h:
        operation = BY_ID[id]
        things = await furnished(h)
        path, good = things.request(operation)
        whole = id in ("create_agent", "send_message", "reply_to_run")
        body = change if whole else {**(good or {}), **change}
        answer = await h.ask(operation.methods[0], path, body)
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        if isinstance(wrong, str):
            assert error == wrong
            return
        for field, said in wrong.items():
            assert said in error[field][0]


QUERIES = [
    ("/runs", {"limit": "0"}, "limit"),
    ("/runs", {"limit": "many"}, "limit"),
    ("/runs", {"status": "gone"}, "status"),
    ("/runs", {"agent_id": "-1"}, "agent_id"),
    ("/runs", {"after": "???"}, "after"),
    ("/runs", {"after": "WzFd"}, "after"),
    ("/agents", {"after": "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5XQ"}, "after"),
    ("/sessions", {"archived": "perhaps"}, "archived"),
    ("/triggers", {"agent_id": "x"}, "agent_id"),
    ("/usage", {"since": "yesterday"}, "since"),
    ("/usage", {"since": "2026-01-31T12:00:00"}, "since"),
    ("/usage", {"until": "0001-01-01T00:00:00+10:00"}, "until"),
    ("/runs/{run}/wait", {"timeout": "61"}, "timeout"),
    ("/runs/{run}/wait", {"timeout": "nan"}, "timeout"),
    ("/runs/{run}/events", {"after": "-1"}, "after"),
    ("/runs/{run}/events", {"limit": "0"}, "limit"),
]


@pytest.mark.parametrize(("path", "query", "field"), QUERIES)
async def test_a_wrong_parameter_is_named(path: str, query: dict[str, str], field: str) -> None:
    """422, as for a field of a body."""
    async with house() as h:
        things = await furnished(h)
        answer = await h.ask("GET", path.format(run=things["runs"]), **query)
        assert answer.status_code == 422, answer.text
        assert list(answer.json()["error"]) == [field]


CONFLICTS = [
    ("POST", "/runs/{silent}/retry", None, "run is still in progress"),
    ("POST", "/runs/{runs}/reply", {"answer": "x"}, "run is not waiting for input"),
    ("POST", "/runs/{runs}/cancel", {}, "run has already ended"),
    ("POST", "/agents/{agents}/messages",
     {"content": "x", "conversation_key": "silent", "mode": "reject"}, "agent is busy"),
    ("DELETE", "/agents/{agents}", None,
     "agent has an active run — pass force=true to archive anyway"),
    ("DELETE", "/sessions/{silent_session}", None,
     "session has an active run — pass force=true to archive anyway"),
    ("DELETE", "/gards/{gards}", None,
     "gard has an active run — pass force=true to destroy anyway"),
]  # fmt: skip


async def test_what_cannot_be_now() -> None:
    """409 with the sentence that clients of Norns know."""
    async with house() as h:
        things = await furnished(h)
        agent = things["agents"]
        things["silent"] = await h.run(agent, "be silent", conversation_key="silent")
        run = await h.get(f"/runs/{things['silent']}")
        things["silent_session"] = run["conversation_id"]
        await h.run(agent, "be silent", gard_id=things["gards"])
        for method, path, body, said in CONFLICTS:
            answer = await h.ask(method, path.format(**things), body)
            assert (answer.status_code, answer.json()) == (409, {"error": said})
        resolve = await h.ask(
            "POST", f"/runs/{things['asking']}/resolve", {"call": "x", "resolution": "happened"}
        )
        assert resolve.status_code == 409


async def test_a_run_is_followed_from_message_to_answer() -> None:
    """Asked, answered, retried, cancelled; and what lists and counts say of it."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        asking = await h.run(agent, "ask", conversation_key="default")
        run = await h.get(f"/runs/{asking}")
        assert (run["status"], run["waiting_for"]["question"]) == ("waiting", "Which one?")
        assert (await h.get(f"/agents/{agent}/status"))["run_id"] == asking
        assert await h.make(f"/runs/{asking}/reply", {"answer": "this"}) == {
            "status": "accepted", "run_id": asking, "durability": "memory",
        }  # fmt: skip
        await h.settle()
        run = await h.get(f"/runs/{asking}")
        assert (run["status"], run["output"]) == ("completed", "then you said this")

        failed = await h.run(agent, "fail", conversation_key="default")
        assert (await h.get(f"/runs/{failed}"))["failure_metadata"]["error_class"] == "validation"
        again = await h.make(f"/runs/{failed}/retry", None)
        assert again["run_id"] != failed

        silent = await h.run(agent, "be silent")
        await h.make(f"/runs/{silent}/cancel", {})
        await h.settle()
        run = await h.get(f"/runs/{silent}")
        assert (run["status"], run["row_status"]) == ("failed", "cancelled")
        await h.settle()
        listed = await h.get("/runs")
        assert [one["id"] for one in listed] == [silent, again["run_id"], failed, asking]
        assert await h.get(f"/agents/{agent}/runs") == listed
        assert [one["id"] for one in await h.get("/runs?status=cancelled")] == [silent]
        usage = await h.get("/usage")
        assert (usage["runs"], usage["input_tokens"]) == (4, 10)


async def test_a_completed_run_is_asked_for_again_in_a_conversation_of_its_own() -> None:
    """The one it was in, whatever its key is like, gets no second message."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        first = await h.run(agent, "hi", conversation_key="a~b")
        again = (await h.make(f"/runs/{first}/retry", None))["run_id"]
        await h.settle()
        runs = {run["id"]: run for run in await h.get("/runs")}
        assert runs[again]["output"] == runs[first]["output"] == "you said hi"
        assert runs[again]["conversation_id"] != runs[first]["conversation_id"]


async def test_the_conversation_default_is_the_one_that_began_anew() -> None:
    """Its status too, once the first one was deleted."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        await h.run(agent, "ask", conversation_key="default")
        await h.ask("DELETE", f"/agents/{agent}/conversations/default")
        await h.settle()
        assert (await h.get(f"/agents/{agent}/status"))["status"] == "stopped"
        silent = await h.run(agent, "be silent", conversation_key="default")
        standing = await h.get(f"/agents/{agent}/status")
        assert (standing["run_id"], standing["conversation_key"]) == (silent, "default")


async def test_a_conversation_that_was_deleted_is_not_there_any_more() -> None:
    """Its key begins anew, and is shown as it was chosen, whatever it looks like."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        for key in ("k", "k~1", "~", "a~~2"):
            path = f"/agents/{agent}/conversations/{key}"
            ids = []
            for _ in range(3):
                await h.run(agent, "hi", conversation_key=key)
                found = await h.get(path)
                assert (found["key"], found["message_count"]) == (key, 2)
                ids.append(found["id"])
                assert await h.get(f"/agents/{agent}/conversations") == [found]
                assert (await h.ask("DELETE", path)).json() == {"status": "deleted"}
                assert (await h.ask("GET", path)).status_code == 404
                assert (await h.ask("DELETE", path)).status_code == 404
            assert len(set(ids)) == 3
        assert await h.get("/sessions") == []


async def test_archiving_ends_every_run_however_many() -> None:
    """More than are read at a time."""
    async with house() as h:
        agent = (await h.make("/agents", BOT))["id"]
        for _ in range(103):
            await h.make(f"/agents/{agent}/messages", {"content": "x"})
        assert (await h.ask("DELETE", f"/agents/{agent}", force="true")).status_code == 204
        await h.settle()
        assert {run["row_status"] for run in await h.get(f"/agents/{agent}/runs")} == {"cancelled"}


async def test_waiting_for_a_run() -> None:
    """It answers at once for a run that has ended or asks, and else when the time is over."""
    async with house() as h:
        things = await furnished(h)
        for run, status in ((things["runs"], "completed"), (things["asking"], "waiting")):
            assert (await h.get(f"/runs/{run}/wait", timeout="60"))["status"] == status
        silent = await h.run(things["agents"], "be silent")
        assert (await h.get(f"/runs/{silent}/wait", timeout="0"))["status"] == "running"
        assert (await h.get(f"/runs/{silent}/wait", timeout="0.01"))["status"] == "running"


PUBLIC = [operation for operation in OPERATIONS if operation.scope is None]


def test_what_needs_no_key_is_a_short_list() -> None:
    """Whoever adds to it has thought about it."""
    assert sorted(operation.id for operation in PUBLIC) == [
        "docs", "health", "openapi", "ready", "receive_hook", "record_first_run",
    ]  # fmt: skip
    assert [one.id for one in OPERATIONS if EVENT_STREAM in one.media] == ["list_events"]


async def test_a_run_that_changes_while_runs_are_listed_is_listed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one that has ended by then is left alone by who ends them all."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        first, second = [await h.run(agent, "be silent", conversation_key="k") for _ in range(2)]
        desk = h.service.desk("acme")
        rows = {number: await desk.row(number) for number in (first, second)}
        listed = desk.runs.rows

        async def rows_then_news(**query: Any) -> Any:
            found = await listed(**query)
            if query["status"] == "queued":
                await desk.end([rows[first]], "enough")
                await h.settle()
            return found

        monkeypatch.setattr(desk.runs, "rows", rows_then_news)
        assert [row.id for row in await desk.active(str(agent))] == [rows[second].id]
        await desk.end([rows[first], rows[second]], "enough")
        await h.settle()
        assert (await h.get(f"/runs/{second}"))["row_status"] == "cancelled"
