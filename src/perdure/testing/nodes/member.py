"""A node process that runs errands on a store which it shares with others.

An errand calls a tool of each effect class; what they do happens in the ledger, which is never
killed. Whatever becomes of the node, its errands are sent again under their keys until they ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from perdure.adapters.clock import SystemClock
from perdure.adapters.cluster.memory import Hub, MemoryCluster
from perdure.adapters.models import resolve
from perdure.adapters.telemetry.logs import LogTelemetry
from perdure.bootstrap import Node, open_cluster, open_store
from perdure.core.errors import PerdureError, Quarantined, Refused, RunFailed
from perdure.core.history import malformed
from perdure.core.messages import AssistantMessage, ModelReply, ToolRequest
from perdure.ports.cluster import NodeCard
from perdure.ports.models import ModelRequest
from perdure.runtime.agents import Registered
from perdure.runtime.settings import NodeSettings
from perdure.testing.client import Client
from perdure.testing.ledger import Ledger
from perdure.testing.mutants import break_engine
from perdure.testing.mutation.nodes import STORE_VARIABLE
from perdure.testing.nodes.bus import BadBus
from perdure.testing.nodes.recorder import TRACE_SUFFIX, Recorder
from perdure.worker import Agent, LocalWorker, ToolContext, tool

AGENT = "runner"
STEPS = ("look", "keep", "publish", "mail")
RESULTS = {"publish": "published", "mail": "mailed"}
AGAIN_SECONDS = 0.1
FAILED = 4
STALL_SIGNAL = signal.SIGUSR1
TELL_SIGNAL = signal.SIGUSR2


class Life(msgspec.Struct, frozen=True, tag=True):
    """A node process: its name, its store, where it notes what it does, and its errands.

    Without a `cluster` the nodes do not hear of each other; `bus` is what spoils its messages (see
    `BadBus`). It begins `at_once` errands at a time, and sends a message again after
    `patience_seconds` without an end. `stall_ms` is how long its event loop stands still at each
    SIGUSR1.
    """

    name: str
    store: str
    cluster: str | None
    out: str
    ledger: str
    world: str
    errands: tuple[str, ...] = ()
    lease_ms: int = 1_000
    scan_interval_ms: int = 500
    prefer_ms: int = 300
    drain_ms: int = 10_000
    at_once: int = 2
    patience_seconds: float | None = None
    work_ms: int = 10
    think_ms: int = 0
    stall_ms: int = 0
    bus: dict[str, Any] = {}
    mutant: str = ""


class World:
    """The far ends of the errands, as this process sees them."""

    def __init__(self, life: Life) -> None:
        self.ledger = Ledger(Path(life.ledger), Path(life.world))
        self._work_seconds = life.work_ms / 1000
        self._think_seconds = life.think_ms / 1000

    def agent(self) -> Agent:
        """Return the agent, with one tool of each effect class."""

        @tool(effect="read")
        def look(ctx: ToolContext) -> str:
            """Look at something: it may be done again."""
            self._work("look", ctx)
            return "seen"

        @tool(effect="idempotent")
        def keep(ctx: ToolContext) -> str:
            """Keep something: the far end honours the key."""
            self._work("keep", ctx, honour_key=True)
            return "kept"

        def was_published(key: str, ctx: ToolContext) -> str | bool:
            return RESULTS["publish"] if self.ledger.rule_out(key, ctx.attempt) else False

        @tool(effect="once", probe=was_published)
        def publish(ctx: ToolContext) -> str:
            """Publish something, once: the far end can be asked afterwards."""
            self._work("publish", ctx, honour_key=False)
            return RESULTS["publish"]

        @tool(effect="once")
        def mail(ctx: ToolContext) -> str:
            """Mail something, once: nobody but a person can know afterwards."""
            self._work("mail", ctx, honour_key=False)
            return RESULTS["mail"]

        tools: list[Any] = [look, keep, publish, mail]
        return Agent(AGENT, model=self._play_the_model, instructions="Run an errand.", tools=tools)

    def _work(self, name: str, ctx: ToolContext, honour_key: bool | None = None) -> None:
        self.ledger.note(
            "tool",
            tool=name,
            session=str(ctx.session),
            call=ctx.call,
            attempt=ctx.attempt,
            key=ctx.key,
            arguments="{}",
        )
        _sleep(self._work_seconds)
        if honour_key is not None:
            self.ledger.effect(
                ctx.key,
                honour_key=honour_key,
                tool=name,
                session=str(ctx.session),
                attempt=ctx.attempt,
            )
            _sleep(self._work_seconds)

    async def _play_the_model(self, request: ModelRequest) -> ModelReply:
        """Reply as a model would: one tool after the other, then an answer."""
        turn = sum(isinstance(message, AssistantMessage) for message in request.messages)
        self.ledger.note(
            "model",
            session=f"default/{AGENT}/{request.messages[0].content}",
            turn=turn,
            malformed=malformed(request.messages),
        )
        await asyncio.sleep(self._think_seconds)
        if turn == len(STEPS):
            return ModelReply("done")
        return ModelReply("", (ToolRequest(f"c{turn}", STEPS[turn]),), "tool_call")


def _sleep(seconds: float) -> None:
    """Sleep by a wait that a false clock does not spoil."""
    select.select([], [], [], seconds)


def _tell_tasks() -> None:
    """Write down where every task stands."""
    for task in asyncio.all_tasks():
        task.print_stack()


async def live(life: Life) -> int:
    """Be a node until SIGTERM, and then drain; return the exit code.

    A node whose store failed for good ends with `FAILED`: whoever watches it starts it again.
    """
    logging.basicConfig(level=logging.DEBUG, format=f"%(relativeCreated)d {life.name} %(message)s")
    for other in ("asyncio", "nats"):
        logging.getLogger(other).setLevel(logging.WARNING)
    if life.mutant:
        os.environ[STORE_VARIABLE] = life.store
        break_engine(life.mutant)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    asyncio.get_running_loop().add_signal_handler(TELL_SIGNAL, _tell_tasks)
    # Not through the loop: it has to stand still in the middle of whatever it does.
    signal.signal(STALL_SIGNAL, lambda *_: _sleep(life.stall_ms / 1000))
    clock = SystemClock()
    opened: Any = await open_store(life.store, clock)
    try:
        world = World(life)
        node = await _node(life, opened, world.agent(), clock)
        await node.start()
        try:
            await _work(life, node, world, told)
        finally:
            await node.stop()
    finally:
        await opened.close()
    if node.failure is not None:
        sys.stderr.write(f"{life.name}: {node.failure!r}\n")
    return FAILED if node.failure is not None else 0


async def _node(life: Life, store: Any, agent: Agent, clock: SystemClock) -> Node:
    trace = Path(life.out) / f"{life.name}-{os.getpid()}{TRACE_SUFFIX}"
    cluster: Any = await open_cluster(life.cluster, clock)
    if cluster is None:
        cluster = MemoryCluster(Hub(clock.now_ms))
    if life.bus:
        cluster = BadBus(cluster, random.Random(f"{life.name}-{os.getpid()}"), **life.bus)
    return Node(
        Recorder(store, life.name, trace),
        [LocalWorker([agent], resolve, clock)],
        Registered({AGENT: agent.definition}),
        clock,
        LogTelemetry(),
        settings=NodeSettings(
            lease_ms=life.lease_ms,
            scan_interval_ms=life.scan_interval_ms,
            drain_ms=life.drain_ms,
            prefer_ms=life.prefer_ms,
        ),
        cluster=cluster,
        card=lambda: NodeCard(id="", name=life.name),
    )


async def _work(life: Life, node: Node, world: World, told: asyncio.Event) -> None:
    """Run the errands, and be there for those of others, until SIGTERM or a broken store."""
    client, waiting = Client(node, world.ledger, RESULTS), iter(life.errands)
    errands = [
        asyncio.ensure_future(_run(node, client, waiting, life.patience_seconds))
        for _ in range(life.at_once)
    ]
    ended = asyncio.ensure_future(told.wait())
    while not told.is_set() and node.failure is None:
        await asyncio.wait([ended], timeout=AGAIN_SECONDS)
    for errand in (*errands, ended):
        errand.cancel()
    await asyncio.gather(*errands, ended, return_exceptions=True)


async def _run(
    node: Node, client: Client, errands: Iterator[str], patience_seconds: float | None
) -> None:
    """See one errand after the other to its end."""
    for name in errands:
        await _see_to(node, client, name, patience_seconds)


async def _see_to(node: Node, client: Client, name: str, patience_seconds: float | None) -> None:
    """See an errand to its end; a session that was set aside is released, as a person would."""
    while node.failure is None:
        try:
            run = await client.send(AGENT, name, name, f"the errand {name}")
            await asyncio.wait_for(client.attend(run), patience_seconds)
        except TimeoutError:
            sys.stderr.write(f"{name}: no news of its run\n")
        except Quarantined:
            with suppress(Refused):
                await node.release(AGENT, name)
        except RunFailed as error:
            sys.stderr.write(f"{name}: {error!r}\n")
            return
        except PerdureError as error:
            sys.stderr.write(f"{name}: {error!r}\n")
        else:
            return
        await asyncio.sleep(AGAIN_SECONDS)
