"""What clients of Norns do with agents, sessions and the catalogue of tools over REST."""

from __future__ import annotations

from typing import Any

from tests.conformance.norns.house import House, until
from tests.conformance.norns.phone import (
    BOT,
    CHARGE,
    REPLY,
    Phone,
    define,
    over,
    phone,
    send,
)


async def status_of(house: House, method: str, path: str, body: Any = None, **named: Any) -> int:
    """Return the status of an answer."""
    return (await house.ask(method, path, body, **named))[0]


async def answered(house: House, worker: Phone, content: str, **named: Any) -> dict[str, Any]:
    """Return a run that a worker has answered."""
    run = await send(house, content, **named)
    await worker.serve(REPLY)
    return await over(house, run)


async def test_an_agent_has_the_defaults_of_norns(house: House) -> None:
    """Whatever junk is in its config; a config replaces the one before as a whole."""
    junk = {"context_window": "wide", "context_strategy": 7, "context_policy": [], "tools": "all"}
    made = await house.post("/agents", {**BOT, "status": "active", "model_config": junk})
    assert (made["model"], made["max_steps"]) == ("claude-sonnet-5", 50)
    assert (made["context_strategy"], made["context_window"]) == ("sliding_window", 20)
    assert made["context_policy"] is None
    path = f"/agents/{made['id']}"
    for config, window in (({"context_window": "7"}, 7), ({"context_strategy": "none"}, 20)):
        assert await status_of(house, "PATCH", path, {"model_config": config}) == 200
        assert (await house.get(path))["context_window"] == window
    status, answer = await house.ask("POST", "/agents", {"name": "x"})
    assert (status, set(answer["error"])) == (422, {"system_prompt"})


async def test_an_archived_agent_leaves_its_name(house: House) -> None:
    """Not while it works, unless it must; it can be read and does nothing any more."""
    agent = await define(house)
    run = await send(house)
    assert await status_of(house, "DELETE", f"/agents/{agent}") == 409
    assert await status_of(house, "DELETE", f"/agents/{agent}?force=true") == 204
    assert (await over(house, run))["status"] == "failed"
    assert await status_of(house, "DELETE", f"/agents/{agent}") == 404
    assert await house.get("/agents") == []
    assert await house.get("/sessions") == []
    assert (await house.get(f"/agents/{agent}"))["archived_at"]
    message = {"content": "hi"}
    assert await status_of(house, "POST", f"/agents/{agent}/messages", message) == 404
    assert await define(house) != agent


async def test_sessions_of_all_agents(house: House) -> None:
    """The latest first, each with how it stands, its latest run and what it began with."""
    agent = await define(house)
    async with phone(house) as worker:
        await worker.join()
        await answered(house, worker, "one", conversation_key="a")
        await answered(house, worker, "two", conversation_key="b")
        last = await answered(house, worker, "three", conversation_key="a")
        newest, oldest = await house.get("/sessions")
        assert (newest["key"], oldest["key"]) == ("a", "b")
        assert (newest["agent_id"], newest["agent_name"]) == (agent, "bot")
        assert (newest["first_message"], newest["message_count"]) == ("one", 4)
        assert newest["run"]["id"] == last["id"]
        whole = await house.get(f"/sessions/{newest['id']}")
        assert [run["status"] for run in whole["runs"]] == ["completed", "completed"]
        said = [(message["content"], message["run_id"]) for message in whole["messages"]]
        first = whole["runs"][0]["id"]
        assert said == [
            ("one", first),
            ("done", first),
            ("three", last["id"]),
            ("done", last["id"]),
        ]
        limited = await house.get("/sessions?limit=1")
        assert [session["key"] for session in limited] == ["a"]


async def test_a_session_that_works_says_so(house: House) -> None:
    """Whatever its key; and one that does not says that."""
    await define(house)
    async with phone(house) as worker:
        await worker.join()
        run = await send(house, conversation_key="mine")
        task = await worker.task()
        (session,) = await house.get("/sessions")
        assert session["status"] not in ("stopped", "idle", "unknown")
        await worker.result(task, **REPLY)
        await over(house, run)

    async def rests() -> bool:
        return (await house.get("/sessions"))[0]["status"] in ("stopped", "idle")

    await until(rests)


async def test_a_session_is_named_put_away_and_taken_back(house: House) -> None:
    """Not put away while it works, unless it must."""
    await define(house)
    async with phone(house) as worker:
        await worker.join()
        session = (await answered(house, worker, "hi"))["conversation_id"]
    path = f"/sessions/{session}"
    for title, kept in (("  Money  ", "Money"), ("  ", None)):
        assert await status_of(house, "PATCH", path, {"title": title}) == 200
        assert (await house.get(path))["title"] == kept
    assert await status_of(house, "DELETE", path) == 204
    assert await house.get("/sessions") == []
    (put_away,) = await house.get("/sessions?archived=true")
    assert put_away["archived_at"]
    assert (await house.post(f"{path}/restore"))["archived_at"] is None
    assert len(await house.get("/sessions")) == 1
    run = await send(house, conversation_key="busy")
    busy = f"/sessions/{(await house.get(f'/runs/{run}'))['conversation_id']}"
    assert await status_of(house, "DELETE", busy) == 409
    assert await status_of(house, "DELETE", f"{busy}?force=true") == 204
    assert (await over(house, run))["status"] == "failed"


