"""A worker behind a socket: what it executes arrives, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import Any

import pytest
from msgspec import UNSET
from websockets.datastructures import Headers
from websockets.http11 import Response

from perdure.core.errors import InvalidInput, WorkerRefused
from perdure.core.messages import AssistantMessage, ModelReply, ToolRequest, Usage, UserMessage
from perdure.testing.clock import FakeClock
from perdure.wire import table as t
from perdure.wire.registration import AgentOffer, ToolOffer
from perdure.wire.results import Result
from perdure.wire.server import Left, PortAsked, WorkerJoins
from perdure.wire.tasks import MessagesDelta, ToolTask
from perdure.worker import ToolContext, tool, wait
from perdure.worker.remote import FEATURES, RemoteWorker
from tests.worker.helpers import Speaker, unknown
from tests.worker.node_played import (
    PATIENCE_SECONDS,
    a_node,
    a_worker,
    llm_task,
    tool_task,
    until,
)


class Work:
    """A tool `work` that counts its calls, and goes on when it is let."""

    def __init__(self, effect: Any = "read", **options: Any) -> None:
        self.calls = 0
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()
        self.cancelled = False

        @tool(effect=effect, **options)
        async def work(context: ToolContext) -> str:
            self.calls += 1
            self.started.set()
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return f"done under {context.key}"

        self.tool = work

    @classmethod
    def quick(cls, effect: Any = "read", **options: Any) -> Work:
        """Return one that does not wait."""
        work = cls(effect, **options)
        work.may_end.set()
        return work


DONE = Result(task_id="T1", status="ok", result="done under key-of-the-call")


# ---------------------------------------------------------------------------------- what it does


async def test_a_worker_says_what_it_has() -> None:
    """Its agents, the union of their tools without the built-in ones, and what it can."""
    work = Work.quick()
    async with a_node() as node, a_worker(node.url, work.tool, wait, concurrency_max=16):
        peer = await node.next()
        assert peer.socket.request.path == "/worker/websocket?token=key-1&vsn=2.0.0"
        said = await peer.joins()
        schema = work.tool.spec.parameters
        assert said.tools == (ToolOffer("work", work.tool.spec.description, schema, False, "read"),)
        assert said.agents == (AgentOffer("helper", ("work",)),)
        assert (said.worker_id, said.capabilities) == ("w1", ("llm", "tools"))
        assert (said.features, said.concurrency) == (FEATURES, 16)
        assert await peer.next(t.Credit) == t.Credit(16)


async def test_a_model_and_a_tool_are_called() -> None:
    """A whole round: a reply that asks for a call, the call, and the reply to its result."""
    reply = ModelReply(
        content="let me",
        tool_calls=(ToolRequest("c1", "work", {}),),
        finish="tool_call",
        usage=Usage(10, 2, 3, 1),
        model="m-1",
        extra={"signature": "s"},
    )
    model, work = Speaker(reply), Work.quick()
    async with a_node() as node, a_worker(node.url, work.tool, model=model) as running:
        peer = await node.joined()
        await peer.tell(llm_task())
        told = await peer.result()
        assert (told.content, told.finish_reason) == ("let me", "tool_call")
        assert told.extra == {"signature": "s"}
        assert told.tool_calls == [{"id": "c1", "name": "work", "arguments": {}}]
        assert told.usage == {
            "input_tokens": 10, "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 1,
        }  # fmt: skip
        (asked,) = model.asked
        assert (asked.model, asked.instructions, asked.messages) == (
            "object:Speaker", "Help.", (UserMessage("hello"),),
        )  # fmt: skip
        await peer.tell(tool_task())
        assert await peer.result() == DONE
        delta = MessagesDelta(base_count=1, append=(AssistantMessage("let me"),))
        await peer.tell(llm_task("M2", messages=UNSET, messages_delta=delta))
        await peer.result()
        assert model.asked[1].messages == (UserMessage("hello"), AssistantMessage("let me"))
        running.worker.stop()
        await running.ended()


async def test_results_of_one_turn_are_one_frame() -> None:
    """So that a busy worker does not pay for each."""
    work = Work()
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        await peer.tell(*(tool_task(f"T{n}") for n in range(10)))
        await until(lambda: work.calls == 10)
        work.may_end.set()
        assert [(await peer.result()).task_id for _ in range(10)] == [f"T{n}" for n in range(10)]
        assert peer.frames.count("results") == 1


async def test_credit_comes_back_as_calls_end() -> None:
    """As many tasks as it said, neither more nor fewer."""
    work = Work()
    async with a_node() as node, a_worker(node.url, work.tool, concurrency_max=2):
        peer = await node.joined()
        assert await peer.next(t.Credit) == t.Credit(2)
        await peer.tell(tool_task("T1"), tool_task("T2"))
        await work.started.wait()
        work.may_end.set()
        await peer.result()
        granted = 0
        while granted < 2:
            granted += (await peer.next(t.Credit)).tasks
        assert granted == 2


async def test_a_task_for_others_is_answered() -> None:
    """One that does not say which call it is cannot be executed by a worker of ours."""
    async with a_node() as node, a_worker(node.url):
        peer = await node.joined()
        await peer.tell(ToolTask(task_id="T9", tool_name="work", input={}))
        told = await peer.result()
        assert told.status == "error"
        assert "which call it is" in told.error


# -------------------------------------------------------------------------------- `once`, cancel


async def test_a_call_that_may_happen_once_asks_to_begin() -> None:
    """And acts when its beginning is durable, not before."""
    work = Work.quick("once")
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        await peer.tell(tool_task(effect="once"))
        assert await peer.next(t.Begin) == t.Begin("T1")
        assert work.calls == 0
        await peer.tell(t.Proceed("T1"))
        assert await peer.result() == DONE
        assert work.calls == 1


async def test_a_cancelled_call_is_stopped() -> None:
    """Nothing is said of it any more; a call that was not let begin never acts."""
    work, pay = Work(), Work.quick("once", name="pay")
    async with a_node() as node, a_worker(node.url, work.tool, pay.tool) as running:
        peer = await node.joined()
        await peer.tell(tool_task("T1"), tool_task("T2", tool="pay", effect="once"))
        await peer.next(t.Begin)
        await work.started.wait()
        await peer.tell(t.Cancel("T1"), t.Cancel("T2"), t.Proceed("T2"))
        running.worker.stop()
        assert await peer.gone() == [t.Drain(), Left("worker:lobby")]
        assert (work.cancelled, pay.calls) == (True, 0)


# ------------------------------------------------------------------- when the connection is gone


async def test_a_result_outlives_its_connection() -> None:
    """What ends while the node is away is told to the next one, without being done again."""
    work = Work()
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        await peer.tell(tool_task())
        await work.started.wait()
        await peer.drop()
        work.may_end.set()
        again = await node.joined()
        assert await again.result() == DONE
        assert work.calls == 1


async def test_a_result_that_was_not_acknowledged_is_said_again() -> None:
    """A node that died before it answered may not have it."""
    work = Work.quick()
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        peer.dies_at = "tool_result"
        await peer.tell(tool_task())
        await peer.gone()
        again = await node.joined()
        assert await again.result() == DONE
        assert work.calls == 1


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_call_asked_for_again_is_not_done_again(attempt: int) -> None:
    """An acknowledged result may be lost with its node: the next one asks for the call again."""
    work = Work.quick("idempotent")
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        await peer.tell(tool_task(effect="idempotent"))
        await peer.result()
        await peer.drop()
        again = await node.joined()
        task = tool_task("N1", call="1.1.T1", effect="idempotent", attempt=attempt)
        await again.tell(task)
        assert (await again.result()).result == DONE.result
        assert work.calls == 1


async def test_a_call_under_way_goes_on_under_its_new_name() -> None:
    """The next node asks for what is being done already."""
    work, other = Work("idempotent"), Work.quick(name="other")
    async with a_node() as node, a_worker(node.url, work.tool, other.tool):
        peer = await node.joined()
        await peer.tell(tool_task(effect="idempotent"))
        await work.started.wait()
        await peer.drop()
        again = await node.joined()
        again_asked = tool_task("N1", call="1.1.T1", effect="idempotent", attempt=2)
        await again.tell(again_asked, tool_task("T2", tool="other"))
        assert (await again.result()).task_id == "T2"
        work.may_end.set()
        assert (await again.result()).task_id == "N1"
        assert work.calls == 1


async def test_a_lost_attempt_is_made_again() -> None:
    """What was given up is no result: the next attempt is a new one."""
    async with a_node() as node, a_worker(node.url) as running:
        peer = await node.joined()
        peer.dies_at = "tool_result"
        await peer.tell(tool_task(effect="once"))
        await peer.gone()
        again = await node.joined()
        assert (await again.result()).lost is True
        for attempt in (1, 2):
            await again.tell(tool_task(effect="once", attempt=attempt))
            assert (await again.result()).lost is True
        running.worker.stop()
        await running.ended()


async def test_a_call_that_was_not_let_begin_is_given_up() -> None:
    """It did nothing: whoever asks for it again lets it begin again."""
    work = Work.quick("once")
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        await peer.tell(tool_task(effect="once"))
        await peer.next(t.Begin)
        await peer.drop()
        again = await node.joined()
        await again.tell(tool_task("N1", call="1.1.T1", effect="once"))
        assert await again.next(t.Begin) == t.Begin("N1")
        await again.tell(t.Proceed("N1"))
        assert (await again.result()).task_id == "N1"
        assert work.calls == 1


# -------------------------------------------------------------------------------------- probing


async def test_a_tool_is_asked_what_became_of_a_call() -> None:
    """By its probe, with the call's own key."""
    asked = []

    async def probe(key: str) -> bool:
        asked.append(key)
        return False

    work = Work.quick("once", probe=probe)
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        await peer.tell(tool_task(effect="once", probe=True))
        assert (await peer.result()).verdict == "did_not_happen"
        assert (asked, work.calls) == (["key-of-the-call"], 0)


