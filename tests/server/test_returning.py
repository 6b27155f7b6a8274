"""Workers that come back: with what they were at, with results, without either, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perdure.core import commands as c
from perdure.ports.workers import Task, ToolTask
from perdure.server import returning
from perdure.server.held import task_id
from perdure.server.pool import LOADING_MS, RETURN_MS, RETURN_ONCE_MS
from perdure.wire import table as t
from perdure.wire.registration import FEATURES
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask
from tests.server.house import BOT, house
from tests.server.peers import Peer
from tests.server.test_pool import MODEL_ID, ONCE, TOOL_ID, Desk, model, settle, tool
from tests.server.test_pool_in_node import DONE, Service, answer, model_only, result, spec
from tests.worker.test_holding import World

NATIVE = tuple(FEATURES - {"credit", "message_cache"})
DONE_REPORT = c.ReportToolResult(call="1.1.t0", attempt=1, ok=True, content="done")


async def native(desk: Desk, worker_id: str = "w1", **more: Any) -> Peer:
    """Let a worker of ours join that has everything."""
    peer = desk.peer(worker_id, "charge", features=NATIVE, agents={"bot": ("charge",)}, **more)
    await settle()
    return peer


def lost(worker: str | None = "w1") -> c.ReportToolLost:
    """Return the report of a call whose worker did not come back."""
    why = "its worker did not come back" if worker is None else f"worker {worker!r} was lost"
    return c.ReportToolLost(call="1.1.t0", attempt=1, reason=why)


async def begun(desk: Desk, task: ToolTask = ONCE) -> Peer:
    """Let a worker begin a `once` call."""
    peer = await native(desk)
    desk.start(task)
    await settle()
    peer.say(peer.side.begin(TOOL_ID))
    await settle()
    desk.pool.proceed(task)
    await settle()
    assert t.Proceed(TOOL_ID) in peer.heard
    desk.reports.clear()
    return peer


# ------------------------------------------------------------------------ while the server lives


@pytest.mark.parametrize(
    ("task", "wait_ms", "report"),
    [
        (model(), RETURN_MS, "worker_disconnected"),
        (tool(), RETURN_MS, lost().reason),
        (tool(effect="read"), RETURN_MS, lost().reason),
        (ONCE, RETURN_MS, lost().reason),
    ],
)
async def test_a_lost_connection_is_given_a_while(task: Task, wait_ms: int, report: str) -> None:
    """Before it a worker that comes back goes on; after it, the task is lost."""
    desk = Desk()
    peer = await native(desk)
    desk.start(task)
    await settle()
    peer.lose()
    desk.clock.advance(wait_ms - 1)
    assert desk.reports == []
    assert len(desk.needs()) == 1
    desk.clock.advance(1)
    (told,) = desk.reports
    assert report in (getattr(told, "code", None), getattr(told, "reason", None))
    assert desk.needs() == []


async def test_a_call_that_may_have_acted_is_waited_for_longer() -> None:
    """Nobody else could say what became of it."""
    desk = Desk()
    peer = await begun(desk)
    peer.lose()
    desk.clock.advance(RETURN_ONCE_MS - 1)
    assert desk.reports == []
    desk.clock.advance(1)
    assert desk.reports == [lost()]


@pytest.mark.parametrize("task", [model(), tool(), tool(effect="read")])
async def test_who_comes_back_goes_on_and_nobody_else_is_asked(task: Task) -> None:
    """One model call is paid for once, though the connection was lost meanwhile."""
    desk = Desk()
    peer = await native(desk)
    desk.start(task)
    await settle()
    peer.lose()
    other = await native(desk, "w2")
    again = await native(desk)
    again.holds(task_id(task))
    desk.clock.advance(RETURN_MS)
    await settle()
    assert (other.tasks, again.tasks, desk.reports) == ([], [], [])
    if isinstance(task, ToolTask):
        again.ok(TOOL_ID)
        assert desk.reports == [DONE_REPORT]
    else:
        again.reply(MODEL_ID)
        assert [type(report) for report in desk.reports] == [c.ReportReply]


async def test_a_result_may_be_what_comes_back() -> None:
    """The call ended while there was no connection: the worker names it, then brings its result."""
    desk = Desk()
    peer = await begun(desk)
    peer.lose()
    worker = World()
    worker.take(*peer.tasks)
    worker.end(0)
    again = await native(desk)
    worker.holding.connected()
    again.say(*worker.holding.to_say(again.side))
    assert desk.reports == [DONE_REPORT]


async def test_who_comes_back_with_nothing_has_lost_it() -> None:
    """A process that was started again under the same name."""
    desk = Desk()
    peer = await begun(desk)
    peer.lose()
    (await native(desk, tenant="other")).holds()
    (await native(desk, "w2")).holds()
    assert desk.reports == []
    (await native(desk)).holds()
    assert desk.reports == [lost()]


async def test_a_worker_whose_old_connection_still_seems_to_live_comes_back_too() -> None:
    """Its new one takes the place of the old."""
    desk = Desk()
    old = await begun(desk)
    new = await native(desk)
    new.holds(TOOL_ID)
    assert old.closed == 1012
    new.ok(TOOL_ID)
    assert desk.reports == [DONE_REPORT]


async def test_two_processes_of_one_name_put_nothing_in_doubt() -> None:
    """The second takes the place of the first, which lives, and brings what it was at."""
    desk = Desk()
    first = await begun(desk)
    second = await native(desk)
    second.holds()
    assert (first.closed, desk.reports) == (1012, [])
    again = await native(desk)
    again.holds(TOOL_ID)
    again.ok(TOOL_ID)
    assert (second.closed, desk.reports) == (1012, [DONE_REPORT])


async def test_what_was_cancelled_meanwhile_is_stopped() -> None:
    """Also soon after a start, when not every task is known yet."""
    desk = Desk()
    peer = await begun(desk)
    peer.lose()
    desk.pool.cancel(ONCE)
    again = await native(desk)
    again.holds(TOOL_ID, MODEL_ID)
    await settle()
    assert again.heard == [t.Cancel(TOOL_ID)]


async def test_a_worker_that_leaves_does_not_come_back() -> None:
    """It says so: its calls are lost at once."""
    desk = Desk()
    peer = await begun(desk)
    peer.say(peer.side.leave())
    assert desk.reports == [lost()]


async def test_what_was_handed_on_is_stopped_where_it_was() -> None:
    """Also what another tenant's worker says that it has."""
    desk = Desk()
    peer = await native(desk)
    desk.start(tool())
    await settle()
    peer.lose()
    desk.clock.advance(RETURN_MS)
    assert desk.reports == [lost()]
    second = await native(desk, "w2")
    desk.start(tool(attempt=2))
    await settle()
    assert second.ids == [TOOL_ID]
    again, stranger = await native(desk), await native(desk, tenant="other")
    again.holds(TOOL_ID)
    stranger.holds(TOOL_ID)
    await settle()
    assert again.heard == stranger.heard == [t.Cancel(TOOL_ID)]


