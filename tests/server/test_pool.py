"""The pool, task by task: who gets what, whose result counts, and what becomes of lost ones."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.core import commands as c
from perdure.core.agent import ToolSpec
from perdure.core.ids import SessionId
from perdure.core.limits import JSON_DEPTH_MAX
from perdure.core.messages import AssistantMessage, ModelReply, UserMessage
from perdure.ports.models import ModelRequest
from perdure.ports.workers import ModelTask, Task, ToolTask
from perdure.server import members
from perdure.server.held import task_id
from perdure.server.pool import Pool
from perdure.testing.clock import FakeClock
from perdure.wire import table as t
from perdure.wire import tasks
from perdure.wire.results import CACHE_MISS, Result
from tests.runtime.world import Telemetry
from tests.server.peers import Peer, registration

SESSION = SessionId("default", "bot", "s1")
GONE = "worker 'w1' was lost"


def model(call: str = "1.1.m1", **more: Any) -> ModelTask:
    """Return a model call."""
    request = ModelRequest("m", "You help.", (UserMessage("hi"),))
    task = ModelTask(SESSION, "run-1", call, "bot", request)
    return replace(task, **more)


def tool(call: str = "1.1.t0", name: str = "charge", **more: Any) -> ToolTask:
    """Return a call of a tool that may be repeated under its key."""
    task = ToolTask(SESSION, "run-1", call, 1, "bot", name, "idempotent", {"n": 5}, "key-1")
    return replace(task, **more)


ONCE = tool(effect="once")
MODEL_ID, TOOL_ID = task_id(model()), task_id(tool())


class Desk:
    """A pool, and somebody who gives it tasks and keeps what it reports."""

    def __init__(self, **more: Any) -> None:
        self.clock = FakeClock()
        self.telemetry = Telemetry()
        self.pool = Pool(self.clock, self.telemetry, **more)
        self.reports: list[c.Report] = []
        self.texts: list[str] = []

    def start(self, *given: Task) -> None:
        """Give the pool tasks."""
        for task in given:
            before = len(self.reports)
            self.pool.start(
                task,
                lambda _, report: self.reports.append(report),
                lambda _, text: self.texts.append(text),
            )
            assert len(self.reports) == before, "nothing is reported while a task starts"

    def peer(self, *args: Any, tenant: str = "default", **more: Any) -> Peer:
        """Let a worker join: see `registration`."""
        return Peer(self.pool, registration(*args, **more), tenant=tenant)

    def needs(self) -> list[str]:
        """Say what the session waits for."""
        return [waiting.needs for waiting in self.pool.queues.waiting_for(SESSION)]


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(8):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("effect", "features", "key"),
    [("read", (), None), ("idempotent", (), "key-1"), ("read", ("native",), "key-1")],
)
async def test_a_worker_of_norns_remembers_only_what_has_a_key(
    effect: str, features: tuple[str, ...], key: str | None
) -> None:
    """So reading has none: its file of results would be written anew at every call."""
    desk = Desk()
    peer = desk.peer("w1", "charge", features=features, agents={"bot": ("charge",)})
    desk.start(tool(effect=effect))
    await settle()
    assert [task.idempotency_key for task in peer.tasks] == [key]


async def test_a_tool_call_goes_out_and_its_result_comes_back() -> None:
    """Once: a second result is answered, counted and dropped."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    desk.start(tool())
    await settle()
    assert peer.heard == [
        tasks.ToolTask(task_id=TOOL_ID, tool_name="charge", input={"n": 5}, agent_id="bot",
                       run_id="run-1", idempotency_key="key-1")
    ]  # fmt: skip
    peer.ok(TOOL_ID, "charged")
    peer.ok(TOOL_ID, "charged again")
    assert desk.reports == [
        c.ReportToolResult(call="1.1.t0", attempt=1, ok=True, content="charged")
    ]
    assert desk.telemetry.told == [("result.dropped", {"worker": "w1", "task": TOOL_ID})]