async def test_a_call_under_way_is_waited_for_before_its_tool_is_asked() -> None:
    """Its tool could only say that it did not happen yet, and it would be done twice."""
    probes = []
    work = Work("once", probe=probes.append)
    async with a_node() as node, a_worker(node.url, work.tool):
        peer = await node.joined()
        await peer.tell(tool_task(effect="once"))
        await peer.next(t.Begin)
        await peer.tell(t.Proceed("T1"))
        await work.started.wait()
        await peer.drop()
        again = await node.joined()
        await again.tell(tool_task("P1", call="1.1.T1", effect="once", probe=True))
        work.may_end.set()
        assert (await again.result()).task_id == "T1"
        told = await again.result()
        assert (told.task_id, told.verdict, told.result) == ("P1", "happened", DONE.result)
        assert probes == []


async def test_a_tool_is_asked_about_a_call_that_failed() -> None:
    """An error does not say whether it took effect."""

    @tool(effect="once", probe=lambda key: True)
    async def work() -> None:
        raise ValueError("broken pipe")

    async with a_node() as node, a_worker(node.url, work):
        peer = await node.joined()
        await peer.tell(tool_task(effect="once"))
        await peer.next(t.Begin)
        await peer.tell(t.Proceed("T1"))
        assert (await peer.result()).kind == "raised"
        await peer.tell(tool_task("P1", call="1.1.T1", effect="once", probe=True))
        told = await peer.result()
        assert (told.verdict, told.result) == ("happened", "It took effect.")