async def test_a_worker_that_waits_for_the_word_gets_it_when_it_comes_back() -> None:
    """The word was lost with the connection; the call acts once."""
    desk = Desk()
    peer = await native(desk)
    desk.start(ONCE)
    await settle()
    peer.say(peer.side.begin(TOOL_ID))
    await settle()
    assert [type(report) for report in desk.reports] == [c.ReportToolBegin]
    peer.lose()
    desk.pool.proceed(ONCE)
    again = await native(desk)
    again.holds(TOOL_ID)
    again.say(again.side.begin(TOOL_ID))
    await settle()
    assert [fact for fact in again.heard if isinstance(fact, t.Proceed)] == [t.Proceed(TOOL_ID)]
    assert len(desk.reports) == 1


async def test_nobody_acts_in_the_place_of_one_who_was_allowed_to_and_may_be_elsewhere() -> None:
    """That he may was written down by a node that knows him; here he has never been seen."""
    desk = Desk()
    desk.start(ONCE)
    desk.pool.proceed(ONCE, "a worker of another node")
    other = await native(desk)
    assert other.tasks == []
    desk.clock.advance(RETURN_ONCE_MS)
    assert desk.reports == [lost("a worker of another node")]


async def test_what_only_one_may_do_is_lost_with_him_and_waits_for_no_other() -> None:
    """He was named before he had asked, since he had asked at another node."""
    desk = Desk()
    peer = await native(desk)
    desk.pool.borrow(ONCE, lambda _, report: desk.reports.append(report), print, None)
    await settle()
    desk.pool.proceed(ONCE, "w1")
    peer.say(peer.side.leave())
    other = await native(desk, "w2")
    assert (other.tasks, desk.reports) == ([], [lost()])