async def test_a_model_call_goes_out_and_its_reply_comes_back() -> None:
    """As Norns' workers want it: nothing that is only ours, and today's date."""
    desk = Desk(numbers=lambda task: (1, 7))
    peer = desk.peer()
    spec = ToolSpec("wait", "…", {"type": "object"})
    request = replace(
        model().request,
        messages=(UserMessage("hi"), AssistantMessage("ho", extra={"ours": 1})),
        tools=(spec,),
        max_tokens=9,
    )
    desk.start(model(request=request))
    await settle()
    assert peer.heard == [
        tasks.LlmTask(
            task_id=MODEL_ID,
            model="m",
            system_prompt="You help.",
            date="2023-11-14",
            messages=(UserMessage("hi"), AssistantMessage("ho")),
            tools=(tasks.ToolSchema("wait", "…", {"type": "object"}),),
            max_tokens=9,
            agent_id=1,
            run_id=7,
            step=1,
        )
    ]
    peer.reply(MODEL_ID, "there")
    assert desk.reports == [c.ReportReply(call="1.1.m1", reply=ModelReply("there"))]


async def test_a_native_worker_is_told_everything() -> None:
    """So that it can run the same agent as if it were embedded; and what it says streams."""
    desk = Desk()
    peer = desk.peer("w1", agents={"bot": ("charge",)}, features=("native", "text"))
    said = AssistantMessage("ho", extra={"ours": 1})
    desk.start(
        model(request=replace(model().request, messages=(said,))),
        tool(effect="read", attempt=2, timeout_ms=900),
    )
    await settle()
    asked, called = peer.tasks
    assert (asked.messages, asked.date) == ((said,), None)
    assert asked.perdure == tasks.Detail(session=SESSION, run="run-1", call="1.1.m1", agent="bot")
    assert called.perdure == tasks.Detail(
        session=SESSION, run="run-1", call="1.1.t0", agent="bot", attempt=2, effect="read",
        timeout_ms=900,
    )  # fmt: skip
    peer.say(*peer.side.text({MODEL_ID: "the", TOOL_ID: "no model's"}))
    assert desk.texts == ["the"]


def test_a_task_has_the_same_id_for_every_attempt() -> None:
    """22 characters that are safe in a URL; a probe is not the call that it asks about."""
    assert len(TOOL_ID) == 22
    assert task_id(tool(attempt=2)) == TOOL_ID
    others = [MODEL_ID, task_id(tool(probing=True)), task_id(tool("1.1.t1"))]
    others += [task_id(tool(session=SESSION._replace(tenant="t2")))]
    assert len({TOOL_ID, *others}) == 5


# ------------------------------------------------------------------------------------- who fits

NATIVE = {"agents": {"bot": ("charge",)}, "features": ("native",)}
# a task, the gard that it is bound to, a worker, and whether it gets the task
FITS = [
    (tool(), None, {"tools": ("charge",)}, True),
    (tool(), None, {"tools": ("refund",)}, False),
    (tool(), None, {"tools": ("charge",), "llm": False}, True),
    (tool(), None, {"tools": ("charge",), "tenant": "other"}, False),
    (tool(), None, {"tools": ("charge",), "gard": "3"}, False),
    (tool(), "3", {"tools": ("charge",), "gard": "3"}, True),
    (tool(), "3", {"tools": ("charge",), "gard": "4"}, False),
    (tool(), "3", {"tools": ("charge",)}, False),
    (model(), None, {}, True),
    (model(), None, {"llm": False}, False),
    (model(), "3", {}, False),
    (model(), None, NATIVE, True),
    (model(), None, {**NATIVE, "llm": False}, False),
    (model(agent="other"), None, NATIVE, False),
    (tool(), None, NATIVE, True),
    (tool(name="refund"), None, NATIVE, False),
    (tool(agent="other"), None, {**NATIVE, "tools": ("charge",)}, False),
    (tool(probing=True), None, NATIVE, True),
    (tool(probing=True), None, {"tools": ("charge",)}, False),
]  # fmt: skip


@pytest.mark.parametrize(("task", "gard", "worker", "fits"), FITS)
async def test_who_fits(task: Task, gard: str | None, worker: dict[str, Any], fits: bool) -> None:
    """Tenant and gard are equal or not; the task waits for one who fits."""
    desk = Desk(gard_of=lambda task: gard)
    assert desk.pool.serves(task)
    desk.start(task)
    assert len(desk.needs()) == 1
    peer = desk.peer("w1", *worker.get("tools", ()),
                     **{k: v for k, v in worker.items() if k != "tools"})  # fmt: skip
    await settle()
    assert bool(peer.tasks) == fits
    assert bool(desk.needs()) != fits


