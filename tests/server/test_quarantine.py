"""A session in quarantine: whoever asks for its run is told, and somebody can let it go on."""

from __future__ import annotations

import asyncio

from perdure.core.ids import SessionId
from perdure.wire.results import Result
from tests.server.house import BOT, House, house

WHY = "its host died 3 times in a row while running it"


async def set_aside(h: House) -> tuple[int, int]:
    """Return a run whose model never answers, and its session, which is in quarantine."""
    agent = (await h.make("/agents", BOT))["id"]
    h.worker(lambda task: None)
    run = await h.run(agent, conversation_key="c1")
    host = h.service.node._host
    host._set_aside(host._actors[SessionId("acme", str(agent), "c1")], WHY)
    await h.settle()
    return run, (await h.get(f"/runs/{run}"))["conversation_id"]


async def test_a_run_says_that_its_session_is_in_quarantine() -> None:
    """Nobody waits for it in vain; it goes on when its session is released."""
    async with house() as h:
        run, session = await set_aside(h)
        shown = await h.get(f"/runs/{run}")
        assert (shown["status"], shown["waits"]) == (
            "running",
            [{"what": "release", "call": "", "needs": WHY}],
        )
        assert (await h.get(f"/runs/{run}/wait", timeout=60))["waits"] == shown["waits"]
        h.worker(
            lambda task: Result(task_id=task.task_id, status="ok", content="hello"), worker_id="w2"
        )
        answer = await h.ask("POST", f"/sessions/{session}/release")
        assert (answer.status_code, answer.json()["data"]["id"]) == (200, session)
        await h.settle()
        assert (await h.get(f"/runs/{run}"))["status"] in ("running", "completed")
        again = await h.ask("POST", f"/sessions/{session}/release")
        assert (again.status_code, again.json()) == (409, {"error": "session is not in quarantine"})
        foreign = await h.ask("POST", f"/sessions/{session}/release", tenant="zeta")
        assert foreign.status_code == 404


async def test_who_waits_when_it_is_set_aside_learns_of_it() -> None:
    """Also in the middle of a long answer."""
    async with house() as h:
        agent = (await h.make("/agents", BOT))["id"]
        h.worker(lambda task: None)
        run = await h.run(agent, conversation_key="c1")
        waiting = asyncio.ensure_future(h.get(f"/runs/{run}/wait", timeout=60))
        await h.settle()
        assert not waiting.done()
        host = h.service.node._host
        host._set_aside(host._actors[SessionId("acme", str(agent), "c1")], WHY)
        assert (await waiting)["waits"][0]["needs"] == WHY