async def test_another_one_asks_in_the_place_of_him_who_lost_the_call_before_the_word_came() -> (
    None
):
    desk = Desk()
    first, second = await native(desk), await native(desk, "w2")
    desk.start(ONCE)
    await settle()
    first.say(first.side.begin(TOOL_ID))
    first.lose()
    desk.pool.proceed(ONCE, "w1")
    await settle()
    assert t.Proceed(TOOL_ID) not in second.heard
    assert desk.reports[1:] == [
        c.ReportToolBegin(call="1.1.t0", attempt=1, worker="w2", instead_of="w1")
    ]
    second.say(second.side.leave())
    third = await native(desk, "w3")
    desk.pool.proceed(ONCE, "w2")
    await settle()
    assert desk.reports[2:] == [
        c.ReportToolBegin(call="1.1.t0", attempt=1, worker="w3", instead_of="w2")
    ]
    desk.pool.proceed(ONCE, "w3")
    third.say(third.side.begin(TOOL_ID))
    await settle()
    assert t.Proceed(TOOL_ID) in third.heard


async def test_who_is_at_a_begun_call_of_another_node_stays_when_its_session_comes_here() -> None:
    desk, elsewhere = Desk(), list[Any]()
    peer = await native(desk)
    desk.pool.borrow(ONCE, lambda _, report: elsewhere.append(report), print, None)
    await settle()
    peer.say(peer.side.begin(TOOL_ID))
    desk.pool.proceed(ONCE, "w1")
    elsewhere.clear()
    mine = replace(ONCE)
    assert desk.pool.resume(mine, lambda _, report: desk.reports.append(report), print, "w1")
    await settle()
    assert t.Cancel(TOOL_ID) not in peer.heard
    peer.ok(TOOL_ID)
    assert (desk.reports, elsewhere) == ([DONE_REPORT], [])


# ------------------------------------------------------------------------ after a server was killed


@pytest.mark.parametrize("early", [True, False], ids=["worker first", "session first"])
@pytest.mark.parametrize("comes_with", ["the call", "its result", "its wish to begin"])
async def test_a_begun_call_goes_on_under_the_next_server(early: bool, comes_with: str) -> None:
    """Whoever is there first, the worker or the session."""
    desk = Desk()

    def resume() -> None:
        assert desk.pool.resume(ONCE, lambda _, report: desk.reports.append(report), print)

    if not early:
        resume()
    peer = await native(desk)
    if comes_with == "its result":
        peer.holds()
        peer.ok(TOOL_ID)
    else:
        peer.holds(TOOL_ID)
        if comes_with == "its wish to begin":
            peer.say(peer.side.begin(TOOL_ID))
    if early:
        assert desk.reports == []
        resume()
    await settle()
    if comes_with == "its wish to begin":
        assert t.Proceed(TOOL_ID) in peer.heard
    assert t.Cancel(TOOL_ID) not in peer.heard
    if comes_with != "its result":
        desk.clock.advance(RETURN_ONCE_MS)
        assert desk.reports == []
        peer.ok(TOOL_ID)
    assert desk.reports == [DONE_REPORT]
    assert peer.tasks == []


async def test_a_begun_call_of_a_worker_that_is_gone_is_lost() -> None:
    """After the while that it is given, and never sent to another."""
    desk = Desk()
    assert desk.pool.resume(ONCE, lambda _, report: desk.reports.append(report), print)
    other = await native(desk, "w2")
    other.holds()
    desk.clock.advance(RETURN_ONCE_MS)
    assert desk.reports == [lost(None)]
    assert other.tasks == []


async def test_a_foreign_worker_brings_nothing() -> None:
    """Neither a result nor a claim to be at a task of another tenant's."""
    desk = Desk()
    stranger = await native(desk, tenant="other")
    stranger.holds(MODEL_ID)
    stranger.ok(TOOL_ID)
    desk.start(model(), tool())
    await settle()
    assert desk.reports == []
    assert len(desk.needs()) == 2