async def test_an_agent_of_a_worker_of_ours_is_nobody_elses() -> None:
    """Its model may be a function, which another worker would ask a provider for."""
    desk = Desk(is_native=lambda task: task.agent == "bot")
    other = desk.peer("w1", "charge")
    desk.start(model(), tool(), model("1.2.m1", agent="theirs"))
    await settle()
    assert other.ids == [task_id(model("1.2.m1", agent="theirs"))]
    own = desk.peer("w2", "charge", **NATIVE)
    await settle()
    assert own.ids == [MODEL_ID, TOOL_ID]


async def test_many_needs_are_looked_up_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many answers are kept."""
    monkeypatch.setattr(members, "NEEDS_INDEXED_MAX", 1)
    desk = Desk()
    peer = desk.peer("w1", "charge")
    desk.start(model(), tool(), tool("1.1.t1"))
    await settle()
    assert len(peer.tasks) == 3


async def test_a_run_says_what_it_waits_for() -> None:
    """In words that tell what to start."""
    desk = Desk(gard_of=lambda task: "3" if isinstance(task, ToolTask) else None)
    desk.start(model(), tool())
    assert desk.needs() == [
        "a worker with llm for agent 'bot'",
        "a worker with the tool 'charge' for agent 'bot' in gard 3",
    ]
    waiting = desk.pool.queues.waiting_for(SESSION)
    assert [one.call for one in waiting] == ["1.1.m1", "1.1.t0"]
    assert (waiting[0].since_ms, waiting[0].fitting) == (desk.clock.now_ms(), 0)
    desk.pool.cancel(model())
    assert len(desk.needs()) == 2, "that is another task of the same call"
    assert desk.pool.queues.waiting_for(SESSION._replace(key="s2")) == ()


async def test_the_one_with_the_most_room_gets_it() -> None:
    """And nobody gets more than he asked for; what waits is given in order."""
    desk = Desk()
    small = desk.peer("small", "charge", concurrency=1)
    large = desk.peer("large", "charge", concurrency=3)
    calls = [tool(f"1.1.t{number}") for number in range(6)]
    desk.start(*calls)
    await settle()
    assert (len(small.tasks), len(large.tasks)) == (1, 3)
    small.ok(small.ids[0])
    large.ok(large.ids[0])
    await settle()
    assert (small.ids[1:], large.ids[3:]) == ([task_id(calls[4])], [task_id(calls[5])])
    assert desk.needs() == []


async def test_many_workers_share_what_there_is() -> None:
    """Though not all are looked at each time: each gets something before one gets all."""
    desk = Desk()
    peers = [desk.peer(f"w{n}", "charge", concurrency=4) for n in range(100)]
    desk.start(*[tool(f"1.1.t{n}") for n in range(200)])
    await settle()
    assert {len(peer.tasks) for peer in peers} <= {1, 2, 3}
    desk.start(*[tool(f"1.2.t{n}") for n in range(200)], tool("1.3.t0"), tool("1.3.t1"))
    await settle()
    assert {len(peer.tasks) for peer in peers} == {4}
    assert len(desk.needs()) == 2
    peers[7].ok(peers[7].ids[0])
    await settle()
    assert peers[7].ids[-1] == task_id(tool("1.3.t0"))


async def test_a_task_waits_for_room_as_well() -> None:
    """Then there are workers that fit, and all of them are busy."""
    desk = Desk()
    desk.peer("w1", "charge", concurrency=1)
    desk.start(tool(), tool("1.1.t1"))
    assert [(one.call, one.fitting) for one in desk.pool.queues.waiting_for(SESSION)] == [
        ("1.1.t1", 1)
    ]


async def test_a_worker_that_grants_credit_gets_what_it_granted() -> None:
    """A result grants nothing."""
    desk = Desk()
    peer = desk.peer("w1", "charge", features=("credit",))
    desk.start(*(tool(f"1.1.t{number}") for number in range(4)))
    await settle()
    assert peer.tasks == []
    peer.say(*peer.side.credit(2))
    await settle()
    peer.ok(peer.ids[0])
    await settle()
    assert len(peer.tasks) == 2
    peer.say(*peer.side.credit(1), *peer.side.credit(-5))
    await settle()
    assert len(peer.tasks) == 3


async def test_a_draining_worker_finishes_and_gets_nothing_new() -> None:
    """Its results count, and what it would have got waits for another."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    desk.start(tool())
    await settle()
    peer.say(peer.side.drain())
    desk.start(tool("1.1.t1"))
    peer.ok(TOOL_ID)
    await settle()
    assert len(desk.reports) == len(desk.needs()) == len(peer.tasks) == 1
    peer.say(peer.side.leave())
    assert desk.pool.members() == []
    successor = desk.peer("w2", "charge")
    await settle()
    assert len(successor.tasks) == 1