# ------------------------------------------------------------------------------------- draining


async def test_a_worker_that_is_stopped_finishes_what_it_has() -> None:
    """It says so, serves what comes meanwhile, brings every result, leaves, and closes."""
    work, other = Work(), Work.quick(name="other")
    async with a_node() as node, a_worker(node.url, work.tool, other.tool) as running:
        peer = await node.joined()
        await peer.tell(tool_task())
        await work.started.wait()
        running.worker.stop()
        await peer.next(t.Drain)
        await peer.tell(tool_task("T2", tool="other"))
        assert (await peer.result()).task_id == "T2"
        work.may_end.set()
        assert await peer.gone() == [DONE, Left("worker:lobby")]
        assert peer.frames[-4:] == ["drain", "tool_result", "tool_result", "phx_leave"]
        assert peer.socket.close_code == 1000
        await running.ended()


async def test_a_result_is_brought_before_the_end() -> None:
    """Also if the node is away when the worker is stopped."""
    work = Work()
    async with a_node() as node, a_worker(node.url, work.tool) as running:
        peer = await node.joined()
        await peer.tell(tool_task())
        await work.started.wait()
        await peer.drop()
        work.may_end.set()
        running.worker.stop()
        again = await node.joined()
        assert await again.gone() == [t.Drain(), t.Holds(("T1",)), DONE, Left("worker:lobby")]
        await running.ended()


@pytest.mark.parametrize("impatient", [False, True])
async def test_what_takes_too_long_is_left_to_others(impatient: bool) -> None:
    """When the time is over, or at the second signal."""
    work = Work()
    limit = {"shutdown_timeout_s": 3600 if impatient else 0.05}
    async with a_node() as node, a_worker(node.url, work.tool, **limit) as running:
        peer = await node.joined()
        await peer.tell(tool_task())
        await work.started.wait()
        running.worker.stop()
        if impatient:
            running.worker.stop()
        assert (await peer.gone())[-1] == Left("worker:lobby")
        await running.ended()
        assert work.cancelled


async def test_a_worker_without_a_node_stops_at_once() -> None:
    """There is nothing to bring to anybody."""
    async with a_worker("http://127.0.0.1:9", clock=FakeClock()) as running:
        await asyncio.sleep(0)
        running.worker.stop()
        await running.ended()