@pytest.mark.parametrize("brings", [True, False], ids=["results", "claims"])
@pytest.mark.parametrize("elsewhere", [{"tenant": "other"}, {"gard": "7"}])
async def test_a_foreign_worker_takes_nothing_away(
    elsewhere: dict[str, Any], brings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by naming what others are at, nor by naming more than is kept."""
    monkeypatch.setattr(returning, "TASKS_MAX", 10)
    monkeypatch.setattr(returning, "RESULTS_MAX", 10)
    desk = Desk()
    peer = await native(desk)
    stranger = await native(desk, "w1" if "tenant" in elsewhere else "w2", **elsewhere)
    peer.holds(TOOL_ID)
    if brings:
        peer.ok(TOOL_ID)
    stranger.holds(TOOL_ID, *(f"T{number}" for number in range(20)))
    for number in range(20 if brings else 0):
        stranger.ok(f"T{number}")
    assert desk.pool.resume(ONCE, lambda _, report: desk.reports.append(report), print)
    await settle()
    if not brings:
        desk.clock.advance(RETURN_ONCE_MS)
        assert desk.reports == []
        peer.ok(TOOL_ID)
    assert desk.reports == [DONE_REPORT]


async def test_a_pool_that_has_loaded_everything_knows_what_it_does_not_owe() -> None:
    """Then what nobody owes is stopped, and its result dropped."""
    desk = Desk()
    desk.clock.advance(LOADING_MS)
    peer = await native(desk)
    peer.holds(MODEL_ID)
    peer.ok(TOOL_ID)
    await settle()
    assert peer.heard == [t.Cancel(MODEL_ID)]
    desk.start(tool())
    await settle()
    assert (desk.reports, peer.ids) == ([], [TOOL_ID])


async def test_what_nobody_asks_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes; what came last is kept."""
    monkeypatch.setattr(returning, "TASKS_MAX", 2)
    monkeypatch.setattr(returning, "RESULTS_MAX", 3)
    monkeypatch.setattr(returning, "RESULT_BYTES_MAX", 300)
    desk = Desk()
    member = (await native(desk)).member
    assert member is not None
    need = desk.pool._hold(tool(), lambda _, report: None, print).need
    kept = returning.Returning()
    for number in range(4):
        kept.is_at(f"T{number}", member)
        kept.brought(f"R{number}", member, Result(task_id=f"R{number}", status="ok"))
    assert [kept.worker(f"T{number}", need) is not None for number in range(4)] == [0, 0, 1, 1]
    assert [kept.result(f"R{number}", need) is not None for number in range(4)] == [0, 1, 1, 1]
    kept.brought("small", member, Result(task_id="small", status="ok"))
    kept.brought("large", member, Result(task_id="large", status="ok", result="x" * 290))
    assert kept.result("small", need) is None


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_payment_outlives_its_server(comes_back: bool) -> None:
    """A whole run: the server dies in the middle of the call, and another takes its place."""
    service = Service(spec(effect="once"))
    first = await service.node()
    features: dict[str, Any] = {"features": NATIVE, "agents": {"bot": ("charge",)}}
    run = await first.send("bot", "go")
    peer = service.peer("w1", model_only, **features)
    await service.settle()
    call = peer.ids[-1]
    peer.say(peer.side.begin(call))
    await service.settle()
    assert t.Proceed(call) in peer.heard
    await service.crash(first)
    node = await service.node()
    run = await node.of("default").run(run.id)
    await service.settle()
    assert (await service.events(run))[-1] == "tool_call_begun"
    again = service.peer("w1" if comes_back else "w2", answer, **features)
    await service.settle()
    again.holds(*[call] if comes_back else [])
    if comes_back:
        again.ok(call, "charged 5")
        assert await result(run) == DONE
    else:
        await service.pass_time(RETURN_ONCE_MS / 1000)
        assert "outcome of this call is unknown" in await result(run)
    assert ("tool_call_unknown" in await service.events(run)) is not comes_back
    assert [type(fact) for fact in again.tasks] == [LlmTask]
    await node.stop()


async def test_what_a_server_that_stops_has_asked_is_not_asked_again() -> None:
    """Its workers go on, and come back with the reply to the next one: it is paid for once."""
    async with house() as first:
        peer = first.worker(lambda task: None, features=NATIVE, agents={"bot": ()})
        agent = await first.make("/agents", BOT)
        await first.run(agent["id"])
        (asked,) = peer.ids
        await first.service.stop()
        await first.settle()
        assert peer.closed == 1012
        assert t.Cancel(asked) not in peer.heard