# -------------------------------------------------------------------------------- whose result


@pytest.mark.parametrize("tenant", ["default", "other"])
async def test_only_the_owners_result_counts(tenant: str) -> None:
    """Whoever else knows the id is answered, and nothing comes of it."""
    desk = Desk()
    owner = desk.peer("w1", "charge")
    desk.start(tool())
    thief = desk.peer("w2", "charge", tenant=tenant)
    await settle()
    thief.ok(TOOL_ID, "stolen")
    assert desk.reports == []
    assert desk.telemetry.count("result.dropped") == 1
    owner.ok(TOOL_ID, "mine")
    assert len(desk.reports) == 1


async def test_a_result_without_a_task_is_dropped() -> None:
    """Whatever its id is."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    for junk in ({}, {"task_id": 7}, {"task_id": "x"}, {"task_id": ["x"]}):
        peer.say(peer.side._say("tool_result", junk))
    assert desk.telemetry.count("result.dropped") == 4


async def test_a_result_that_is_too_deep_fails_its_own_call() -> None:
    """And none of those that came in the same frame."""
    deep: Any = []
    for _ in range(JSON_DEPTH_MAX + 5):
        deep = [deep]
    desk = Desk()
    peer = desk.peer("w1", "charge", features=("results",))
    desk.start(tool(), tool("1.1.t1"))
    await settle()
    results = [
        Result(task_id=task, status="ok", result=result)
        for task, result in zip(peer.ids, (deep, "done"), strict=True)
    ]
    peer.say(*peer.side.results(tuple(results)))
    assert [(report.ok, report.kind) for report in desk.reports] == [
        (False, "result_too_deep"),
        (True, "result"),
    ]
    assert peer.closed is None


async def test_what_nobody_has_may_be_answered_by_who_might_have_had_it() -> None:
    """A worker that computed it for a node that died brings it to the next one."""
    desk = Desk()
    stranger = desk.peer("w0", "refund")
    desk.start(tool())
    stranger.ok(TOOL_ID)
    assert desk.reports == []
    back = desk.peer("w1", "charge", features=("credit",))
    back.ok(TOOL_ID, "while you were away")
    assert desk.reports == [
        c.ReportToolResult(call="1.1.t0", attempt=1, ok=True, content="while you were away")
    ]
    assert desk.needs() == []


# -------------------------------------------------------------------------------------- losses

# a task, whether its worker begins itself, what happens before it is lost, and what is reported
LOST = [
    (model(), (), "",
     c.ReportModelError(call="1.1.m1", error_class="transient", code="worker_disconnected",
                        message=f"worker disconnected: {GONE}")),
    (tool(), (), "", c.ReportToolLost(call="1.1.t0", attempt=1, reason=GONE)),
    (ONCE, ("begin",), "", c.ReportToolLost(call="1.1.t0", attempt=1, reason=GONE)),
    (ONCE, (), "proceed", c.ReportToolLost(call="1.1.t0", attempt=1, reason=GONE)),
    (ONCE, ("begin",), "begin proceed",
     c.ReportToolLost(call="1.1.t0", attempt=1, reason=GONE)),
    (tool(probing=True), ("native",), "",
     c.ReportProbe(call="1.1.t0", attempt=1, verdict="undecided")),
]  # fmt: skip


@pytest.mark.parametrize(("task", "features", "before", "report"), LOST)
async def test_what_a_worker_had_is_lost_with_it(
    task: Any, features: tuple[str, ...], before: str, report: c.Report
) -> None:
    """The core decides what is done again. A second end of the connection changes nothing."""
    desk = Desk()
    peer = desk.peer("w1", "charge", features=features, agents={"bot": ("charge",)})
    desk.start(task)
    await settle()
    if "begin" in before:
        peer.say(peer.side.begin(task_id(task)))
    if "proceed" in before:
        desk.pool.proceed(task)
        await settle()
    begun = len(desk.reports)
    peer.lose()
    peer.lose()
    assert desk.reports[begun:] == [report]
    assert desk.needs() == []


@pytest.mark.parametrize("features", [(), ("begin",)])
@pytest.mark.parametrize("granted", [False, True])
async def test_a_call_that_cannot_have_begun_is_handed_on(
    features: tuple[str, ...], granted: bool
) -> None:
    """Its beginning is asked for once, and holds for whoever gets it."""
    desk = Desk()
    first = desk.peer("w1", "charge", features=features)
    desk.start(ONCE)
    await settle()
    if features:
        first.say(first.side.begin(TOOL_ID))
    assert desk.reports == [c.ReportToolBegin(call="1.1.t0", attempt=1, worker="w1")]
    first.lose()
    if granted:
        desk.pool.proceed(ONCE)
    assert len(desk.needs()) == 1
    second = desk.peer("w2", "charge", features=features)
    if not granted:
        await settle()
        desk.pool.proceed(ONCE)
    await settle()
    if features:
        second.say(second.side.begin(TOOL_ID))
        await settle()
        assert second.heard[1:] == [t.Proceed(TOOL_ID)]
    assert second.ids == [TOOL_ID]
    second.ok(TOOL_ID)
    assert len(desk.reports) == 2


async def test_a_worker_that_comes_again_takes_its_own_place() -> None:
    """What it had is handed on when it is there; the late end of the old one evicts nobody."""
    desk = Desk()
    old = desk.peer("w1", "charge")
    desk.start(tool())
    await settle()
    handed: list[Any] = []
    desk.pool.queues.held[TOOL_ID].on_report = lambda task, report: (
        handed.append(report), desk.start(replace(tool(), attempt=2))
    )  # fmt: skip
    new = desk.peer("w1", "charge")
    await settle()
    assert handed == [c.ReportToolLost(call="1.1.t0", attempt=1, reason=GONE)]
    assert new.ids == [TOOL_ID]
    assert old.closed == 1012
    old.lose()
    old.ok(TOOL_ID, "late")
    assert desk.pool.members() == [new.member]
    assert desk.reports == []
    new.ok(TOOL_ID)
    assert desk.reports == [c.ReportToolResult(call="1.1.t0", attempt=2, ok=True, content="done")]


# ------------------------------------------------------------------------------------ once


async def test_a_worker_of_norns_is_sent_a_once_call_when_it_has_begun() -> None:
    """It cannot ask itself."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    desk.start(ONCE)
    await settle()
    assert desk.reports == [c.ReportToolBegin(call="1.1.t0", attempt=1, worker="w1")]
    assert peer.tasks == []
    desk.pool.proceed(replace(ONCE))
    await settle()
    assert peer.tasks == [], "that was another task of the same call"
    desk.pool.proceed(ONCE)
    desk.pool.proceed(ONCE)
    await settle()
    assert peer.ids == [TOOL_ID]