PROGRAM = """
import sys
from perdure import Agent, Worker, tool

@tool(effect="read")
async def work() -> str:
    import asyncio, os, signal
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)
    return "done"

agent = Agent("helper", model="anthropic:m", tools=[work])
Worker(sys.argv[1], "key-1", register=False).serve([agent])
print("left")
"""


async def test_a_signal_stops_a_process() -> None:
    """In a process of its own, in the middle of a call."""
    async with a_node() as node:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, node.url, stdout=subprocess.PIPE
        )
        peer = await node.joined()
        await peer.tell(tool_task())
        said = await peer.gone()
        assert [type(fact) for fact in said] == [t.Holds, t.Drain, Result, Left]
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert (out, process.returncode) == (b"left\n", 0)


# ------------------------------------------------------------------------------ refused for good


@pytest.mark.parametrize(
    ("reason", "code"), [("invalid_claim_token", "gard_claim_failed"), ("join crashed", None)]
)
async def test_a_refused_join_is_the_end(reason: str, code: str | None) -> None:
    """Coming again would change nothing."""
    async with a_node() as node, a_worker(node.url, gard="3", claim_token="no") as running:
        peer = await node.next()
        await peer.refuses(reason, code)
        with pytest.raises(WorkerRefused, match=reason) as refused:
            await running.ended()
        assert refused.value.code == reason


async def test_a_gard_is_told_of_its_ports_until_the_server_has_them() -> None:
    """Not a second time: each would be one more."""
    ports = {3000: "http://box:3000", 5432: "tcp://box:5432"}
    of_gard: dict[str, Any] = {"gard": "3", "claim_token": "c", "ports": ports}
    async with a_node() as node, a_worker(node.url, Work.quick().tool, **of_gard):
        peer = await node.joined()
        first = await peer.next(PortAsked)
        assert first.port == t.Port(3000, "", "http", "http://box:3000")
        assert (await peer.next(PortAsked)).port.url == "tcp://box:5432"
        for frame in peer.side.reply(first.ticket, {"id": 1}):
            await peer.socket.send(frame)
        await peer.tell(tool_task())
        await peer.result()
        await peer.drop()
        again = await node.joined()
        asked = await again.next(PortAsked)
        assert asked.port.internal_port == 5432
        for frame in again.side.refuse(asked.ticket, "no gard"):
            await again.socket.send(frame)
        await again.tell(tool_task("T2"))
        await again.result()
        await again.drop()
        last = await node.joined()
        await last.next(t.Credit)
        assert "register_port" not in last.frames


@pytest.mark.parametrize(
    ("ports", "gard", "why"),
    [
        ({0: "http://x"}, "3", "a number from 1 to 65535"),
        ({80: "ftp://x"}, "3", "begins with http://, https:// or tcp://"),
        ({80: "http://x"}, None, "this worker has none"),
    ],
)
def test_ports_are_those_of_a_gard(ports: dict[int, str], gard: str | None, why: str) -> None:
    """With URLs that lead there."""
    with pytest.raises(InvalidInput, match=re.escape(why)):
        RemoteWorker("http://x", "k", unknown, FakeClock(), gard=gard, ports=ports)


async def test_a_gard_that_another_serves_is_waited_for() -> None:
    """The other worker may be a dead one that the node still believes in."""
    async with a_node() as node, a_worker(node.url, gard="3", claim_token="token"):
        peer = await node.next()
        await peer.refuses("already_claimed", "gard_claim_failed")
        again = await node.next()
        said = await again.joins()
        assert (said.gard, said.claim_token) == ("3", "token")


@pytest.mark.parametrize(
    ("told", "code"), [(t.GardDestroyed(), "gard_destroyed"), (t.KeyRevoked(), "key_revoked")]
)
async def test_a_worker_without_a_gard_or_a_key_ends(told: Any, code: str) -> None:
    """What it was doing is given up."""
    work = Work()
    async with a_node() as node, a_worker(node.url, work.tool) as running:
        peer = await node.joined()
        await peer.tell(tool_task())
        await work.started.wait()
        await peer.tell(told)
        with pytest.raises(WorkerRefused) as refused:
            await running.ended()
        assert refused.value.code == code
        assert work.cancelled


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (403, "forbidden")])
async def test_a_key_that_is_refused_is_the_end(status: int, code: str) -> None:
    """The words name the server and never the key."""

    def refuse(*_: Any) -> Response:
        return Response(status, "No", Headers())

    async with a_node(process_request=refuse) as node, a_worker(node.url) as running:
        with pytest.raises(WorkerRefused, match=node.url) as refused:
            await running.ended()
        assert refused.value.code == code
        assert "key-1" not in str(refused.value)