async def test_what_is_foreign_is_not_there(house: House) -> None:
    """In lists, by id, and under other ids than numbers."""
    await define(house)
    run = await house.get(f"/runs/{await send(house)}")
    gard = (await house.post("/gards"))["id"]
    for path in (
        f"/runs/{run['id']}", f"/runs/{run['id']}/events", f"/runs/{run['id']}/summary",
        f"/sessions/{run['conversation_id']}", f"/agents/{run['agent_id']}", f"/gards/{gard}",
    ):  # fmt: skip
        assert await status_of(house, "GET", path) == 200
        assert await status_of(house, "GET", path, key=house.foreign_key) == 404
    for path in ("/agents", "/runs", "/sessions", "/gards", "/workers"):
        assert await house.ask("GET", path, key=house.foreign_key) == (200, {"data": []})
    assert await status_of(house, "GET", "/sessions/mine") in (400, 404)


async def test_the_catalogue_of_tools(house: House) -> None:
    """Built-in ones first, which nobody can shadow; then those of workers that are in no gard."""

    async def catalogue() -> tuple[list[tuple[str, str]], dict[str, Any]]:
        _, body = await house.ask("GET", "/tools")
        return [(tool["name"], tool["source"]) for tool in body["data"]], body["meta"]

    builtins, meta = await catalogue()
    assert {("wait", "builtin"), ("ask_human", "builtin")} <= set(builtins)
    assert (meta["workers_connected"], meta["llm_available"]) == (0, False)
    gard = await house.post("/gards")
    claim = {"gard": gard["id"], "claim_token": gard["claim_token"]}
    async with phone(house) as worker, phone(house) as inside:
        shadow = {**CHARGE, "name": "wait", "description": "Mine."}
        await worker.join(tools=[shadow, CHARGE], capabilities=["tools"])
        await inside.join(worker_id="in", tools=[{**CHARGE, "name": "hidden"}], **claim)
        tools, meta = await catalogue()
        assert tools == [*builtins, ("charge", "worker")]
        assert meta["llm_available"] is False
        await worker.join(tools=[CHARGE])
        await worker.say("1", "7", "worker:lobby", "drain", {})
        await until(lambda: _drains(house))
        tools, meta = await catalogue()
        assert ("charge", "worker") in tools
        assert meta["llm_available"] is True
        (shown,) = [one for one in await house.get("/workers") if one["worker_id"] == "raw"]
        assert (shown["capabilities"], shown["tool_count"], shown["gard"]) == (
            ["llm", "tools"], 1, None,
        )  # fmt: skip


async def _drains(house: House) -> bool:
    return any(one["draining"] for one in await house.get("/workers"))


async def test_a_run_in_a_gard_that_is_destroyed_ends(house: House) -> None:
    """By force only; nothing is sent there any more, nobody claims it, and it can still be seen."""
    await define(house)
    gard = await house.post("/gards", {"name": "box", "template": "t", "metadata": {"a": 1}})
    path, claim = f"/gards/{gard['id']}", {"claim_token": gard["claim_token"]}
    assert (gard["status"], gard["name"], gard["metadata"]) == ("pending", "box", {"a": 1})
    assert "claim_token" not in await house.get(path)
    run = await send(house, gard_id=str(gard["id"]))
    assert await status_of(house, "DELETE", path) == 409
    assert await status_of(house, "DELETE", f"{path}?force=true") == 204
    assert await status_of(house, "DELETE", path) == 404
    assert (await over(house, run))["status"] == "failed"
    assert await status_of(house, "POST", f"/runs/{run}/retry") == 404
    (agent,) = await house.get("/agents")
    for gone in (gard["id"], 999):
        body = {"content": "hi", "gard_id": gone}
        assert await status_of(house, "POST", f"/agents/{agent['id']}/messages", body) == 404
    async with phone(house) as worker:
        reply = await worker.join(gard=gard["id"], **claim)
        assert reply[4]["response"]["reason"] == "gard_destroyed"
    assert [one["status"] for one in await house.get("/gards")] == ["destroyed"]


async def test_a_message_that_waits_its_turn_is_in_its_gard_already(house: House) -> None:
    """Its run keeps the gard from being destroyed, says where it is, and ends with it."""
    await define(house)
    gard = (await house.post("/gards"))["id"]
    first = await send(house, conversation_key="k")
    waiting = await send(house, conversation_key="k", gard_id=gard)
    assert (await house.get(f"/runs/{waiting}"))["gard_id"] == gard
    assert await status_of(house, "DELETE", f"/gards/{gard}") == 409
    assert await status_of(house, "DELETE", f"/gards/{gard}?force=true") == 204
    assert (await over(house, waiting))["row_status"] == "cancelled"
    assert (await house.get(f"/runs/{first}"))["status"] in ("pending", "running")