async def test_a_worker_that_begins_by_itself_waits_for_the_word() -> None:
    """It may fail before; a beginning of something it has not is taken back."""
    desk = Desk()
    peer = desk.peer("w1", "charge", features=("begin",))
    desk.start(ONCE, tool("1.1.t1"))
    await settle()
    assert (len(peer.tasks), desk.reports) == (2, [])
    peer.say(peer.side.begin(TOOL_ID))
    peer.say(peer.side.begin("other"), peer.side.begin(peer.ids[1]), peer.side.begin(TOOL_ID))
    assert desk.reports == [c.ReportToolBegin(call="1.1.t0", attempt=1, worker="w1")]
    desk.pool.proceed(ONCE)
    await settle()
    assert peer.heard[2:] == [t.Cancel("other"), t.Cancel(peer.ids[1]), t.Proceed(TOOL_ID)]


@pytest.mark.parametrize("features", [(), ("begin",)])
async def test_a_beginning_that_is_refused_never_acts(features: tuple[str, ...]) -> None:
    """Whoever refuses it cancels it."""
    desk = Desk()
    peer = desk.peer("w1", "charge", features=features)
    desk.start(ONCE)
    await settle()
    if features:
        peer.say(peer.side.begin(TOOL_ID))
    desk.pool.cancel(ONCE)
    desk.pool.proceed(ONCE)
    await settle()
    assert t.Proceed(TOOL_ID) not in peer.heard
    assert bool(peer.heard) == bool(features)
    assert peer.member is not None
    assert peer.member.tasks == {}