async def test_a_node_that_is_not_ready_is_asked_again() -> None:
    """Whatever it answers but that the key is no good."""
    answers = [503, 404, 500]

    def refuse(*_: Any) -> Response | None:
        return Response(answers.pop(), "No", Headers()) if answers else None

    async with a_node(process_request=refuse) as node, a_worker(node.url):
        await node.joined()
        assert answers == []


async def test_a_server_of_norns_is_told_from_ours() -> None:
    """It would give tasks of any agent, and without saying which."""
    async with a_node() as node, a_worker(node.url) as running:
        peer = await node.next()
        await peer.joins(without=["native"])
        with pytest.raises(WorkerRefused, match="native"):
            await running.ended()


@pytest.mark.parametrize("url", ["127.0.0.1:4000", "ftp://host", "http://"])
def test_a_url_that_cannot_be(url: str) -> None:
    """It is told before anything is connected."""
    with pytest.raises(InvalidInput, match="expected http"):
        RemoteWorker(url, "key", unknown, FakeClock())


# --------------------------------------------------------------------------- frames that are none


@pytest.mark.parametrize(
    ("frame", "code"),
    [("x" * 5_000, 1009), ("not JSON", 1007), ("[1, 2]", 1002), (b"binary", 1003)],
)
async def test_what_is_no_frame_ends_its_connection(frame: str | bytes, code: int) -> None:
    """And nothing else: the call goes on, and its result arrives."""
    work = Work()
    async with a_node() as node, a_worker(node.url, work.tool, frame_bytes_max=4_096):
        peer = await node.joined()
        assert peer.registration is not None
        assert peer.registration.frame_bytes_max == 4_096
        await peer.tell(tool_task())
        await work.started.wait()
        await peer.socket.send(frame)
        await peer.gone()
        assert peer.socket.close_code == code
        work.may_end.set()
        again = await node.joined()
        assert await again.result() == DONE


async def test_results_that_are_too_large_for_a_server() -> None:
    """One that takes smaller frames than ours is not sent the same frame again and again."""
    reply = Speaker(ModelReply(content="x" * 3_000_000))

    @tool(effect="read")
    async def work() -> str:
        return "y" * 600_000

    async with a_node(max_size=2**20) as node, a_worker(node.url, work, model=reply):
        peer = await node.joined()
        await peer.tell(llm_task(), tool_task("T1"), tool_task("T2"))
        await peer.gone()
        again = await node.joined()
        results = {each.task_id: each for each in [await again.result() for _ in range(3)]}
        assert [len(results[each].result) for each in ("T1", "T2")] == [600_000, 600_000]
        assert (results["M1"].status, results["M1"].code) == ("error", "reply_too_large")


async def test_a_beat_keeps_the_connection_and_the_calls() -> None:
    """Every 30 s, and of every call that was under way at the beat before."""
    work, clock = Work(), FakeClock()
    async with a_node() as node, a_worker(node.url, work.tool, clock=clock):
        peer = await node.joined()
        await peer.tell(tool_task())
        await work.started.wait()
        clock.advance(30_000)
        clock.advance(30_000)
        assert await peer.next(t.Progress) == t.Progress("T1")
        assert peer.frames.count("heartbeat") == 2


async def test_a_node_that_does_not_answer_the_join_is_left() -> None:
    """It may have lost its mind: another connection may fare better."""
    clock = FakeClock()
    async with a_node() as node, a_worker(node.url, clock=clock):
        peer = await node.next()
        await peer.next(WorkerJoins)
        clock.advance(15_000)
        await peer.gone()
        await until(lambda: clock.next_at_ms() is not None)
        clock.advance(15_000)
        await node.joined()


async def test_a_node_that_is_away_is_asked_less_and_less_often() -> None:
    """From 0.2 s to 15 s, and never by all workers at the same time."""
    clock = FakeClock()
    async with a_worker("http://127.0.0.1:9", clock=clock):
        longest = []
        for _ in range(10):
            await until(lambda: clock.next_at_ms() is not None)
            longest.append((clock.next_at_ms() or 0) - clock.now_ms())
            clock.advance(longest[-1])
        for number, delay in enumerate(longest):
            most = min(15_000, 200 * 2**number)
            assert most / 2 <= delay <= most
        assert len({delay / min(15_000, 200 * 2**n) for n, delay in enumerate(longest)}) > 1