# ----------------------------------------------------------------------------- ends and limits


@pytest.mark.parametrize("features", [(), ("cancel",)])
async def test_a_cancelled_task_is_forgotten(features: tuple[str, ...]) -> None:
    """Its worker is told if it wants to know, and gets the next one."""
    desk = Desk()
    peer = desk.peer("w1", "charge", features=features, concurrency=1)
    first, second = tool(), tool("1.1.t1")
    desk.start(first, second)
    await settle()
    desk.pool.cancel(first)
    desk.pool.cancel(first)
    await settle()
    assert peer.ids == [TOOL_ID, task_id(second)]
    assert (t.Cancel(TOOL_ID) in peer.heard) == bool(features)
    peer.ok(TOOL_ID)
    assert desk.reports == []


async def test_a_task_that_is_cancelled_before_it_is_reported_is_not() -> None:
    """A beginning, or a task too large to be sent, is told a turn of the loop later."""
    desk = Desk()
    desk.peer("w1", "charge", frame_bytes_max=1024)
    large = tool("1.1.t1", arguments={"n": "x" * 2000})
    desk.start(ONCE, large)
    desk.pool.cancel(ONCE)
    desk.pool.cancel(large)
    await settle()
    assert desk.reports == []


async def test_what_a_loss_makes_needless_is_not_reported_lost() -> None:
    """The first report may end the run, and with it the other calls."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    first, second = tool(), tool("1.1.t1")
    desk.pool.start(first, lambda task, report: desk.pool.cancel(second), lambda *told: None)
    desk.start(second)
    await settle()
    peer.lose()
    assert desk.reports == []


async def test_a_worker_whose_channel_is_closed_is_sent_nothing() -> None:
    """What it was to get is handed on when its end is known."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    peer.wire.close(t.WORKER_TOPIC)
    desk.start(tool())
    peer.lose()
    other = desk.peer("w2", "charge")
    await settle()
    assert (peer.tasks, other.ids, desk.reports) == ([], [TOOL_ID], [])


async def test_a_task_that_is_started_again_forgets_the_one_before() -> None:
    """Only the newer one is reported."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    desk.start(tool(), tool(attempt=2))
    await settle()
    assert peer.ids == [TOOL_ID, TOOL_ID]
    peer.ok(TOOL_ID)
    assert [getattr(report, "attempt", None) for report in desk.reports] == [2]


TIMEOUT = "The tool did not answer within 2 s."
# a task, its worker's features, after how long it is over, and what is reported
LATE = [
    (model(), (), 300,
     c.ReportModelError(call="1.1.m1", error_class="transient", code="timeout",
                        message="the model did not reply within 300 s")),
    (tool(timeout_ms=2000), (), 2,
     c.ReportToolResult(call="1.1.t0", attempt=1, ok=False, kind="timeout",
                        content=f"{TIMEOUT} It cannot be stopped and may still be at work.")),
    (tool(timeout_ms=2000), ("cancel",), 2,
     c.ReportToolResult(call="1.1.t0", attempt=1, ok=False, kind="timeout", content=TIMEOUT)),
    (tool(timeout_ms=2000), ("cancel", "native"), 7,
     c.ReportToolResult(call="1.1.t0", attempt=1, ok=False, kind="timeout", content=TIMEOUT)),
    (replace(ONCE, timeout_ms=2000), ("begin",), 2,
     c.ReportToolLost(call="1.1.t0", attempt=1, reason="the tool did not answer within 2 s")),
    (tool(probing=True, timeout_ms=2000), ("native",), 7,
     c.ReportProbe(call="1.1.t0", attempt=1, verdict="undecided")),
]  # fmt: skip


@pytest.mark.parametrize(("task", "features", "seconds", "report"), LATE)
async def test_a_worker_has_only_so_much_time(
    task: Task, features: tuple[str, ...], seconds: int, report: c.Report
) -> None:
    """Waiting for a worker does not count; a native one keeps the time itself, and has a bit more.

    What comes after the time is over counts no more.
    """
    desk = Desk()
    desk.start(task)
    desk.clock.advance(1_000_000)
    peer = desk.peer("w1", "charge", features=features, agents={"bot": ("charge",)})
    await settle()
    desk.clock.advance(seconds * 1000 - 1)
    assert desk.reports == []
    desk.clock.advance(1)
    assert desk.reports == [report]
    peer.ok(task_id(task))
    await settle()
    assert len(desk.reports) == 1
    stoppable = {"cancel", "begin"} & set(features)
    assert (t.Cancel(task_id(task)) in peer.heard) == bool(stoppable)


async def test_progress_gives_a_task_its_time_anew() -> None:
    """And is told to whoever listens; that of others is not."""
    told: list[Any] = []
    desk = Desk(on_progress=lambda task, progress: told.append((task, progress)))
    peer = desk.peer("w1", "charge", features=("progress",))
    other = desk.peer("w2", features=("progress",))
    desk.start(tool(timeout_ms=2000))
    await settle()
    desk.clock.advance(1500)
    peer.say(*peer.side.progress(TOOL_ID, 0.5))
    other.say(*other.side.progress(TOOL_ID, 0.9))
    desk.clock.advance(1500)
    assert (told, desk.reports) == ([(tool(timeout_ms=2000), 0.5)], [])
    desk.clock.advance(500)
    assert len(desk.reports) == 1


LARGE: dict[str, Any] = {"n": "x" * 5000}
TAKES = "bytes, more than the 4096 that its worker takes"
DO = "shorten or compact the history"
# a task that is too large for its worker, and what in its report says so
TOO_LARGE = [
    (
        model(request=ModelRequest("m", "x" * 5000, ())),
        ("error_class", "code", "message"),
        ("validation", "too_large", f"the request to the model has {{}} {TAKES}: {DO}"),
    ),
    (
        tool(arguments=LARGE),
        ("ok", "kind", "content"),
        (False, "too_large", f"The tool was not called: the call has {{}} {TAKES}."),
    ),
    (tool(arguments=LARGE, probing=True), ("verdict",), ("undecided",)),
]  # fmt: skip


@pytest.mark.parametrize(("task", "fields", "said"), TOO_LARGE)
async def test_what_its_worker_would_not_take_is_never_sent(
    task: Task, fields: tuple[str, ...], said: tuple[Any, ...]
) -> None:
    """It would close the connection, and lose everything else that is under way."""
    desk = Desk()
    peer = desk.peer("w1", frame_bytes_max=4096, concurrency=1, features=("native",),
                     agents={"bot": ("charge",)})  # fmt: skip
    desk.start(task, tool("1.1.t9"))
    await settle()
    assert peer.ids == [task_id(tool("1.1.t9"))]
    (report,) = desk.reports
    found = [getattr(report, field) for field in fields]
    assert [re.sub(r"\d{4,} (?=bytes)", "{} ", x) if isinstance(x, str) else x for x in found] == [
        *said
    ]


# ------------------------------------------------------------------------------------- deltas


def asked(call: str, *messages: str) -> ModelTask:
    """Return a model call with these messages."""
    said = tuple(UserMessage(text) for text in messages)
    return model(call, request=replace(model().request, messages=said))


async def test_a_worker_that_keeps_messages_is_sent_what_is_new() -> None:
    """Another one, and the same one after it came again, is sent all of them."""
    desk = Desk()
    peers = []
    for round_ in range(2):
        peer = desk.peer("w1", features=("message_cache",))
        peers.append(peer)
        for step, messages in enumerate(("a", "ab", "abc"), 1):
            task = asked(f"{round_}.{step}.m1", *messages)
            desk.start(task)
            await settle()
            assert peer.tasks[-1].messages == task.request.messages
            peer.reply(peer.ids[-1])
    for peer in peers:
        told = [frame for frame in peer.frames if "llm_task" in frame]
        assert ["messages_delta" in frame for frame in told] == [False, True, True]
        assert ['"content":"a"' in frame for frame in told] == [True, False, False]
    assert len(desk.reports) == 6


async def test_what_is_only_ours_is_in_no_delta() -> None:
    """And the base of the next delta has as many messages all the same."""
    desk = Desk()
    peer = desk.peer("w1", features=("message_cache",))
    history = (UserMessage("a"), AssistantMessage("b", extra={"ours": 1}), UserMessage("c"))
    for upto in (1, 2, 3):
        request = replace(model().request, messages=history[:upto])
        desk.start(model(f"1.{upto}.m1", request=request))
        await settle()
    assert peer.tasks[-1].messages == (history[0], AssistantMessage("b"), history[2])
    assert ["messages_delta" in frame for frame in peer.frames[1:]] == [False, True, True]


async def missing() -> tuple[Desk, Peer]:
    """Return a worker that has forgotten the messages of its run, and was not told more yet."""
    desk = Desk()
    peer = desk.peer("w1", features=("message_cache",))
    desk.start(asked("1.1.m1", "a"))
    await settle()
    peer.reply(peer.ids[-1])
    peer.side._cache.forget("run-1")
    return desk, peer


async def test_a_miss_sends_everything_at_once() -> None:
    """Nothing is reported of it."""
    desk, peer = await missing()
    desk.start(asked("1.2.m1", "a", "b"))
    await settle()
    assert peer.tasks[-1].messages == (UserMessage("a"), UserMessage("b"))
    assert len(desk.reports) == 1


async def test_a_miss_of_an_earlier_delta_is_nothing() -> None:
    """A task that was started again while its worker was slow is missed twice, and sent whole."""
    desk, peer = await missing()
    task = asked("1.2.m1", "a", "b")
    desk.start(task)
    desk.pool.cancel(task)
    desk.start(task)
    await settle()
    assert [told.messages for told in peer.tasks[1:]] == [task.request.messages]
    assert len(desk.reports) == 1
    peer.reply(peer.ids[-1])
    assert len(desk.reports) == 2
    assert isinstance(desk.reports[1], c.ReportReply)


async def test_a_miss_of_a_task_that_nobody_has_is_nothing() -> None:
    """It was about messages of another connection."""
    desk = Desk()
    desk.start(model())
    peer = desk.peer("w1", features=("message_cache", "credit"))
    peer.fail(MODEL_ID, CACHE_MISS)
    assert desk.reports == []
    assert len(desk.needs()) == 1


async def test_a_compaction_leaves_the_kept_messages_alone() -> None:
    """It is sent whole."""
    desk = Desk()
    peer = desk.peer("w1", features=("message_cache",))
    compact = asked("1.2.c", "a", "b")
    for task in (
        asked("1.1.m1", "a"),
        replace(compact, request=replace(compact.request, purpose="compact")),
        asked("1.2.m1", "a", "c"),
    ):
        desk.start(task)
        await settle()
        assert peer.tasks[-1].messages == task.request.messages
    assert peer.tasks[1].purpose == "compact"


# ----------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("why", [t.GardDestroyed(), t.KeyRevoked()])
async def test_a_worker_is_dismissed(why: Any) -> None:
    """It hears why before the end; what it had is lost."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    desk.start(tool())
    await settle()
    assert peer.member is not None
    desk.pool.dismiss(peer.member, why)
    await settle()
    assert peer.heard[1:2] == [why]
    assert (peer.closed, desk.pool.members()) == (1012, [])
    assert len(desk.reports) == 1


async def test_a_closed_pool_lets_everybody_go() -> None:
    """Nothing is reported: the sessions owe their calls as before."""
    desk = Desk()
    peer = desk.peer("w1", "charge")
    desk.start(tool(), tool("1.1.t1", "refund"))
    await desk.pool.close()
    await settle()
    assert (peer.closed, desk.reports, desk.needs()) == (1012, [], [])
    assert desk.pool.members() == []


async def test_a_server_sees_who_is_there() -> None:
    """Of one tenant, or of all."""
    desk = Desk()
    one, two = desk.peer("w1", "charge"), desk.peer("w1", tenant="other")
    assert desk.pool.members("default") == [one.member]
    assert desk.pool.members() == [one.member, two.member]
    assert one.member is not None
    assert (one.member.id, one.member.since_ms) == ("w1", desk.clock.now_ms())
